"""The sections of params.yaml, one per module, so that a stage depends only on those that it reads."""
