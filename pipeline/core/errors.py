"""The exception for problems that the user can fix, and what its messages quote."""

from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Each argument is one line shown to the user: what is wrong, what was expected, what to do."""


def untrusted_by_git() -> str:
    """What to do if git refuses to read the project's repository."""
    return (
        "git does not trust this project, because another user owns its folder; if you trust it, run `git config "
        f"--global --add safe.directory {Path.cwd()}`"
    )


def first_line(error: Exception) -> str:
    """The first line of the error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def list_some(names: Iterable[str], most: int = 5) -> str:
    """`daisy, roses, tulips, ... (102 in all)`, for messages."""
    names = list(names)
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 2])}, ... ({len(names)} in all)"
