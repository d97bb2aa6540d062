"""The sections of params.yaml, each in a file of its own, because a stage depends on those that it reads."""
