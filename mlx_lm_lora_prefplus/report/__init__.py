"""The report of a run: one HTML page with curves, settings, data, warnings and samples."""
