"""Cells of a comparison on other machines: a Ray cluster, or Slurm."""
