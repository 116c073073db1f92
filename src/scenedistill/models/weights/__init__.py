"""Pretrained tensors out of files of all kinds, and into a network."""
