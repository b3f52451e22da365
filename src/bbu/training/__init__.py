"""Training: objective, trainer, parameter groups, distributed helpers, checkpoint recovery."""
