"""Finished runs, for the tools: reading, comparing, ranking, rebuilding and recording them."""
