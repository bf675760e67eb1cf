"""What a GPU gives: every part of fedlab on it, right and timed, by one command (``python -m benchmarks.gpu``)."""
