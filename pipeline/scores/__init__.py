"""Score and combine predictions."""
