"""The steps at which a validation set or a task is evaluated. Step 0 is before the first update."""

import re
from dataclasses import dataclass

from megatron_cpt.config.schema import EvalIntervalSettings
from megatron_cpt.config.units import Duration, Ramp, parse_duration

LOG_MARKS_GRAMMAR = "`8 per decade to 1000 steps` or `8 per decade to 5M tokens`"
_LOG_MARKS = re.compile(r"\s*([1-9][0-9]*)\s+per\s+decade\s+to\s+(\S+\s+(?:steps?|tokens))\s*")


@dataclass(frozen=True)
class LogMarks:
    """Marks spaced evenly in the logarithm of the step, from the first update on."""

    per_decade: int
    """Marks from one power of ten to the next."""
    end: Duration
    """Where they stop (included)."""

    def steps(self, last: int, tokens_per_step: int, ramp: Ramp = ()) -> list[int]:
        """The marks up to their own end and to the step `last`; near the start several may be one step."""
        end = min(self.end.steps(tokens_per_step, ramp), last)
        marks: list[int] = []
        while (mark := round(10 ** (len(marks) / self.per_decade))) <= end:
            marks.append(mark)
        return marks


def parse_log_marks(text: str) -> LogMarks:
    """Reads `8 per decade to 1000 steps`. Raises ValueError for anything else."""
    match = _LOG_MARKS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form {LOG_MARKS_GRAMMAR}")
    end = parse_duration(match[2])
    if end.amount == 0:
        raise ValueError(f"{text!r} ends before the first update")
    return LogMarks(int(match[1]), end)


def subsampled(marks: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The first and the last mark, and a share of those between, spread evenly over their places in the list.

    Marks that are dense at the beginning stay so. share: 0 to 1.
    """
    if len(marks) < 3:
        return marks
    inner = marks[1:-1]
    kept = int(share * len(inner))
    places = [(2 * number + 1) * len(inner) // (2 * kept) for number in range(kept)]
    return (marks[0], *(inner[place] for place in places), marks[-1])


def mark_steps(marks: EvalIntervalSettings, total_steps: int, tokens_per_step: int, ramp: Ramp = ()) -> tuple[int, ...]:
    """The steps of all marks of a run of `total_steps`, sorted and each once.

    Marks given in tokens are at the nearest whole step; those beyond the end of the run are dropped.
    The distance `every` is in steps of `tokens_per_step`; `ramp` are the smaller steps, in tokens, before those.
    Raises ValueError for a `log` that cannot be read.
    """
    steps = {duration.steps(tokens_per_step, ramp) for duration in marks.at}
    if marks.start:
        steps.add(0)
    if marks.log_spaced is not None:
        steps.update(parse_log_marks(marks.log_spaced).steps(total_steps, tokens_per_step, ramp))
    if marks.every is not None:
        distance = marks.every.steps(tokens_per_step)
        steps.update(range(distance, total_steps + 1, distance))
    if marks.end:
        steps.add(total_steps)
    return tuple(sorted(step for step in steps if step <= total_steps))
