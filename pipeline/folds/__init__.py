"""Cross-validation: every photo of train and validation is predicted by models that never saw it."""

LEAST_FOLDS = 3  # one is held out, one chooses, and one trains
