"""Scores of what a generative model draws: no strategy, no knob, no file."""
