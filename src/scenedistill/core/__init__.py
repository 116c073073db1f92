"""Shared by all packages: errors, atomic file writes, cores, memory, number formats, processes, text output."""
