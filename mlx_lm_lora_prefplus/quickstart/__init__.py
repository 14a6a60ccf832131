"""The quick start: a small world, a model that knows its facts, a preference run, and a check of its result."""
