"""What a run reports while it trains: records, TensorBoard, Weights & Biases, the log. Rank 0 writes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Literal

import torch
from torch.utils.tensorboard import SummaryWriter

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import Duration
from megatron_cpt.evaluate.scoring import Accuracy, LmEvalScore, LmEvalTask, TaskScore
from megatron_cpt.evaluate.validation import ValidationLoss, ValidationSet
from megatron_cpt.families.size import flops_per_token
from megatron_cpt.gap.figures import RunningGap
from megatron_cpt.parallel import groups
from megatron_cpt.planning.resume_changes import ResumeChanges
from megatron_cpt.runs.folder import RunFolder, Status, write_status
from megatron_cpt.runs.records import (
    RecordWriter,
    RemainingTime,
    RunLog,
    drop_records_after,
    progress_bar,
    progress_line,
    read_records,
)
from megatron_cpt.tasks.task_files import Task
from megatron_cpt.train.optimizer import StepOutcome
from megatron_cpt.train.run import Run
from megatron_cpt.train.weight_updates import LAYER_GROUPS, WeightUpdate

# Dense bf16 peak of one GPU, FLOP/s, from NVIDIA's data sheets. MFU is not given for what is not listed.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


class RunLogger:
    """Writes what happened, on rank 0; on the other ranks its methods do nothing."""

    def __init__(self, run: Run) -> None:
        """Opens the files of the run folder, dropping what a killed run wrote after the step it resumes from."""
        self._run = run
        self._writes = groups.rank() == 0
        self._flops_per_token = flops_per_token(run.shape, run.config.data.sequence_length)
        self._peak = run.config.run.peak_flops or peak_flops()
        if not self._writes:
            return
        self._gap = RunningGap()
        if run.first_step > run.start_state.first_own_step:
            drop_records_after(run.folder.records, run.first_step)
            for record in read_records(run.folder.records) if run.folder.records.exists() else ():
                if record["kind"] == "validation":
                    self._gap.add(record)
        else:
            run.folder.records.unlink(missing_ok=True)
        self._records = RecordWriter(run.folder.records)
        self._board = Trackers(run.config, run.folder, run.first_step)
        self._log = RunLog(run.folder.log)
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
        self._records.append(record)
        for name in ("learning_rate", "loss", "grad_norm", "tokens_per_second", "mfu"):
            if record[name] is not None:
                self._board.add_scalar(f"train/{name}", record[name], step)
        for source, loss in record["source_losses"].items():
            if loss is not None:
                self._board.add_scalar(f"loss/source/{source}", loss, step)
        for source, read in record["source_tokens"].items():
            self._board.add_scalar(f"tokens/source/{source}", read, step)
            self._board.add_scalar(f"epochs/source/{source}", record["source_epochs"][source], step)
        self._bar.set_postfix_str(f"loss {outcome.loss:.3f}, lr {rate:.2e}, {per_second:,.0f} tokens/s", refresh=False)
        self._bar.update()
        self._remaining.add("tokens", tokens - config.tokens_at(step - 1), seconds)
        if step % config.run.log_interval.steps(config.tokens_per_step) == 0 or step == run.plan.steps:
            seconds_left = self._remaining.seconds(_work_left(run, step))
            self._log.write(progress_line(record, run.plan.steps, run.plan.tokens, seconds_left))
            self.sync()

    def evaluated(self, marks: int, seconds: float) -> None:
        """Takes note of the time of some evaluations, for the time that is left."""
        if self._writes:
            self._remaining.add("evaluations", marks, seconds)

    def saved(self, step: int, checkpoint: Path) -> None:
        """Says that a checkpoint is whole."""
        self.log(f"step {step}: checkpoint saved: {checkpoint}")

    def stalled(self, kind: Literal["saves", "exports"], seconds: float) -> None:
        """Takes note of the time that training waited for a save or an export, for the time that is left."""
        if self._writes:
            self._remaining.add(kind, 1, seconds)

    def log_mfu_formula(self) -> None:
        """Says how MFU is computed."""
        if self._peak is None:
            self.log("MFU: not reported: the peak FLOP/s of this device is unknown (run.peak_flops)")
            return
        self.log(
            f"MFU = {self._flops_per_token:.4g} FLOPs a token (forward and backward, nothing recomputed) x tokens/s"
            f" / ({groups.world_size()} ranks x {self._peak:.4g} FLOP/s)"
        )

    def changed(self, found: ResumeChanges) -> None:
        """Records and tells every setting, validation set and task that is another one than before the resume.

        A record is of the first step that it counts for, so that it goes with that step where the step is done again.
        """
        if not self._writes:
            return
        run = self._run
        event = {"kind": "event", "step": run.first_step + 1, "tokens": run.config.tokens_at(run.first_step)}
        for change in found.changes if run.first_step < run.plan.steps else ():
            self._records.append(event | {"event": "setting_changed"} | asdict(change))
        for name in run.changed_measures:
            self._records.append(event | {"event": "measure_changed", "name": name})
        other = [
            f"changed from step {run.first_step + 1} on: {name} is a different one" for name in run.changed_measures
        ]
        for line in [*found.lines(), *other]:
            self.log(line, shown=True)

    def log_skipped_step(self, step: int, rate: float, outcome: StepOutcome, what: str) -> None:
        """Records an event in place of an update that was not made: `skipped` or `stopped`."""
        if self._writes:
            self._records.append(self._event(f"{what}_{_cause(outcome)}", step, rate, outcome))
            self._bar.update()
            self._log.write(f"step {step}: {what}: {described(outcome)}")

    def log_rewind(self, to_step: int, step: int, rate: float, outcome: StepOutcome) -> None:
        """Drops what was recorded after the step that the run went back to, and records that it did."""
        if not self._writes:
            return
        self._records.close()
        drop_records_after(self._run.folder.records, to_step)
        self._records = RecordWriter(self._run.folder.records)
        self._board.go_back(to_step)
        consumed = self._run.config.sequences_at
        left_out = {"to_step": to_step, "left_out_sequences": [consumed(to_step), consumed(step)]}
        self._records.append(self._event(f"rewound_{_cause(outcome)}", step, rate, outcome) | left_out)
        self._bar.update()
        self._log.write(
            f"step {step}: {described(outcome)}: went back to the weights of step {to_step}; "
            f"the sequences of steps {to_step + 1} to {step} are skipped"
        )

    def log_moment_warmup(self, number: int, outcome: StepOutcome) -> None:
        """Records a step at rate 0 before the first update."""
        if self._writes:
            self._records.append(self._event("moments_filled", self._run.first_step, 0.0, outcome) | {"number": number})

    def _event(self, what: str, step: int, rate: float, outcome: StepOutcome) -> dict[str, Any]:
        return {
            "kind": "event",
            "event": what,
            "step": step,
            "tokens": self._run.config.tokens_at(step),
            "learning_rate": rate,
            "loss": outcome.loss,
            "grad_norm": outcome.gradient_norm,
        }

    def log_validation(self, step: int, validation_set: ValidationSet, loss: ValidationLoss, seconds: float) -> None:
        """Records one evaluation of one set."""
        if not self._writes:
            return
        record = {
            "kind": "validation",
            "step": step,
            "tokens": self._run.config.tokens_at(step),
            "set": validation_set.name,
            "role": validation_set.role,
            "baseline": step == self._run.start_state.first_own_step,
            "loss": loss.loss,
            "bits_per_byte": loss.bits_per_byte,
            "scored_tokens": int(loss.scored_tokens.sum()),
            "scored_bytes": loss.scored_bytes,
            "identity": validation_set.identity,
            "sequence_nats": loss.sequence_nats.tolist(),
            "sequence_tokens": loss.scored_tokens.tolist(),
            "seconds": seconds,
        }
        self._records.append(record)
        name = validation_set.name
        self._board.add_scalar(f"loss/validation/{name}", loss.loss, step)
        if loss.bits_per_byte is not None:
            self._board.add_scalar(f"bits_per_byte/{name}", loss.bits_per_byte, step)
        figures = self._gap.add(record)
        for figure, value in figures.items():
            self._board.add_scalar(f"gap/{name}/{figure}", value, step)
        change = f", {figures['change']:+.4f} since the start" if "change" in figures else ""
        self._log.write(f"step {step}: {validation_set.name} {loss.loss:.4f} nats/token{change} ({seconds:.1f} s)")

    def log_weight_update(self, step: int, updates: Mapping[str, WeightUpdate]) -> None:
        """Records how far the bottom and top layers are from where they started, and the ratio of the two."""
        if not self._writes:
            return
        record: dict[str, Any] = {"kind": "weights", "step": step, "tokens": self._run.config.tokens_at(step)}
        for name in ("mean_relative", "norm_ratio"):
            bottom, top = (getattr(updates[end], name) for end in LAYER_GROUPS)
            record[name] = {"bottom": bottom, "top": top, "bottom_over_top": bottom / top if bottom and top else None}
            for end, value in record[name].items():
                if value is not None:
                    self._board.add_scalar(f"weight_update/{name}/{end}", value, step)
        self._records.append(record)

    def log_stability_gradient(self, step: int, validation_set: ValidationSet, norm: float, seconds: float) -> None:
        """Records the norm of the gradient on held-out text."""
        if not self._writes:
            return
        self._records.append(
            {
                "kind": "stability",
                "step": step,
                "tokens": self._run.config.tokens_at(step),
                "set": validation_set.name,
                "gradient_norm": norm,
                "seconds": seconds,
            }
        )
        self._board.add_scalar(f"stability_gradient/{validation_set.name}", norm, step)

    def log_task(self, step: int, task: Task | LmEvalTask, score: TaskScore | LmEvalScore, seconds: float) -> None:
        """Records the score of one task."""
        if not self._writes:
            return
        record = {
            "kind": "task",
            "step": step,
            "tokens": self._run.config.tokens_at(step),
            "task": task.name,
            "role": task.role,
            "baseline": step == self._run.start_state.first_own_step,
            "metric": task.metric,
            "num_fewshot": task.num_fewshot,
            "identity": task.identity,
            **score.summary(),
            "seconds": seconds,
        }
        self._records.append(record)
        for name, value in score.scalars().items():
            self._board.add_scalar(f"task/{task.name}/{name}", value, step)
        self._log.write(f"step {step}: {task.name} {record['score']:.4f} {task.metric} ({seconds:.1f} s)")

    def log_task_group(self, step: int, name: str, members: Sequence[str], rate: Accuracy) -> None:
        """Records the mean over a group of tasks."""
        if not self._writes:
            return
        self._records.append(
            {
                "kind": "task_group",
                "step": step,
                "tokens": self._run.config.tokens_at(step),
                "group": name,
                "tasks": list(members),
                "score": rate.value,
                "standard_error": rate.standard_error,
            }
        )
        self._board.add_scalar(f"task_group/{name}", rate.value, step)
        self._log.write(f"step {step}: {name} {rate.value:.4f} over {len(members)} tasks")

    def log(self, line: str, shown: bool = False) -> None:
        """Writes a line to the log; a terminal shows it where `shown` says so."""
        if self._writes:
            self._log.write(line, shown=shown)

    def warn(self, line: str) -> None:
        """Writes a warning to the log, which a terminal shows too."""
        if self._writes:
            self._log.write(line, logging.WARNING)

    def sync(self) -> None:
        """Returns when all records are on disk."""
        if self._writes:
            self._records.flush()
            self._board.flush()

    def status(self, state: str, step: int, **details: Any) -> None:
        """Replaces status.json."""
        if self._writes:
            tokens = self._run.config.tokens_at(step)
            write_status(self._run.folder.status, Status(state=state, step=step, tokens=tokens, **details))

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self.sync()
            self._bar.close()
            self._records.close()
            self._board.close()
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
        "evaluations": sum(mark >= step for one in run.plan.evaluations for mark in one.marks),
        "saves": times(every) + at_end,
        "exports": (times(exports.every) if exports.every else 0) + exports.end if exports else 0,
    }


def _cause(outcome: StepOutcome) -> str:
    """Why a step had no update, as event names have it."""
    return "spike" if outcome.finite else "not_finite"


def described(outcome: StepOutcome) -> str:
    """Why a step had no update, in words."""
    why = "a spike" if outcome.finite else "not finite"
    return f"loss {outcome.loss}, gradient norm {outcome.gradient_norm}, {why}"


def source_losses(names: Sequence[str], outcome: StepOutcome) -> dict[str, float | None]:
    """Nats per token of each source in a step; None for a source that gave no token."""
    sums = zip(names, outcome.nats.tolist(), outcome.tokens.tolist(), strict=True)
    return {name: nats / tokens if tokens else None for name, nats, tokens in sums}


def _peak_memory() -> int:
    """Bytes that this rank held at most: of its GPU, or of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024  # in kibibytes, on Linux


