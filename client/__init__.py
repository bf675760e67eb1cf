"""Client side: the Flower ClientApp."""
