"""Classify rasters of any size window by window, and write maps."""
