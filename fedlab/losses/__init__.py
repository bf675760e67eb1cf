"""Losses and label methods in plain torch."""
