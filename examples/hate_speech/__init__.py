"""Hate-speech detection with calibrated tokens and dual contrastive learning: data, training, evaluation."""
