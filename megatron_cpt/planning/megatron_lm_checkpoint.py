"""What a torch_dist checkpoint of Megatron-LM tells beside its tensors: arguments, and how far the run had come.

All of it is in common.pt, a pickle. It is read without torch, and nothing that it names is looked up or called.
"""

import argparse
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.megatron_lm_arguments import Argument, Given, table


@dataclass(frozen=True)
class Progress:
    """How far a run had come when it wrote a checkpoint."""

    iteration: int
    """Steps done."""
    samples: int
    """Samples read by them (`consumed_train_samples`)."""
    scheduler: Mapping[str, float] = field(default_factory=dict)
    """Numbers of its OptimizerParamScheduler's state, lengths in samples; empty where it was not saved."""

    @property
    def scheduled(self) -> int:
        """Samples that the schedule has counted: none of steps without an update."""
        return int(self.scheduler.get("num_steps", self.samples))


@dataclass(frozen=True)
class MegatronCheckpoint:
    """What common.pt holds of use."""

    arguments: tuple[Given, ...]
    """The arguments of the run, where they are not the defaults."""
    progress: Progress | None
    """None: it does not say."""


class _Stand:
    """Stands for any object that is not a plain value: it keeps what the pickle gives it and does nothing."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.given = (state,)


class _StandUnpickler(pickle.Unpickler):
    """Reads plain values. No class or function that a pickle names is ever looked up; `_Stand` is taken for each."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        return type(name, (_Stand,), {"module": module})

    def persistent_load(self, pid: Any) -> Any:
        return None


def iteration_folder(folder: Path) -> Path:
    """The folder of an iteration: this one, or the newest that Megatron-LM's tracker names."""
    tracker = folder / "latest_checkpointed_iteration.txt"
    if (folder / "common.pt").is_file() or not tracker.is_file():
        return folder
    word = tracker.read_text().strip()
    return folder / (f"iter_{int(word):07}" if word.isdecimal() else word)


def read_checkpoint(shards: Path) -> MegatronCheckpoint:
    """Reads the common state of a torch_dist checkpoint.

    Args:
        shards: the folder that holds common.pt (iter_0000100).
    Raises:
        BadInput: there is none, or no `args` in it.
    """
    path = shards / "common.pt"
    try:
        with zipfile.ZipFile(path) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            state = _StandUnpickler(io.BytesIO(archive.read(name))).load()
    except (OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, TypeError) as error:
        rule = f"its common state cannot be read: {error}."
        raise BadInput(Fault(str(path), rule, "Name a torch_dist checkpoint, such as iter_0000100.")) from error
    arguments = state.get("args") if isinstance(state, dict) else None
    if not isinstance(arguments, argparse.Namespace):
        raise BadInput(Fault(str(path), "holds no `args`.", "Give the argument list of the run instead."))
    stored = vars(arguments)
    given = (_given(argument, stored) for argument in table())
    return MegatronCheckpoint(tuple(one for one in given if one is not None), _progress(state, stored))


def _given(argument: Argument, stored: Mapping[str, Any]) -> Given | None:
    """What a checkpoint's `args` give an argument; None for its default, and for what is no plain value."""
    value = stored.get(argument.dest)
    if argument.values == "-":
        given = isinstance(value, bool) and value is not (argument.default == "true")
        return Given(argument.flag, (), argument) if given else None
    values = list(value) if isinstance(value, list | tuple) else [value]
    if None in values or not all(type(one) in (int, float, str) for one in values):
        return None
    words = tuple(map(str, values))
    return None if words == tuple(argument.default.split()) or not words else Given(argument.flag, words, argument)


def _progress(state: Mapping[str, Any], stored: Mapping[str, Any]) -> Progress | None:
    """How far the run had come; None where iteration or samples are missing."""
    iteration, samples, scheduler = state.get("iteration"), stored.get("consumed_train_samples"), {}
    if type(iteration) is not int or type(samples) is not int:
        return None
    if isinstance(found := state.get("opt_param_scheduler"), dict):
        scheduler = {name: value for name, value in found.items() if type(value) in (int, float)}
    return Progress(iteration, samples, scheduler)
