"""Training: log-probs, the reference, optimiser steps, the training loop, evaluation and checkpoints."""
