"""Parameters of tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick_among(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All values as parameters of a test; those that are not among the quick ones are marked slow."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
