"""Tuning of the methods of a grid on validation images."""
