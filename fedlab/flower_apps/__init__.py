"""Flower apps of other people: a folder's ServerApp and ClientApp, run in this process without being edited."""
