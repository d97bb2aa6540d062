"""From an archive or folder of photos to packed splits."""
