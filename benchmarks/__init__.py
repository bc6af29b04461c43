"""Measurements: speed and memory of the components, and how well whole models survive missing or noisy modalities."""
