"""Measures a training step against the host's own: time, memory, and that both give the same gradient."""
