"""Image sets with classes, domains of images, episodes and random views."""
