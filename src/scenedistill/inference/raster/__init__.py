"""A raster of any size becomes maps."""
