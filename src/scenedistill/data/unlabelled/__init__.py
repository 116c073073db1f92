"""Unlabelled images for training, checked for copies of held-out images."""
