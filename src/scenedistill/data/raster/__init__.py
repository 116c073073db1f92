"""Georeferenced rasters of any size: opened with care, and read in parts."""
