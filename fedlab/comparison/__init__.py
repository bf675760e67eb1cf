"""Strategies side by side: a grid of runs, its statistics, and its table."""
