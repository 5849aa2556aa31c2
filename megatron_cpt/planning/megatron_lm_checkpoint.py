"""What a torch_dist checkpoint of Megatron-LM tells beside its tensors: arguments, and how far the run had come.

All of it is in common.pt, a pickle. It is read without torch, and nothing that it names is looked up or called.
"""

import argparse
import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.megatron_lm_arguments import Argument, Given, table
from megatron_cpt.runs.checkpoint_state import KEPT, CheckpointState, Layout


@dataclass(frozen=True)
class Progress:
    """How far a run had come when it wrote a checkpoint."""

    iteration: int
    """Steps done."""
    samples: int
    """Samples read by them (`consumed_train_samples`)."""
    scheduler: Mapping[str, float] = field(default_factory=dict)
    """Numbers of its OptimizerParamScheduler's state, lengths in samples; empty where it was not saved."""

    updates: int | None = None
    """Updates that Adam counts. None: not known."""

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
    ranks: int | None = None
    """That wrote it. None: it does not say."""


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
    ranks = stored.get("world_size")
    return MegatronCheckpoint(
        tuple(one for one in given if one is not None),
        _progress(state, stored),
        ranks if type(ranks) is int and ranks > 0 else None,
    )


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
    counts = set(_steps(state.get("optimizer")))
    if not counts and scheduler.get("num_steps") == samples:  # torch's Adam outside of the distributed optimizer
        counts = {iteration}  # none of its steps was without an update
    return Progress(iteration, samples, scheduler, counts.pop() if len(counts) == 1 else None)


def _steps(optimizer: Any) -> Iterator[int]:
    """The updates that parameter groups count, anywhere in the state of one optimizer or of several."""
    for name, value in optimizer.items() if isinstance(optimizer, dict) else ():
        if name == "param_groups" and isinstance(value, list):
            steps: list[Any] = [group.get("step") for group in value if isinstance(group, dict)]
            yield from (int(step) for step in steps if type(step) in (int, float))
        else:
            yield from _steps(value)


def checkpoint_state(checkpoint: MegatronCheckpoint, shown: str) -> CheckpointState:
    """What position.json says of a checkpoint that is made of one of Megatron-LM's.

    Args:
        shown: the checkpoint, in messages.
    Raises:
        BadInput: it does not tell how far the run had come.
    """
    progress = checkpoint.progress
    values = {each.argument.flag: each.values for each in checkpoint.arguments if each.argument}
    if progress is None or "--seq-length" not in values:
        rule = "its common.pt does not tell how far the run had come."
        raise BadInput(Fault(shown, rule, "Convert its weights alone, with `convert to-hf`."))

    def number(flag: str) -> int:
        return int(values.get(flag, ("1",))[0])

    length = number("--seq-length")
    return CheckpointState(
        step=progress.iteration,
        tokens=progress.samples * length,
        sequences=progress.samples,
        order={"sequence_length": length, "seed": number("--seed"), "sources": {}, "phases": []},
        order_fingerprint="",
        source_sequences={},
        layout=Layout(
            world=1,
            tensor=number("--tensor-model-parallel-size"),
            pipeline=number("--pipeline-model-parallel-size"),
            distributed_optimizer=True,
        ),
        sharding=KEPT,
        updates=progress.updates,
    )
