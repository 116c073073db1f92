"""Commands of the CLI, one module each: `parser()` defines the options, `command()` runs and prints."""
