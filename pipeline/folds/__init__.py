"""Cross-validation: every photo of train and validation is predicted by models that never saw it."""
