"""Digit domains and a client's own images of digits."""
