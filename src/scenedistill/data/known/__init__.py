"""Data sets that people know by name: what they hold, and how they are downloaded."""
