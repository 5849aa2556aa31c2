"""The loss before the first update, beside transformers' own and that of guessing: faults of weights show here.

1. Before our model takes the memory, rank 0 computes with transformers the loss of the first sequences of the run,
   or reads what an earlier run recorded. The log says beforehand how long that will take. Where the model fits neither
   the memory of its GPU nor that of its machine, or a processor would take too long, nothing is compared, and the log
   says so.
2. Once it is assembled, the model that will be trained computes the same sequences on all ranks.
3. Beyond the tolerance the run is refused. Within it, both stand in RUN/initial_loss_check.json.
4. Weights that are damaged before either reads them have the same loss in both. One above ln(vocabulary) is worse than
   guessing: a warning, or a refusal. A run from another's checkpoint, which has no reference, is held to that alone.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import torch

from megatron_cpt.checkpoint.convert import room_for_reference, transformers_losses
from megatron_cpt.config.errors import BadInput, Fault, NumericsFault
from megatron_cpt.config.parallel_checks import sequence_parts
from megatron_cpt.config.schema import ModelSettings, RunConfig
from megatron_cpt.data.loader import windows
from megatron_cpt.evaluate.validation import ValidationSet, evaluate
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_config, read_shape
from megatron_cpt.families.size import flops_per_token, parameter_count
from megatron_cpt.model.build import DTYPES
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import all_agree, first_on_rank_zero
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.runs.checkpoint_state import complete_checkpoints
from megatron_cpt.runs.folder import RunFolder, read_json_object, write_checked_json
from megatron_cpt.runs.records import RunLog
from megatron_cpt.train.run import Run

SEQUENCES = 8
# A processor computes 8 sequences of 1,024 tokens of an 8B model in a few minutes; a fault shows within far fewer.
_LONGEST = 1024
# Nats per token of one sequence: rounding of another order of sums, and of bf16.
_TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2}


@dataclass(frozen=True)
class Reference:
    """The loss of the first sequences of a run as transformers computes it."""

    sequences: str
    """SHA-256 of their tokens."""
    model: str
    """Fingerprint of the Hugging Face folder, and of other positions if it has any (fingerprint)."""
    precision: str
    """fp32 or bf16."""
    losses: list[float]
    """Nats per token of each sequence."""

    def belongs_to(self, config: RunConfig, opening: npt.NDArray[np.int64]) -> bool:
        """Whether it is of these sequences and of the model and the precision of a run."""
        own = (hash_of(opening), fingerprint(config.model), config.training.precision)
        return own == (self.sequences, self.model, self.precision)


@dataclass(frozen=True)
class OpeningText:
    """The first sequences of a run, end to end: what `evaluate` reads."""

    tokens: npt.NDArray[np.int64]
    """[sequences * length]."""

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens start to start + length."""
        return self.tokens[start : start + length]


