"""What two configurations of one run say differently, and which of it a run may change when it goes on.

A setting changed at a resume counts from the next step on, and is told. Those that can no longer count, and those that
change what a loss means, are not changed in silence.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from megatron_cpt.config.load import plain
from megatron_cpt.config.schema import RunConfig

# How a run is computed and what is kept of it, not what is computed: a finished run may be started again with others.
NOT_THE_RESULT = (
    *("run.log_interval", "run.profile", "run.peak_flops", "run.wandb", "run.allow_loss_changes"),
    *("parallel", "checkpoint", "stop", "model.initial_loss_check", "training.micro_batch_size", "training.recompute"),
    *("validation.micro_batch_size", "tasks.micro_batch_size", "data.sources.*.paths", "validation.sets.*.paths"),
)
# Done with once the first step is made.
OF_THE_BEGINNING = ("init_from", "model.weights", "optimizer.moment_warmup_steps")
# Which labels count and what they are told by: another loss by the same name. That of training text has no identity
# of its own that would show it, as a validation set has.
LOSS_MEANING = ("data.attention", "data.loss_mask", "data.sources.*.prompt_length_column")


@dataclass(frozen=True)
class SettingChange:
    """A setting that was changed between two starts of a run."""

    key: str
    """Its name, such as `schedule.peak_lr`."""
    before: Any
    """Its value at the start before; None too where it was not there."""
    now: Any
    """Its value now; None too where it is not there."""

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} before, {_shown(self.now)} now"


def setting_changes(before: RunConfig, now: RunConfig) -> list[SettingChange]:
    """Every setting in which two configurations differ, in the order of the sections; a folder may be moved."""
    return [change for change in _changes(plain(before), plain(now), "") if change.key != "run.folder"]


def within(changes: Iterable[SettingChange], keys: Iterable[str]) -> list[SettingChange]:
    """The changes of some settings, each named by its key or by its section's; `*` stands for any name."""
    patterns = [pattern for key in keys for pattern in (key, f"{key}.*")]
    return [change for change in changes if any(fnmatchcase(change.key, pattern) for pattern in patterns)]


def _changes(before: Any, now: Any, key: str) -> Iterator[SettingChange]:
    if _is_section(before) and _is_section(now):
        old, new = _entries(before), _entries(now)
        for name in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield SettingChange(key, before, now)


def _is_section(value: Any) -> bool:
    """Whether parts of a value have names or numbers of their own: sections, and lists of sections."""
    return isinstance(value, Mapping) or (isinstance(value, list) and all(isinstance(one, Mapping) for one in value))


def _entries(value: Mapping[str, Any] | list[Any]) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {str(place): one for place, one in enumerate(value)}


def _shown(value: Any) -> str:
    """A value on one line, as YAML has it, without what is not set in it."""
    if isinstance(value, Mapping):
        said = [f"{name}: {_shown(one)}" for name, one in value.items() if one not in (None, {}, [])]
        return "{" + ", ".join(said) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else str(value)
