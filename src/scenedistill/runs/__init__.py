"""A run's folder as it is read afterwards: its networks, images, curves and outputs."""
