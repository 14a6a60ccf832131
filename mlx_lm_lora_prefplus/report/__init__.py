"""What a person looks at after a run: one HTML page of curves, settings, data, warnings and samples."""
