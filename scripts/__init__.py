"""Scripts that made what the package ships, and pictures of the docs."""
