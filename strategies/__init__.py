"""Strategies: one federated algorithm a module, both halves in it. The registry names them."""
