"""The errors that mean: a person can mend this, so show the message and no traceback."""


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, where, what was expected and what to do."""


class Damaged(UserError):
    """A file does not hold what was written to it."""
