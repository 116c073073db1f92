"""Inference: classify image files and rasters with a trained network."""
