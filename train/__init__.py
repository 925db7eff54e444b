"""Training runs: configs, data, the step, checkpoints and evaluation."""
