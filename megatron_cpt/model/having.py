"""Megatron-Core's objects with other settings for as long as one call takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def having(owner: Any, **values: Any) -> Iterator[None]:
    """An object with other values of some attributes; afterwards as it was."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
