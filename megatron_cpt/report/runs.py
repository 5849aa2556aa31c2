"""What a report reads from one run folder, or from a log of another system.

What is not there is None or empty, and shown as missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.gap.curves import NATS, WRONG, LossCurve, loss_curves, task_curves
from megatron_cpt.gap.figures import GapFigures, gap_figures
from megatron_cpt.gap.foreign import ForeignSettings, foreign_curves, is_foreign
from megatron_cpt.report.signals import Signals, signals
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.records import Record, read_records
from megatron_cpt.runs.status import Status, read_status


@dataclass(frozen=True)
class SourceHistory:
    """One source of training text over the steps of a run; NaN where a record has no value."""

    losses: np.ndarray
    """float64 [steps]: nats per token on the source's tokens of that step."""
    tokens: np.ndarray
    """float64 [steps]: tokens trained so far."""
    epochs: np.ndarray
    """float64 [steps]: times the source was read so far."""


@dataclass(frozen=True)
class TrainingHistory:
    """The training records of a run, as arrays over steps; NaN where a record has no value."""

    tokens: np.ndarray
    """int64 [steps]: tokens trained after the step."""
    losses: np.ndarray
    """float64 [steps]: nats per token."""
    learning_rates: np.ndarray
    """float64 [steps]: used for the update."""
    gradient_norms: np.ndarray
    """float64 [steps]: before clipping."""
    sources: dict[str, SourceHistory]
    """By name, the source with the most tokens first."""


@dataclass(frozen=True)
class ReportedRun:
    """One run, as the report shows it."""

    name: str
    """Short name, different from those of the other runs of the report."""
    folder: Path
    """Where it was read from."""
    validation: list[tuple[LossCurve, GapFigures]]
    """Each validation set with its gap figures, general sets first."""
    tasks: list[tuple[LossCurve, GapFigures]]
    """Each downstream task, likewise; an accuracy as the share of wrong answers."""
    chances: dict[str, float]
    """Accuracy of guessing, by task."""
    training: TrainingHistory
    """Empty arrays where there are no training records."""
    signals: Signals
    """What was recorded beside the losses."""
    status: Status | None
    """How the run stands."""
    config: str | None
    """Text of config.yaml."""
    plan: dict[str, Any] | None
    """Content of plan.json."""


def read_runs(folders: Sequence[str | Path], foreign: ForeignSettings | None = None) -> list[ReportedRun]:
    """Reads run folders, and CSV files and TensorBoard folders of other systems, each once, in the order given.

    Raises BadInput naming every folder that has no records or for a log that cannot be read as `foreign`
    says, and IntegrityFault for damaged files.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    refuse([fault for path in paths if not is_foreign(path) and (fault := _fault(path)) is not None])
    return [
        _read_log(name, path, foreign or ForeignSettings()) if is_foreign(path) else _read_run(name, path)
        for name, path in zip(short_names(paths), paths, strict=True)
    ]


def without_records_yet(folders: Sequence[str | Path]) -> list[Path]:
    """The run folders among some that are being trained in, and whose first record is still to come."""
    paths = [path for path in map(Path, folders) if not is_foreign(path) and goes_on(path)]
    return [path for path in paths if not (file := RunFolder(path).records).is_file() or not read_records(file)]


def goes_on(path: Path) -> bool:
    """Whether a folder's run goes on: its status says so, or is not there while the run starts."""
    folder = RunFolder(path)
    status = read_status(folder.status)
    return status.state == "running" if status else folder.checkpoints.is_dir() and not folder.status.exists()


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest tails of different absolute paths that tell them apart: `naive`, else `a/naive`, ..."""
    for length in range(1, max((len(path.parts) for path in paths), default=0)):
        names = ["/".join(path.parts[1:][-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def training_history(records: Sequence[Record]) -> TrainingHistory:
    """The training records as arrays. Raises IntegrityFault for one without its tokens."""
    steps = [record for record in records if record.get("kind") == "train"]
    if any("tokens" not in step for step in steps):
        raise IntegrityFault("records.jsonl: a training record has no field 'tokens'")
    names = dict.fromkeys(name for step in steps for name in step.get("source_tokens") or {})
    sources = {
        name: SourceHistory(
            losses=_numbers([(step.get("source_losses") or {}).get(name) for step in steps]),
            tokens=_numbers([(step.get("source_tokens") or {}).get(name) for step in steps]),
            epochs=_numbers([(step.get("source_epochs") or {}).get(name) for step in steps]),
        )
        for name in names
    }
    return TrainingHistory(
        tokens=np.array([step["tokens"] for step in steps], dtype=np.int64),
        losses=_numbers([step.get("loss") for step in steps]),
        learning_rates=_numbers([step.get("learning_rate") for step in steps]),
        gradient_norms=_numbers([step.get("grad_norm") for step in steps]),
        sources=dict(sorted(sources.items(), key=lambda item: -np.nan_to_num(item[1].tokens[-1]))),
    )


def _fault(path: Path) -> Fault | None:
    records = RunFolder(path).records
    if records.is_file() and records.stat().st_size > 0:
        return None
    rule = "is a run folder without records." if path.is_dir() else "is not a folder."
    remedy = "Give run folders (each has a records.jsonl, written by `megatron-cpt train`), CSV files or TensorBoard "
    return Fault(str(path), rule, remedy + "folders.")


def _read_run(name: str, path: Path) -> ReportedRun:
    folder = RunFolder(path)
    records = read_records(folder.records)
    if not records:
        raise BadInput(Fault(str(folder.records), "has no whole record yet.", "Wait for the first step."))
    return ReportedRun(
        name=name,
        folder=path,
        validation=[(curve, gap_figures(curve)) for curve in loss_curves(records)],
        tasks=[(curve, gap_figures(curve)) for curve in task_curves(records)],
        chances={line["task"]: line["chance"] for line in records if line["kind"] == "task" and "chance" in line},
        training=training_history(records),
        signals=signals(records),
        status=read_status(folder.status),
        config=folder.config.read_text(errors="replace") if folder.config.is_file() else None,
        plan=_read_plan(folder.plan),
    )


def _read_log(name: str, path: Path, settings: ForeignSettings) -> ReportedRun:
    curves = foreign_curves(path, settings)
    return ReportedRun(
        name=name,
        folder=path,
        validation=[(curve, gap_figures(curve)) for curve in curves if curve.unit == NATS],
        tasks=[(curve, gap_figures(curve)) for curve in curves if curve.unit == WRONG],
        chances={},
        training=training_history([]),
        signals=signals([]),
        status=None,
        config=None,
        plan=None,
    )


def _read_plan(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        plan = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise IntegrityFault(f"{path}: not JSON ({error}).") from error
    if not isinstance(plan, dict):
        raise IntegrityFault(f"{path}: not an object.")
    return plan


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
