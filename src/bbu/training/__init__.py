"""Training: the objective in one forward, the trainer, parameter groups, checkpoints."""
