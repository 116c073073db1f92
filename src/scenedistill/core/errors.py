"""Errors that the user can fix: the message is shown without a traceback."""


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, where, what was expected and what to do.

    Args:
        *args: the message.
        advice: a further sentence on what to do at the command line; `found` omits it.
    """

    def __init__(self, *args: object, advice: str = "") -> None:
        super().__init__(*args)
        self.advice = advice

    def __str__(self) -> str:
        return f"{super().__str__()} {self.advice}".rstrip()

    @property
    def found(self) -> str:
        """The message without the advice."""
        return str(self).removesuffix(self.advice).rstrip()


class Damaged(UserError):
    """A file does not hold what was written to it."""
