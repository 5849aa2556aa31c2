"""What becomes of the arguments or keys of another program, and the run.yaml that they make: for every importer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.planning.run_file import Entry, base_entries, log_spaced

Result = Literal["taken", "equal", "refused", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """What became of an argument or a key."""

    text: str
    """As it was given; with `(default)` where the other program's default is meant."""
    result: Result
    """`taken`: a key has its value. `equal`: nothing of it changes what is trained. `refused`: it changes what is
    trained, and the run.yaml does not have it. `unknown`: the program's table does not have it."""
    words: str
    """The key and its value, or why, and what to do."""


@dataclass(frozen=True)
class Imported:
    """A run.yaml's content, and what became of each argument or key."""

    entries: tuple[Entry, ...]
    outcomes: tuple[Outcome, ...]


HOLD_OUT = "`megatron-cpt prepare --holdout` holds documents out"


@dataclass(frozen=True)
class ImportOptions:
    """What arguments and configurations of other programs do not say."""

    model: str | None = None
    """Hugging Face folder. None: the one that is named in what is imported, where there is one."""
    folder: str | None = None
    """Run folder. None: that of the other program, with `-cpt`."""
    replay: Sequence[str] = ()
    """Datasets whose role is replay: prefixes, or names of sources."""
    ranks: int | None = None
    """Ranks of the run, for a global batch size that is not given as one."""
    assumed: Mapping[str, int] = field(default_factory=dict)
    """Tokens of datasets that are not on this machine, by the names of their sources: for lengths in epochs."""


def imported(entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> Imported:
    """The entries in the order of the schema's sections, with what became of everything, and what no other program has:
    the base's history, where its name tells it, and evaluations that show the stability gap."""
    order = [field.name for field in fields(RunConfig)]
    ordered = sorted([*entries, *_added(entries)], key=lambda entry: order.index(entry.key.split(".")[0]))
    return Imported(tuple(_grouped(ordered)), tuple(outcomes))


def _added(entries: Sequence[Entry]) -> Iterator[Entry]:
    written = {entry.key: entry.value for entry in entries}
    if not any(key.startswith("init_from.") for key in written):
        yield from base_entries(str(written["model.hf"]))
    if any(key.startswith("validation.sets.") for key in written):
        yield log_spaced()


def _grouped(entries: Sequence[Entry]) -> list[Entry]:
    """Entries so that those of each section come one after another, sections in their first one's place."""
    places: dict[tuple[str, ...], int] = {}
    for entry in entries:
        parts = tuple(entry.key.split("."))
        for depth in range(1, len(parts) + 1):
            places.setdefault(parts[:depth], len(places))
    return sorted(
        entries,
        key=lambda entry: [places[tuple(entry.key.split(".")[:depth])] for depth in range(1, entry.key.count(".") + 2)],
    )


def short(value: Any) -> str:
    """A value in a line of the table."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(outcomes: Sequence[Outcome]) -> Mapping[Result, int]:
    """How many were taken, are equal, refused and unknown."""
    found: dict[Result, int] = {"taken": 0, "equal": 0, "refused": 0, "unknown": 0}
    for outcome in outcomes:
        found[outcome.result] += 1
    return found
