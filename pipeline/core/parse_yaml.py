"""Parse YAML with libyaml, which is in PyYAML's wheels, and several times as fast as PyYAML's own parser."""

from typing import Any

import yaml

SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may have been built without libyaml


def parse_yaml(text: str | bytes) -> Any:
    """As yaml.safe_load. Raises yaml.YAMLError."""
    return yaml.load(text, SafeLoader)
