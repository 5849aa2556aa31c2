"""Which steps `run.profile` means."""

import re

_STEPS = re.compile(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?")


def profiled_steps(text: str) -> range:
    """The steps of `10` or `10-12`, both ends in. Raises ValueError for anything else.

    >>> list(profiled_steps("10-12"))
    [10, 11, 12]
    """
    match = _STEPS.fullmatch(text)
    steps = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not steps:
        raise ValueError("it names no steps")
    return steps
