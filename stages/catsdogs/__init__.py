"""What the stages share; a file for each job."""

from catsdogs import process  # noqa: F401  first of all: it explains a Python that lacks a package, and finds DVC early

CLASSES = ("cat", "dog")  # a label is a position in here: cat is 0, dog is 1
SPLITS = ("train", "validation", "test")
