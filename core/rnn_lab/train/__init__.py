"""Training: budgets, the clock, the loop, metrics, checkpoints and resuming."""
