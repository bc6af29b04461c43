"""Emotion recognition that survives missing modalities: data, training, evaluation."""
