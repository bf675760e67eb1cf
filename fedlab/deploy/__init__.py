"""Deployed clients: start, log, probe and credentials."""
