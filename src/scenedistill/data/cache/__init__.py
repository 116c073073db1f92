"""Decoded images, once on the disk and mapped into memory by all that need them."""
