"""The quick start: a small world, a model that knows it, a preference run, and the check of its result."""
