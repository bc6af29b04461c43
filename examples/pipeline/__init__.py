"""What the pipelines share: command lines, training, jobs, files, folds."""
