"""Metrics and figures of generated samples: no strategy, no options, no files."""
