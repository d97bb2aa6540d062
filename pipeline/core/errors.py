"""The exception for problems that the user can fix."""


class UserError(Exception):
    """Each argument is one line shown to the user: what is wrong, what was expected, what to do."""
