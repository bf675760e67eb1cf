"""Prediction with trained models, and paths in latent spaces."""
