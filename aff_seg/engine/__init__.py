"""Training: trainer, optimizer and schedule, checkpoints, progress and curves."""