def is_needed(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run is still before its first update and starts from weights that were trained."""
    begun = bool(complete_checkpoints(folder.checkpoints))
    trained = config.model.weights == "hf" or config.init_from.checkpoint is not None
    return trained and config.model.initial_loss_check.enabled and not begun


def _first_windows(config: RunConfig, plan: RunPlan) -> npt.NDArray[np.int64]:
    """The first sequences of the run, cut to at most LONGEST tokens: int64 [sequences, tokens]."""
    first, last = plan.start.sequences, plan.blend.total_sequences
    place = plan.blend.order.locate(np.arange(first, min(first + SEQUENCES, last)))
    streams = [plan.inputs.sources[name] for name in plan.blend.sources]
    longest = _LONGEST - _LONGEST % sequence_parts(config.parallel)
    return windows(streams, place.source, place.sequence, config.data.sequence_length)[
        :, : min(longest, config.data.sequence_length)
    ]


@dataclass(frozen=True)
class NotCompared:
    """That there is no reference."""

    reason: str
    """Why, as a clause."""


def reference_losses_of(config: RunConfig, plan: RunPlan, folder: RunFolder) -> Reference | NotCompared | None:
    """What our loss is to be, on rank 0; None on the others and for a run from a checkpoint. Every rank calls it.

    Raises:
        BadInput: the recording that the config names is not of these sequences, this model and this precision.
    """
    if config.init_from.checkpoint is not None:
        return None
    with first_on_rank_zero():
        if groups.rank() != 0:
            return None
        named = config.model.initial_loss_check.reference_file
        found = _read_recording(Path(named) if named else folder.initial_loss_check)
        if found and found.belongs_to(config, _first_windows(config, plan)):
            return found
        if named:
            rule = "is not a recording of the first sequences, the model and the precision of this run."
            remedy = "Name the initial_loss_check.json of a run that begins as this one does, or take it out."
            raise BadInput(Fault(f"model.initial_loss_check.reference_file = {named}", rule, remedy))
        start = config.timeout.seconds().get("start", math.inf)
        log = RunLog(folder.log)
        return compute_reference(config, plan, lambda line: log.write(line, shown=True), start * _SHARE_OF_START)


def compute_reference(
    config: RunConfig, plan: RunPlan, tell: Callable[[str], None], limit: float = math.inf
) -> Reference | NotCompared:
    """What transformers says, in this process.

    Args:
        tell: gets a line that says how long it will take, where a processor computes it.
        limit: seconds that it may take.
    Raises:
        BadInput: as loading does.
    """
    hf_folder, dtype = Path(config.model.hf), DTYPES[config.training.precision]
    shape = read_shape(hf_folder, config.model.rope)
    device = room_for_reference(shape, dtype, groups.device())
    if device is None:
        return NotCompared("the model fits neither the memory of rank 0's GPU nor that of its machine")
    opening = _first_windows(config, plan)
    sequences, tokens = opening.shape[0], opening.shape[1] - 1
    with _all_cores() if device.type == "cpu" else nullcontext():
        if device.type == "cpu":
            seconds = sequences * _seconds_of_sequence(shape, tokens, dtype)
            how_long = f"about {_rounded(seconds)} on {torch.get_num_threads()} cores"
            if seconds > limit:
                return NotCompared(
                    f"transformers would take {how_long} of rank 0's machine, and half of `timeout.start` is "
                    f"{_rounded(limit)}"
                )
            tell(
                f"initial loss check: transformers computes {sequences} sequences of {tokens} tokens on rank 0: "
                f"{how_long}, after reading {parameter_count(shape) * dtype.itemsize / 1e9:,.1f} GB of weights"
            )
        losses = transformers_losses(hf_folder, torch.from_numpy(opening), dtype, device, config.model.rope)
    return Reference(hash_of(opening), fingerprint(config.model), config.training.precision, losses)


_SHARE_OF_START = 0.5
"""Part of `timeout.start` that the reference may take: reading weights and building the model need the rest."""
_PROBE = 1024
"""Rows and columns of the matrices that are multiplied to see how fast a processor is."""
_PASSES = 20
"""Passes of transformers' layers over the scores of attention, which it keeps whole, or over as many numbers."""


@contextmanager
def _all_cores() -> Iterator[None]:
    """Computes on all cores that this process may use: torchrun gives each rank one, and the others wait here."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds_of_sequence(shape: ModelShape, tokens: int, dtype: torch.dtype) -> float:
    """What transformers takes for a sequence on this processor, about: its products of matrices, and what is between.

    Both are tried: with units for bf16 a processor multiplies 20 times as fast, and adds no faster.
    """
    matrix, scores = torch.ones(_PROBE, _PROBE, dtype=dtype), torch.ones(shape.heads, tokens, tokens, dtype=dtype)
    product = _seconds_of(lambda: matrix @ matrix) / (2 * _PROBE**3)
    flops = tokens * flops_per_token(shape, tokens) / 3
    return flops * product + shape.layers * _PASSES * _seconds_of(lambda: scores * scores)


def _seconds_of(compute: Callable[[], object]) -> float:
    """The mean of a few calls, after one that is not counted."""
    compute()
    began = time.perf_counter()
    for _ in range(_CALLS):
        compute()
    return (time.perf_counter() - began) / _CALLS


_CALLS = 3


def _rounded(seconds: float) -> str:
    """A time for people."""
    return f"{max(seconds, 1):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def opening_losses(run: Run) -> list[float]:
    """Nats per token of each of the first sequences, by the assembled model. Every rank calls it and gets the same."""
    opening = _first_windows(run.config, run.plan)
    ours = evaluate(run.model, [_opening_set(opening)], run.config.training.micro_batch_size)[0]
    return [float(loss) for loss in ours.sequence_nats / ours.scored_tokens]


def check_guessing(run: Run, losses: Sequence[float]) -> str | None:
    """A warning where the model is worse than guessing. Every rank calls it with the same losses.

    Raises:
        NumericsFault: it is, and the config says to refuse it.
    """
    mean, vocabulary = float(np.mean(losses)), run.shape.vocabulary
    if mean <= math.log(vocabulary):  # False for a NaN, too
        return None
    line = (
        f"before the first update the loss of {len(losses)} sequences is {mean:.4f} nats per token, above ln("
        f"{vocabulary}) = {math.log(vocabulary):.4f}: worse than guessing. The weights are damaged or were never "
        "trained, or the text was made by another tokenizer than theirs"
    )
    if run.config.model.initial_loss_check.worse_than_guessing == "refuse":
        raise NumericsFault(f"{line} (model.initial_loss_check.worse_than_guessing = refuse).")
    return line


def compare_initial_loss(run: Run, reference: Reference | NotCompared | None, losses: list[float]) -> str:
    """Compares the assembled model with the reference; returns a line for the log. Every rank calls it.

    Args:
        losses: those of the model (opening_losses).

    Raises:
        NumericsFault: a sequence's loss differs by more than the tolerance.
    """
    if groups.rank() == 0:
        run.folder.initial_loss_check.unlink(missing_ok=True)  # another attempt's, until this one has passed
    if not all_agree(not isinstance(reference, NotCompared)):
        why = reference.reason if isinstance(reference, NotCompared) else "rank 0 says why"
        return (
            f"initial loss check: NOT MADE: {why}; record it elsewhere (megatron-cpt convert record-reference) and "
            "name it in model.initial_loss_check.reference_file"
        )
    line, fine = "", True
    if isinstance(reference, Reference):
        settings, precision = run.config.model.initial_loss_check, run.config.training.precision
        tolerance = settings.tolerance or _TOLERANCES[precision]
        worst = max(abs(a - b) for a, b in zip(losses, reference.losses, strict=True))
        fine = worst <= tolerance  # False for a NaN, too
        line = (
            f"initial loss check: {len(losses)} sequences, loss {np.mean(losses):.5f}, transformers' "
            f"{np.mean(reference.losses):.5f}; largest difference of one {worst:.2g} (tolerance {tolerance:g})"
        )
        if fine:
            write_checked_json(
                run.folder.initial_loss_check, asdict(reference) | {"ours": losses, "tolerance": tolerance}
            )
    if not all_agree(fine):
        raise NumericsFault(
            f"{line}: before the first update this is not the model that transformers reads from "
            f"{run.config.model.hf}. Compare them with `megatron-cpt convert verify`."
        )
    return line


def _opening_set(opening: npt.NDArray[np.int64]) -> ValidationSet:
    """The first sequences as a set to evaluate; the last token of each has no label."""
    count, length = opening.shape
    labels = np.full(count, length - 1)
    return ValidationSet("initial loss check", "domain", OpeningText(opening.ravel()), length, labels, labels, None, "")


def _read_recording(path: Path) -> Reference | None:
    """A recording, or None where there is none. Raises IntegrityFault where it is not what was written."""
    try:
        values = read_json_object(path)
        if values is None:
            return None
        names = ("sequences", "model", "precision", "losses")
        return Reference(**{name: values[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def hash_of(opening: npt.NDArray[np.int64]) -> str:
    """SHA-256 of the tokens of the first sequences."""
    return hashlib.sha256(opening.tobytes()).hexdigest()


def fingerprint(model: ModelSettings) -> str:
    """Hash of config.json and of samples of the weights: size, and 64 KiB at both ends and the middle of each file.

    All bytes of a large model take minutes to read, which a check before every run should not take.
    """
    hf_folder = Path(model.hf)
    digest = hashlib.sha256((hf_folder / "config.json").read_bytes())
    if model.rope is not None:
        digest.update(orjson.dumps(read_config(hf_folder, model.rope), option=orjson.OPT_SORT_KEYS))
    for path in sorted(hf_folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(size - 65_536, 0)):
                file.seek(start)
                digest.update(file.read(65_536))
    return digest.hexdigest()
