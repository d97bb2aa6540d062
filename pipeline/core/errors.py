"""The exception for problems that the user can fix, and how to quote other exceptions in it."""


class UserError(Exception):
    """Each argument is one line shown to the user: what is wrong, what was expected, what to do."""


def first_line(error: Exception) -> str:
    """The first line of the error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
