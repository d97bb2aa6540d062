"""How a stage ends when something is wrong that its user can mend."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Its text is the one line that the user sees: the thing, what was expected, what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Call `main()`; turn a UserError or OSError into one line on stderr and status 1, Ctrl-C into status 130."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # no permission, no space left, a file where a folder should be
        sys.exit(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("error: out of memory")
    except KeyboardInterrupt:
        sys.exit(130)
