"""Export of a student as checked files for use without this package's runs."""
