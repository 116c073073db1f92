"""The one exception that means: a person can mend this, so show the message and no traceback."""


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, where, what was expected and what to do."""
