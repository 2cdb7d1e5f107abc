"""Training of one network: recipe, steps, checkpoints, evaluation and multiple processes."""
