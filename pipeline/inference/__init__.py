"""The trained ensemble on new photos, for the tools: predictions, and how they are shown."""
