"""Configuration: presets and overrides, resolved once into typed dataclasses."""
