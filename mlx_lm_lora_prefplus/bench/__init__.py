"""Compare this package's training step with the host's: time, memory, and whether both give the same gradient."""
