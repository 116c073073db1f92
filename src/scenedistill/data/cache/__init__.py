"""The cache of decoded images: written to disk once, and memory-mapped by every process."""
