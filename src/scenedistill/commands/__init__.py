"""The commands, a module each: `parser()` says what it takes, `command()` calls and prints."""
