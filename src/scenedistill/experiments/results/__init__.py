"""Results as files that are checked when read, and as tables."""
