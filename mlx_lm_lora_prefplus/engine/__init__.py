"""From batches to trained weights: log-probs, reference, step, loop, evaluation, checkpoints."""
