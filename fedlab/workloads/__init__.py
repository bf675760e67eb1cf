"""Workloads: one module for each learning problem. The registry names them."""