def peak_flops() -> float | None:
    """Peak of this rank's device in FLOP/s, or None where it is not known."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name()
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in device), None)


class Trackers:
    """Takes each scalar once and shows it wherever it is to be seen."""

    def __init__(self, config: RunConfig, folder: RunFolder, last_step: int) -> None:
        """Opens them; what a killed run wrote after a step is taken back where the board can.

        Raises:
            BadInput: Weights & Biases is asked for and not installed.
        """
        self._folder = folder
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=last_step + 1)
        self._wandb = _open_wandb(config, folder) if config.run.wandb is not None else None

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Shows a number of a step."""
        self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            # A step of its own: theirs may not go back, and a resume does.
            self._wandb.log({name: value, "step": step})

    def go_back(self, step: int) -> None:
        """Takes back what was shown of later steps. Weights & Biases keeps it."""
        self._tensorboard.close()
        self._tensorboard = SummaryWriter(str(self._folder.tensorboard), purge_step=step + 1)

    def flush(self) -> None:
        """Hands over what is held back."""
        self._tensorboard.flush()

    def close(self) -> None:
        """Closes them."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_wandb(config: RunConfig, folder: RunFolder) -> Any:
    """The run on Weights & Biases that belongs to a run folder: the same one at every resume."""
    assert config.run.wandb is not None
    try:
        import wandb  # noqa: PLC0415  (optional)
    except ImportError:
        fault = Fault("run.wandb", "the package wandb is not installed.", "Run `pip install wandb`, or take it out.")
        raise BadInput(fault) from None
    run = wandb.init(
        project=config.run.wandb.project,
        name=folder.path.name,
        id=sha256(str(folder.path.resolve()).encode()).hexdigest()[:16],
        dir=str(folder.path),
        mode=config.run.wandb.mode,
        resume="allow",
        config=asdict(config),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
