"""Reading the folder of a finished run: networks, images, learning curves and outputs."""
