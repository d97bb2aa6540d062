"""What all other packages use: params, errors, files, paths, the command line and the process."""

# Imported first: it explains missing packages, and finds the parent DVC process before it can exit.
from pipeline.core import process  # noqa: F401

SPLITS = ("train", "validation", "test")
WORKSPACE = "workspace"  # DVC's name for the files as they are
