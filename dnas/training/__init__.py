"""Training of one network: recipe, steps, checkpoints, evaluation, several processes."""
