"""Data: readers, views, partitions, and the small sets inside the package."""
