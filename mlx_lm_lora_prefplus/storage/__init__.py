"""Files on disk: complete or absent, never partly written. Also the cache folder for data that later runs reuse."""
