"""Command-line parsing: `--help` prints the script's docstring, and a mistake is a one-line error."""

import argparse
from typing import NoReturn

from pipeline.core.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with a script's docstring as its description; errors are raised as UserError."""

    def __init__(self, docstring: str | None) -> None:
        super().__init__(
            description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def read_arguments(docstring: str | None) -> argparse.Namespace:
    """Parse the arguments of a script that takes only --help. Raises UserError if there are any others."""
    return ArgumentParser(docstring).parse_args()
