"""Ask git what is checked out, and what has changed since."""

import shutil
import subprocess

from pipeline.core.errors import UserError, untrusted_by_git

DEEPEN = "`git fetch --unshallow origin '+refs/heads/*:refs/remotes/origin/*'`"


def is_shallow() -> bool:
    """Whether this is a clone without all commits, as of `git clone --depth 1`."""
    command = ["git", "rev-parse", "--is-shallow-repository"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() == "true"


def find_commit() -> str:
    """The checked-out commit, followed by `+` if tracked files have uncommitted changes; empty outside git.

    Raises UserError if git does not trust the repository.
    """
    if not shutil.which("git"):
        return ""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if "safe.directory" in done.stderr:  # it names this setting in every language
        raise UserError(untrusted_by_git())
    if done.returncode:
        return ""
    is_changed = changed_files("--untracked-files=no", "--", ".", ":!verify.json")
    return done.stdout.strip() + ("+" if is_changed else "")


def changed_files(*arguments: str) -> list[str]:
    """The files that `git status` lists; `arguments` say which to look at."""
    status = ["git", "status", "--porcelain", *arguments]
    return [line[3:] for line in subprocess.run(status, capture_output=True, text=True).stdout.splitlines()]
