"""Street views with a class for every pixel."""
