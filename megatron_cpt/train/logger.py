"""What a run reports while it trains: records, trackers, the log. Rank 0 writes."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Literal

import torch

from megatron_cpt.config.units import Duration
from megatron_cpt.families.size import flops_per_token, palm_flops_per_token
from megatron_cpt.gap.figures import RunningGap
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import first_on_rank_zero
from megatron_cpt.planning.cards import card_of_device
from megatron_cpt.runs.checkpoint_state import newest_checkpoint, read_state, step_of
from megatron_cpt.runs.folder import Status, write_status
from megatron_cpt.runs.records import (
    Record,
    RecordsDigest,
    RecordWriter,
    RemainingTime,
    RunLog,
    drop_records_after,
    progress_bar,
    progress_line,
    read_records,
    verify_records,
)
from megatron_cpt.train.optimizer import StepOutcome
from megatron_cpt.train.run import Run
from megatron_cpt.train.trackers import Trackers

_MEGATRON_LM_TAGS = {
    "lm loss": "loss",
    "learning-rate": "learning_rate",
    "grad-norm": "grad_norm",
    "iteration-time": "seconds",
    "mem-max-allocated-bytes": "memory_bytes",
}
"""Tags that mean the same in Megatron-LM's TensorBoard folders, so that curves overlay, by field of a record."""


class RunLogger:
    """Writes what happened, on rank 0; on the other ranks its methods do nothing."""

    def __init__(self, run: Run) -> None:
        """Opens the files of the run folder, dropping what a killed run wrote after the step it resumes from."""
        self._run = run
        self._writes = groups.rank() == 0
        self._done = False
        self._flops_per_token = flops_per_token(run.shape, run.config.data.sequence_length)
        self._peak = run.config.run.peak_flops or peak_flops()
        with first_on_rank_zero():
            if self._writes:
                self._open(run)

    def _open(self, run: Run) -> None:
        """Opens the files. Raises IntegrityFault where the records are not those that the checkpoint knows."""
        self._gap = RunningGap()
        newest = newest_checkpoint(run.folder.checkpoints)
        resumed = run.first_step > run.start_state.first_own_step
        if resumed and newest is not None:
            if (known := read_state(newest).records) is not None:
                verify_records(run.folder.records, known, newest)
            drop_records_after(run.folder.records, run.first_step)
            for record in read_records(run.folder.records) if run.folder.records.exists() else ():
                if record["kind"] == "validation":
                    self._gap.add(record)
        else:
            run.folder.records.unlink(missing_ok=True)
        self._records = RecordWriter(run.folder.records)
        self._log = RunLog(run.folder.log)
        self._trackers = Trackers(
            run.config, run.folder, run.first_step, resumed, lambda line: self._log.write(line, logging.WARNING)
        )
        self._remaining = RemainingTime()
        self._bar = progress_bar(run.plan.steps, "step", initial=run.first_step)

    def log_train_step(self, step: int, rate: float, outcome: StepOutcome, seconds: float) -> None:
        """Records one update."""
        if not self._writes:
            return
        run, config = self._run, self._run.config
        sequences, tokens = config.sequences_at(step), config.tokens_at(step)
        per_second = (tokens - config.tokens_at(step - 1)) / seconds
        record: dict[str, Any] = {
            "kind": "train",
            "step": step,
            "tokens": tokens,
            "sequences": sequences,
            "learning_rate": rate,
            "loss": outcome.loss,
            "grad_norm": outcome.gradient_norm,
            "source_losses": source_losses(run.plan.blend.sources, outcome),
            "source_scored_tokens": dict(zip(run.plan.blend.sources, map(int, outcome.tokens.tolist()), strict=True)),
            "source_tokens": {
                name: count * config.data.sequence_length
                for name, count in run.plan.blend.source_sequences(sequences).items()
            },
            "source_epochs": run.plan.blend.source_epochs(sequences),
            "seconds": seconds,
            "tokens_per_second": per_second,
            "mfu": self._flops_per_token * per_second / (self._peak * groups.world_size()) if self._peak else None,
            "memory_bytes": _peak_memory(),
        }
        scalars = {tag: record[name] for tag, name in _MEGATRON_LM_TAGS.items()}
        scalars["batch-size"] = sequences - config.sequences_at(step - 1)
        scalars |= {f"train/{name}": record[name] for name in ("tokens_per_second", "mfu")}
        scalars |= {f"loss/source/{source}": loss for source, loss in record["source_losses"].items()}
        for source, read in record["source_tokens"].items():
            scalars[f"tokens/source/{source}"] = read
            scalars[f"epochs/source/{source}"] = record["source_epochs"][source]
        self.record(record, scalars)
        self._bar.set_postfix_str(f"loss {outcome.loss:.3f}, lr {rate:.2e}, {per_second:,.0f} tokens/s", refresh=False)
        self._remaining.add("tokens", tokens - config.tokens_at(step - 1), seconds)
        if step % config.run.log_interval.steps(config.tokens_per_step) == 0 or step == run.plan.steps:
            seconds_left = self._remaining.seconds(_work_left(run, step))
            self._log.write(progress_line(record, run.plan.steps, run.plan.tokens, seconds_left))
            self.sync()

    def took(self, kind: Literal["evaluations", "saves", "exports"], amount: float, seconds: float) -> None:
        """Takes note of the time that training waited for something else, for the time that is left."""
        if self._writes:
            self._remaining.add(kind, amount, seconds)

    def record(
        self, record: Record, scalars: Mapping[str, float | None] | None = None, line: str | None = None
    ) -> None:
        """Appends a record, shows scalars of its step (None: not measured), and logs a line."""
        if not self._writes:
            return
        self._records.append(record)
        for name, value in (scalars or {}).items():
            if value is not None:
                self._trackers.add_scalar(name, value, record["step"])
        if line is not None:
            self._log.write(line)

    def gap_figures(self, record: Record) -> dict[str, float]:
        """The figures of the stability gap of a validation record's set up to it; none where nothing is written."""
        return self._gap.add(record) if self._writes else {}

    def go_back(self, step: int) -> None:
        """Drops what was recorded after a step."""
        if self._writes:
            self._records.close()
            drop_records_after(self._run.folder.records, step)
            self._records = RecordWriter(self._run.folder.records)
            self._trackers.go_back(step)

    def advance(self) -> None:
        """Moves the progress bar on by a step."""
        if self._writes:
            self._bar.update()

    def log(self, line: str, level: int = logging.INFO, shown: bool = False) -> None:
        """Writes a line to the log; a terminal shows warnings, and what `shown` says."""
        if self._writes:
            self._log.write(line, level, shown=shown)

    def sync(self) -> None:
        """Returns when all records are on disk."""
        if self._writes:
            self._records.flush()
            self._trackers.flush()

    def status(self, state: str, step: int, **details: Any) -> None:
        """Replaces status.json."""
        if self._writes:
            self._done = state == "done"
            tokens = self._run.config.tokens_at(step)
            write_status(self._run.folder.status, Status(state=state, step=step, tokens=tokens, **details))

    def records_digest(self) -> RecordsDigest | None:
        """What the records are so far, on rank 0."""
        return self._records.digest() if self._writes else None

    def checkpoint_saved(self, checkpoint: Path) -> None:
        """Says that a checkpoint is whole. From now on the status tells of its step: a run has begun."""
        step = step_of(checkpoint)
        assert step is not None, "it was named by its step"
        self.log(f"step {step}: checkpoint saved: {checkpoint}")
        self.status("running", step)

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self.sync()
            self._bar.close()
            self._records.close()
            self._trackers.close(self._done)
            self._log.close()


