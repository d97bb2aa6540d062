"""The error that a user can fix."""


class UserError(Exception):
    """Its text is the one line that the user sees: the thing, what was expected, what to do."""
