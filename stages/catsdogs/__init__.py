"""What the stages share: a file for each job."""

CLASSES = ("cat", "dog")  # a label is an index into this tuple
