"""Code shared by the stages and tools; CONTRIBUTING.md says which part may import which."""
