"""Image files of any common kind, read with care."""
