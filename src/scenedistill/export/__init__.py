"""A student as files that people can use, each checked."""
