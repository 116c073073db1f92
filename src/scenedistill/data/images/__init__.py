"""Read image files of common formats, and refuse damaged or malicious ones."""