def _work_left(run: Run, step: int) -> dict[str, float]:
    """What a run has still to do when the update of a step is made, by kind."""
    config, last = run.config, run.plan.steps

    def times(every: Duration | None) -> int:
        distance = every.steps(config.tokens_per_step) if every else last
        return last // distance - (step - 1) // distance

    exports = config.checkpoint.export_hf
    every = config.checkpoint.save_interval
    at_end = every is not None and last % every.steps(config.tokens_per_step) != 0
    return {
        "tokens": run.plan.tokens - config.tokens_at(step),
        "evaluations": sum(due >= step for one in run.plan.evaluations for due in one.steps),
        "saves": times(every) + at_end,
        "exports": (times(exports.every) if exports.every else 0) + exports.end if exports else 0,
    }


def source_losses(names: Sequence[str], outcome: StepOutcome) -> dict[str, float | None]:
    """Nats per token of each source in a step; None for a source that gave no token."""
    sums = zip(names, outcome.nats.tolist(), outcome.tokens.tolist(), strict=True)
    return {name: nats / tokens if tokens else None for name, nats, tokens in sums}


def _peak_memory() -> int:
    """Bytes that this rank held at most: of its GPU, or of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024  # in kibibytes, on Linux


def mfu_formula(run: Run) -> str:
    """How MFU is computed, or why it is not. Causal attention counts what a token sees, half of what PaLM counts."""
    peak = run.config.run.peak_flops or peak_flops()
    if peak is None:
        return "MFU: not reported: the peak FLOP/s of this device is unknown (run.peak_flops)"
    length = run.config.data.sequence_length
    per_token = flops_per_token(run.shape, length)
    return (
        f"MFU = {per_token:.4g} FLOPs a token (forward and backward, nothing recomputed, causal attention at half) x"
        f" tokens/s / ({groups.world_size()} ranks x {peak:.4g} FLOP/s);"
        f" in PaLM's sense, attention in full: {palm_flops_per_token(run.shape, length) / per_token:.3f} times that"
    )


def peak_flops() -> float | None:
    """Peak of this rank's device in FLOP/s, or None where it is not known."""
    if not torch.cuda.is_available():
        return None
    card = card_of_device(torch.cuda.get_device_name())
    return None if card is None else card.flops
