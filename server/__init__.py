"""Server side: the Flower ServerApp."""
