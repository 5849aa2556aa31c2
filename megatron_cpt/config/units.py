"""Numbers with units, as users type them, and the counts of sequences and tokens of every step.

`5B` tokens, `300M`, `2K`, `100 steps`, `3h50m` of wall time: annotated types for the fields of schema.py. A bool is
never a number, and YAML's `1e-3` (a string to PyYAML) is one.

`Batches` gives the sequences of each step and of all steps before it, in closed form and whole numbers, also where the
batch size ramps up. Nothing else in the package multiplies steps by a batch size.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

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


@dataclass(frozen=True)
class RampPiece:
    """Steps at the beginning of a run that are smaller than the later ones."""

    steps: int
    """How many."""
    size: int
    """Size of each, in the unit of the batches."""


Ramp = tuple[RampPiece, ...]


@dataclass(frozen=True)
class Batches:
    """The sizes of all steps, in sequences, or all in tokens."""

    size: int
    """Of every step after the ramp."""
    ramp: Ramp = ()
    """The smaller steps before, in order."""

    def total(self, steps: int) -> int:
        """The sum of the first `steps` steps."""
        taken = 0
        for piece in self.ramp:
            if steps <= piece.steps:
                return taken + steps * piece.size
            taken += piece.steps * piece.size
            steps -= piece.steps
        return taken + steps * self.size

    def of_step(self, step: int) -> int:
        """The size of a step, counted from 1."""
        return self.total(step) - self.total(step - 1)

    def whole_steps(self, amount: int) -> int:
        """Steps that an amount is enough for."""
        steps = 0
        for piece in self.ramp:
            if amount < piece.steps * piece.size:
                return steps + amount // piece.size
            amount -= piece.steps * piece.size
            steps += piece.steps
        return steps + amount // self.size

    def nearest_step(self, amount: int) -> int:
        """The step whose end is nearest to an amount, the later of two that are as near; 0: the beginning."""
        before = self.whole_steps(amount)
        size = self.of_step(before + 1)
        return before + (amount - self.total(before) + size // 2) // size

    def next_end(self, amount: int) -> int:
        """The total at the end of the step in which an amount of at least 1 is reached."""
        return self.total(self.whole_steps(amount - 1) + 1)

    def last_end(self, amount: int) -> int:
        """The total at the end of the last step that an amount is enough for."""
        return self.total(self.whole_steps(amount))

    def after(self, steps: int) -> "Batches":
        """The batches that are left after the first `steps`."""
        left = []
        for piece in self.ramp:
            if piece.steps > steps:
                left.append(replace(piece, steps=piece.steps - steps))
            steps = max(0, steps - piece.steps)
        return Batches(self.size, tuple(left))

    def times(self, factor: int) -> "Batches":
        """All sizes times `factor`: with the tokens of a sequence, batches in tokens from batches in sequences."""
        pieces = tuple(replace(piece, size=piece.size * factor) for piece in self.ramp)
        return Batches(self.size * factor, pieces)


def ramp_up(start: int, increment: int, tokens: int, size: int, sequence_length: int) -> Ramp:
    """The pieces from `start` by `increment` to below `size` sequences, evenly over `tokens`.

    A step has the size that is due at the sequences consumed before it, so a piece ends with the step that passes its
    bound: the batch sizes of Megatron-LM's `--rampup-batch-size START INCREMENT SAMPLES`. A piece that the step before
    it has passed whole is left out.
    """
    sizes = range(start, size, increment)
    pieces, taken = [], 0
    for number, piece_size in enumerate(sizes, start=1):
        bound = -(-number * tokens // (len(sizes) * sequence_length))
        steps = max(0, -(-(bound - taken) // piece_size))
        taken += steps * piece_size
        if steps:
            pieces.append(RampPiece(steps, piece_size))
    return tuple(pieces)


_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Two digits of exponent: `1e999999999` would otherwise be computed, exactly.
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)\s*([KMBT]?)\s*", re.IGNORECASE)
_WALL_TIME = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_OF_PEAK = re.compile(r"\s*([0-9.e+-]+\s*%?)\s+of\s+peak\s*")
_OF_SOURCE = re.compile(r"\s*([0-9.e+-]+)\s+of\s+([\w-]+)\s*")
_UNITS = {"step": "steps", "steps": "steps", "token": "tokens", "tokens": "tokens"}


LARGEST_COUNT = 10**18
"""Of tokens, steps, sequences: their sums are held in 64 bits."""


def nearest_multiples(number: int, factor: int) -> str:
    """The multiples of a factor on both sides of a number, in words."""
    below = number // factor * factor
    return f"{below} and {below + factor}" if below else f"{factor} and {2 * factor}"


def counted(number: int, noun: str) -> str:
    """A number of things in words: `1 run`, `2,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_count(count: float, zeros: bool = True) -> str:
    """Three significant digits and a suffix: `999`, `1.23K`, `5.00B`; without zeros at the end `5B`."""
    scaled, suffixes = float(count), ["", "K", "M", "B", "T"]
    while abs(scaled) >= 999.5 and len(suffixes) > 1:
        scaled, suffixes = scaled / 1000, suffixes[1:]
    if zeros or abs(scaled) >= 999.5:
        decimals = 2 - (abs(scaled) >= 9.995) - (abs(scaled) >= 99.95) if suffixes[0] else 0
        return f"{scaled:.{decimals}f}{suffixes[0]}"
    return f"{scaled:.3g}{suffixes[0]}"


def parse_count(value: Any) -> int:
    """An exact whole number from `5B`, `4.1B`, `1_000`, `2e9` or an int.

    Raises ValueError for a bool, a fraction of one, one beyond LARGEST_COUNT, or anything else.
    """
    return _bounded(_whole_number(value), value)


def _bounded(amount: int, value: Any) -> int:
    if amount > LARGEST_COUNT:
        raise ValueError(f"{value!r} is more than any run counts ({short_count(LARGEST_COUNT)}); lower it")
    return amount


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a count; write a whole number, or one with a suffix: 300M, 5B")
    text = repr(value) if isinstance(value, float) else str(value).replace("_", "")
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{value!r} is not a count; write a whole number, or one with a suffix: 300M, 5B")
    mantissa, _, exponent = match[1].lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    scale = _SUFFIXES[match[2].upper()] * 10 ** int(exponent or 0)
    amount, remainder = divmod(int(whole + fraction) * scale, 10 ** len(fraction))
    if remainder:
        raise ValueError(f"{value!r} is not a whole number; round it")
    return amount


def parse_number(value: Any) -> float:
    """A float from a number or from text such as `1e-3`. Raises ValueError for all else, a bool included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number; write one such as 0.1 or 1e-4")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a number; write one such as 0.1 or 1e-4") from None


def parse_share(value: Any) -> float:
    """A share of 0 to 1 from `0.5%` or `0.005`. Raises ValueError for anything else."""
    try:
        share = _number_or_percentage(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share; write a percentage such as 0.5%, or a number from 0 to 1")
    return share


def _number_or_percentage(value: Any) -> float:
    """0.05 from `5%` or 0.05. Raises ValueError as parse_number does."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        return parse_number(value.rstrip().removesuffix("%")) / 100
    return parse_number(value)


@dataclass(frozen=True)
class Duration:
    """A stretch of training, in tokens or, where the user says so, in steps."""

    amount: int
    unit: str = "tokens"

    def tokens(self, tokens_per_step: int) -> int:
        """The duration in tokens of the model's input."""
        return self.amount * tokens_per_step if self.unit == "steps" else self.amount

    def steps(self, tokens_per_step: int, ramp: Ramp = ()) -> int:
        """The duration in whole steps, at least one: the nearest step to the tokens asked for.

        Args:
            ramp: the smaller steps at the beginning of the run, in tokens, for a duration that begins with it. Without
                it all steps are of one size: a distance in tokens is as many steps wherever it lies.
        """
        if self.unit == "steps":
            return max(1, self.amount)
        return max(1, Batches(tokens_per_step, ramp).nearest_step(self.amount))

    def whole_steps(self, tokens_per_step: int, ramp: Ramp = ()) -> int:
        """Steps before a place in the run: the nearest, 0 for the beginning alone."""
        return self.steps(tokens_per_step, ramp) if self.amount else 0

    def __str__(self) -> str:
        return f"{self.amount} {self.unit}"


def parse_duration(value: Any) -> Duration:
    """A Duration from `50M` or `5B tokens` (tokens) or `100 steps`. Raises ValueError otherwise."""
    if isinstance(value, Duration):
        return value
    if isinstance(value, dict) and set(value) == {"amount", "unit"}:
        return parse_duration(f"{value['amount']} {value['unit']}")
    amount, unit = value, "tokens"
    if isinstance(value, str):
        before, _, word = value.strip().rpartition(" ")
        if word in _UNITS:
            amount, unit = before, _UNITS[word]
    try:
        number = _whole_number(amount)
    except ValueError:
        remedy = "write tokens, as 300M or 5B, or steps, as 100 steps"
        raise ValueError(f"{value!r} is not a duration; {remedy}") from None
    return Duration(_bounded(number, value), unit)


def wall_seconds(text: str) -> int:
    """Seconds of a wall time such as `3h50m`, `1d12h`, `90s`. Raises ValueError for anything else."""
    match = _WALL_TIME.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} is not a wall time; write days, hours, minutes, seconds, as 3h50m or 90s")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_wall_time(value: Any) -> str:
    """A wall time as it was typed. Raises ValueError for what is none, a number without a unit included.

    YAML reads `3:50` as the number 230, so a bare number may not be what was meant.
    """
    if wall_seconds(value if isinstance(value, str) else repr(value)) == 0:
        raise ValueError(f"{value!r} is no time at all; raise it, or take it out")
    return str(value)


def share_of_peak(text: str) -> float:
    """0.2 from `0.2 of peak`. Raises ValueError for anything else."""
    match = _OF_PEAK.fullmatch(text)
    if match is None or not 0 < (share := _number_or_percentage(match[1])) < 1:
        raise ValueError(f"{text!r} is no share of the peak learning rate; write one as 0.2 of peak or 20% of peak")
    return share


def epochs_of_source(text: str) -> tuple[float, str]:
    """(2.0, "law") from `2 of law`: passes and the name of a source. Raises ValueError for anything else."""
    match = _OF_SOURCE.fullmatch(text)
    if match is None or not 0 < (epochs := parse_number(match[1])) < math.inf:
        raise ValueError(f"{text!r} is no epoch of a source; write one as 2 of NAME")
    return epochs, match[2]


def _parse_share_of_peak(value: Any) -> str:
    share_of_peak(str(value))
    return str(value)


def _parse_epochs_of_source(value: Any) -> str:
    epochs_of_source(str(value))
    return str(value)


def _positive(duration: Duration) -> Duration:
    if duration.amount <= 0:
        raise ValueError("should be greater than 0; raise it")
    return duration


_SUFFIXED = r"^\s*[0-9][0-9_.]*(e\+?[0-9]{1,2})?\s*[KMBTkmbt]?\s*$"
_LENGTH = r"^\s*[0-9][0-9_.]*(e\+?[0-9]{1,2})?\s*[KMBTkmbt]?\s*(steps?|tokens?)?\s*$"
_DECIMAL = r"^\s*[+-]?[0-9.]+(e[+-]?[0-9]+)?\s*"


def _typed(number: dict[str, Any], pattern: str) -> WithJsonSchema:
    """What an editor is told of a value: a number, or text as users type it. The parsers above know more."""
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": pattern}]})


Count = Annotated[
    int, BeforeValidator(parse_count), Field(gt=0), _typed({"type": "integer", "exclusiveMinimum": 0}, _SUFFIXED)
]
CountOrZero = Annotated[
    int, BeforeValidator(parse_count), Field(ge=0), _typed({"type": "integer", "minimum": 0}, _SUFFIXED)
]
Positive = Annotated[
    float,
    BeforeValidator(parse_number),
    Field(gt=0, allow_inf_nan=False),
    _typed({"type": "number", "exclusiveMinimum": 0}, f"{_DECIMAL}$"),
]
NotNegative = Annotated[
    float,
    BeforeValidator(parse_number),
    Field(ge=0, allow_inf_nan=False),
    _typed({"type": "number", "minimum": 0}, f"{_DECIMAL}$"),
]
Share = Annotated[
    float,
    BeforeValidator(_number_or_percentage),
    Field(ge=0, le=1, allow_inf_nan=False),
    _typed({"type": "number", "minimum": 0, "maximum": 1}, f"{_DECIMAL}%?\\s*$"),
]
WallTime = Annotated[str, BeforeValidator(parse_wall_time)]
StepNumbers = Annotated[
    str,
    Field(coerce_numbers_to_str=True),
    _typed({"type": "integer", "exclusiveMinimum": 0}, r"^\d+(-\d+)?$"),
]
"""A step or steps from one to another: `10`, `10-12`."""
Span = Annotated[
    Duration,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    _typed({"type": "integer", "exclusiveMinimum": 0}, _LENGTH),
]
SpanOrZero = Annotated[Duration, BeforeValidator(parse_duration), _typed({"type": "integer", "minimum": 0}, _LENGTH)]
ShareOfPeak = Annotated[str, BeforeValidator(_parse_share_of_peak)]
EpochsOfSource = Annotated[str, BeforeValidator(_parse_epochs_of_source)]
