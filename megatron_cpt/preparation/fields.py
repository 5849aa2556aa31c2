"""Fields of documents: nested keys."""

from collections.abc import Mapping
from typing import Any


def key_parts(key: str) -> list[str]:
    """The keys of the objects on the way to a nested one: `metadata.score` to `metadata`, `score`."""
    return key.split(".")


def field_of(document: Mapping[str, Any], key: str, missing: Any = None) -> Any:
    """What stands under a key, which may be nested: `metadata.score`; `missing` where there is no such key.

    A key that is there as it is written, points included, wins over a nested one.
    """
    if key in document or "." not in key:
        return document.get(key, missing)
    value: Any = document
    for part in key_parts(key):
        if not isinstance(value, Mapping) or part not in value:
            return missing
        value = value[part]
    return value
