"""Parameters of tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick_among(values: Iterable[Any], quick: Collection[Any], ci: Collection[Any] = ()) -> list[Any]:
    """All values as parameters of a test; those that are not quick are marked ci, or else slow."""
    marks = {value: pytest.mark.ci if value in ci else pytest.mark.slow for value in values if value not in quick}
    return [pytest.param(value, marks=marks[value]) if value in marks else value for value in values]
