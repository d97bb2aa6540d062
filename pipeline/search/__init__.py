"""Searching for better params: trials as DVC experiments, proposed by Optuna."""
