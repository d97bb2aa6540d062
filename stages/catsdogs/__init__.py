"""What the stages share: a file for each job."""

SPLITS = ("train", "validation", "test")
CLASSES = ("cat", "dog")  # a label is an index into this tuple
