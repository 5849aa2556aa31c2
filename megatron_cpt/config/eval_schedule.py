"""The steps at which a validation set or a task is evaluated. Step 0 is before the first update."""

import re
from dataclasses import dataclass

from megatron_cpt.config.schema import EvalIntervalSettings
from megatron_cpt.config.units import Duration, Ramp, parse_duration

LOG_SPACED_GRAMMAR = "`8 per decade to 1000 steps` or `8 per decade to 5M tokens`"
_LOG_SPACED = re.compile(r"\s*([1-9][0-9]*)\s+per\s+decade\s+to\s+(\S+\s+(?:steps?|tokens))\s*")


@dataclass(frozen=True)
class LogSpaced:
    """Evaluations spaced evenly in the logarithm of the step, from the first update on."""

    per_decade: int
    """Evaluations from one power of ten to the next."""
    end: Duration
    """Where they stop (included)."""

    def steps(self, last: int, tokens_per_step: int, ramp: Ramp = ()) -> list[int]:
        """The steps up to their own end and to the step `last`; near the start several may be the same."""
        end = min(self.end.steps(tokens_per_step, ramp), last)
        steps: list[int] = []
        while (step := round(10 ** (len(steps) / self.per_decade))) <= end:
            steps.append(step)
        return steps


def parse_log_spaced(text: str) -> LogSpaced:
    """Reads `8 per decade to 1000 steps`. Raises ValueError for anything else."""
    match = _LOG_SPACED.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form {LOG_SPACED_GRAMMAR}")
    end = parse_duration(match[2])
    if end.amount == 0:
        raise ValueError(f"{text!r} ends before the first update")
    return LogSpaced(int(match[1]), end)


def subsampled(steps: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The first and the last step, and a share of those between, spread evenly over their places in the list.

    Steps that are dense at the beginning stay so. share: 0 to 1.
    """
    if len(steps) < 3:
        return steps
    inner = steps[1:-1]
    kept = int(share * len(inner))
    places = [(2 * number + 1) * len(inner) // (2 * kept) for number in range(kept)]
    return (steps[0], *(inner[place] for place in places), steps[-1])


def evaluation_steps(
    interval: EvalIntervalSettings, total_steps: int, tokens_per_step: int, ramp: Ramp = ()
) -> tuple[int, ...]:
    """The steps of all evaluations of a run of `total_steps`, sorted and each once.

    Those given in tokens are at the nearest whole step; those beyond the end of the run are dropped.
    The distance `every` is in steps of `tokens_per_step`; `ramp` are the smaller steps, in tokens, before those.
    Raises ValueError for a `log_spaced` that cannot be read.
    """
    steps = {duration.steps(tokens_per_step, ramp) for duration in interval.at}
    if interval.start:
        steps.add(0)
    if interval.log_spaced is not None:
        steps.update(parse_log_spaced(interval.log_spaced).steps(total_steps, tokens_per_step, ramp))
    if interval.every is not None:
        distance = interval.every.steps(tokens_per_step)
        steps.update(range(distance, total_steps + 1, distance))
    if interval.end:
        steps.add(total_steps)
    return tuple(sorted(step for step in steps if step <= total_steps))
