"""Georeferenced rasters of any size, opened safely and read in windows."""
