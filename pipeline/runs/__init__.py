"""Finished runs, for the tools: reading, comparing, ranking and rebuilding them."""
