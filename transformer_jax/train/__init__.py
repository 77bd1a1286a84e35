"""Training: the state, the step, the loop around it, evaluation, checkpoints and what a run shows of itself."""
