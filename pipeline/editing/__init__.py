"""Changing params.yaml and dvc.yaml, for the tools: their values, recipes and networks."""
