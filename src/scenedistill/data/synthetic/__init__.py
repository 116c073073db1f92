"""Generated scenes, for the quickstart and for tests."""
