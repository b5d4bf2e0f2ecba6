"""Types whose values are stored and read exactly, or rejected."""
