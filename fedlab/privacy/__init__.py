"""Differential privacy: noise that can be secret, and an account of what was released."""
