"""Shared by all packages: errors, atomic file writes, cores, locks, memory, number formats, processes, text output."""
