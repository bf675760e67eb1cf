"""Measure fedlab on a GPU, whether it is right and how fast it is: ``python -m benchmarks.gpu``."""
