"""Images that have no labels, kept apart from those that test."""
