"""Molecular graphs, SMILES files and their allocation to clients."""
