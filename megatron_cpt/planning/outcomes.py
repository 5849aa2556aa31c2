"""What becomes of the arguments or keys of another program, and the run.yaml that they make: for every importer."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.planning.run_file import Entry, base_entries, distinct_names, log_spaced, source_name

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
    the base's history, where its name tells it, and evaluations that show the stability gap.

    Raises BadInput for a value that stands for another, such as `${HOME}/run`.
    """
    refuse([fault for entry in entries for fault in _stand_in(entry)])
    order = [field.name for field in fields(RunConfig)]
    ordered = sorted([*entries, *_added(entries)], key=lambda entry: order.index(entry.key.split(".")[0]))
    return Imported(tuple(_grouped(ordered)), tuple(outcomes))


def _stand_in(entry: Entry) -> Iterator[Fault]:
    """A fault of a value that another program would have replaced."""
    for value in entry.value if isinstance(entry.value, list) else [entry.value]:
        if isinstance(value, str) and ("$" in value or "`" in value):
            rule = "stands for a value that is not known here."
            yield Fault(f"{entry.key}: {value}", rule, "Give the value itself after `--`.")


def validation_role(name: str, path: str, sources: Mapping[str, str], replay: Collection[str]) -> str | None:
    """The role of a validation set by the source that it belongs to: the one whose name or path its own begin with.

    Args:
        sources: a path of each source, by its name.
        replay: names of the sources whose role is replay.
    Returns:
        `general` or `domain`; None where it belongs to none.
    """
    own = [
        source
        for source, prefix in sources.items()
        if _extends(name, source) or _extends(path, prefix) or _extends(source_name(path), source)
    ]
    if not own:
        return None
    return "general" if max(own, key=len) in replay else "domain"


def _extends(text: str, beginning: str) -> bool:
    return text == beginning or (text.startswith(beginning) and text[len(beginning)] in "._-/")


def replay_note(entries: Sequence[Entry]) -> str | None:
    """What to know of a run without replay; None for one that has some, or whose weights are random."""
    values = {entry.key: entry.value for entry in entries}
    if values.get("model.weights") == "random" or any(
        key.startswith("data.sources.") and key.endswith(".role") and value == "replay" for key, value in values.items()
    ):
        return None
    sources = [key.split(".")[2] for key in values if key.startswith("data.sources.") and key.endswith(".paths")]
    paths = [path for name in sources for path in values[f"data.sources.{name}.paths"]]
    if len(paths) < 2:
        return "there is no replay: what the model knew will fade. Add general text as another dataset."
    names = sources if len(sources) == len(paths) else distinct_names(map(source_name, paths))
    return (
        "no source has the role of replay: what the model knew may fade, and no general text shows it. `--replay NAME` "
        f"gives the role; the names are {', '.join(names)}."
    )


def _added(entries: Sequence[Entry]) -> Iterator[Entry]:
    written = {entry.key: entry.value for entry in entries}
    continues = any(key.startswith("init_from.") for key in written) or "schedule.consumed" in written
    if not continues:
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
