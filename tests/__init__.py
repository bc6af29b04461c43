"""Tests of mmrobust."""
