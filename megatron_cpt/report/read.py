"""What a report reads from run folders and from logs of other systems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.gap.compare import (
    Arm,
    ArmDifference,
    ControlSplit,
    MeasuredRun,
    arm_differences,
    control_split,
    group_arms,
)
from megatron_cpt.gap.curves import (
    NATS,
    WRONG,
    ForeignSettings,
    LossCurve,
    foreign_curves,
    is_foreign,
    loss_curves,
    task_curves,
)
from megatron_cpt.gap.figures import GapFigures, gap_figures
from megatron_cpt.runs.folder import RunFolder, Status, read_json_object, read_status
from megatron_cpt.runs.records import Record, log_times, read_records
from megatron_cpt.runs.samples import Samples, read_samples

MEASURES = ("mean_relative", "norm_ratio")
"""The two forms of the relative weight update (docs/gap.md)."""


Clock = Mapping[int, tuple[int | None, float | None]]
"""Tokens trained to the step, and to the seconds that updates and evaluations took until then; None: not known."""


@dataclass(frozen=True)
class Series:
    """One figure over a run."""

    tokens: np.ndarray
    """int64 [evaluations]: tokens trained."""
    values: np.ndarray
    """float64 [evaluations]; NaN where a record has no value."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    step: int | None
    """At which step."""
    tokens: int | None
    """Tokens trained."""
    name: str
    """What the record calls it."""
    details: dict[str, str]
    """Its other fields, as text."""


@dataclass(frozen=True)
class Conflict:
    """The gradient of a validation set beside that of training, at the updates where both were measured."""

    cosine: dict[str, Series]
    """{all, bottom, top: series}: cosine of the two gradients, of all layers, of the bottom and of the top ones."""
    gradient_norm: Series
    """Norm of the set's gradient."""
    predicted_change: Series
    """Change of the set's loss by the update, nats per token, to first order."""
    change: Series
    """The change that came, nats per token."""


@dataclass(frozen=True)
class Signals:
    """What is drawn beside the losses. Empty where a run did not record it."""

    groups: dict[str, Series]
    """Mean accuracy of each group of tasks."""
    updates: dict[str, dict[str, Series]]
    """{measure: {bottom, top, bottom_over_top: series}}."""
    conflicts: dict[str, Conflict]
    """The gradient on held-out text beside that of training, by validation set."""
    speed: Series
    """Tokens per second of each step."""
    seconds: dict[str, float]
    """Time of all records of a kind that have a time: train, validation, task, gradients."""
    events: list[Event]
    """In the order of the records."""


def signals(records: Sequence[Record]) -> Signals:
    """Gathers the signals of a run."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(str(record.get("kind")), []).append(record)
    groups: dict[str, list[Record]] = {}
    for record in by_kind.get("task_group", []):
        groups.setdefault(str(record.get("group")), []).append(record)
    gradients: dict[str, list[Record]] = {}
    for record in by_kind.get("gradients", []):
        gradients.setdefault(str(record.get("set")), []).append(record)
    weights = by_kind.get("weights", [])
    return Signals(
        groups={name: _series(lines, lambda line: line.get("score")) for name, lines in groups.items()},
        updates=_updates(weights) if weights else {},
        conflicts={name: _conflict(lines) for name, lines in gradients.items()},
        speed=_series(by_kind.get("train", []), lambda line: line.get("tokens_per_second")),
        seconds={
            kind: sum(line["seconds"] for line in lines if line.get("seconds") is not None)
            for kind, lines in by_kind.items()
            if any(line.get("seconds") is not None for line in lines)
        },
        events=[_event(record) for record in by_kind.get("event", [])],
    )


def _conflict(records: Sequence[Record]) -> Conflict:
    def of(figure: str, part: str) -> Series:
        return _series(records, lambda line: (line.get(figure) or {}).get(part))

    return Conflict(
        cosine={part: of("cosine", part) for part in ("all", "bottom", "top")},
        gradient_norm=of("gradient_norm", "all"),
        predicted_change=_series(records, lambda line: line.get("predicted_change")),
        change=_series(records, lambda line: line.get("change")),
    )


def _updates(records: Sequence[Record]) -> dict[str, dict[str, Series]]:
    def of(measure: str, end: str) -> Series:
        return _series(records, lambda line: (line.get(measure) or {}).get(end))

    return {measure: {end: of(measure, end) for end in ("bottom", "top", "bottom_over_top")} for measure in MEASURES}


def _series(records: Sequence[Record], value: Callable[[Record], float | None]) -> Series:
    tokens = [record.get("tokens", 0) for record in records]
    values = [value(record) for record in records]
    return Series(
        np.array(tokens, dtype=np.int64),
        np.array([np.nan if one is None else one for one in values], dtype=np.float64),
    )


def _event(record: Record) -> Event:
    known = ("kind", "event", "step", "tokens")
    details = {str(name): _text(value) for name, value in record.items() if name not in known and value is not None}
    return Event(record.get("step"), record.get("tokens"), str(record.get("event", "event")), details)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    clock: Clock
    """Step and time by tokens."""
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
    versions: dict[str, Any] | None
    """Content of versions.json."""
    log_times: tuple[str, str] | None
    """When the first and the last line of log.txt were written."""
    samples: Samples | None
    """Content of samples.json."""

    @property
    def ended(self) -> bool:
        """Whether it has come to its end; a log of another system is taken as whole."""
        return self.status is None or self.status.state == "done"


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
    if status is None:
        return folder.checkpoints.is_dir() and not folder.status.exists()
    return status.state in ("starting", "running")


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


def _run_clock(records: Sequence[Record]) -> Clock:
    """Step and time of all tokens that a record names."""
    timed = all(record.get("seconds") is not None for record in records if record.get("kind") == "train")
    clock: dict[int, tuple[int | None, float | None]] = {}
    seconds = 0.0
    for record in records:
        seconds += record.get("seconds") or 0.0
        if record.get("tokens") is not None:
            clock[record["tokens"]] = (record.get("step"), seconds if timed else None)
    return clock


def _fault(path: Path) -> Fault | None:
    records = RunFolder(path).records
    if records.is_file() and records.stat().st_size > 0:
        return None
    rule = "is a run folder without records." if path.is_dir() else "is not a folder."
    remedy = "Give run folders (each has a records.jsonl, written by `megatron-cpt train`), CSV files or TensorBoard "
    return Fault(str(path), rule, remedy + "folders.")


def _read_run(name: str, path: Path) -> ReportedRun:
    folder = RunFolder(path)
    records = _from_its_start(read_records(folder.records))
    if not records:
        raise BadInput(Fault(str(folder.records), "has no whole record yet.", "Wait for the first step."))
    return ReportedRun(
        name=name,
        folder=path,
        validation=[(curve, gap_figures(curve)) for curve in loss_curves(records)],
        tasks=[(curve, gap_figures(curve)) for curve in task_curves(records)],
        chances={line["task"]: line["chance"] for line in records if line["kind"] == "task" and "chance" in line},
        clock=_run_clock(records),
        training=training_history(records),
        signals=signals(records),
        status=read_status(folder.status),
        config=folder.config.read_text(errors="replace") if folder.config.is_file() else None,
        plan=read_json_object(folder.plan),
        versions=read_json_object(folder.versions),
        log_times=log_times(folder.log),
        samples=read_samples(folder.samples),
    )


def _from_its_start(records: Sequence[Record]) -> list[Record]:
    """Records with the tokens of this run alone, where it goes on counting those of another
    (`init_from.load_data_position`), as the curves of its validation sets have them."""
    start = next((record["tokens"] for record in records if record.get("baseline") and "tokens" in record), 0)
    return [
        record | {"tokens": record["tokens"] - start} if start and record.get("tokens") is not None else record
        for record in records
    ]


def _read_log(name: str, path: Path, settings: ForeignSettings) -> ReportedRun:
    curves = foreign_curves(path, settings)
    return ReportedRun(
        name=name,
        folder=path,
        validation=[(curve, gap_figures(curve)) for curve in curves if curve.unit == NATS],
        tasks=[(curve, gap_figures(curve)) for curve in curves if curve.unit == WRONG],
        chances={},
        clock={
            tokens: (step, None)
            for curve in curves
            for tokens, step in zip(curve.tokens.tolist(), curve.steps.tolist(), strict=True)
            if not np.array_equal(curve.tokens, curve.steps)  # a log that counts tokens alone
        },
        training=training_history([]),
        signals=signals([]),
        status=None,
        config=None,
        plan=None,
        versions=None,
        log_times=None,
        samples=None,
    )


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


@dataclass(frozen=True)
class Comparison:
    """What several runs say together."""

    arms: list[Arm]
    """Runs that differ only in seed, as one."""
    differences: list[ArmDifference]
    """Every two arms, against the spread over seeds."""
    control: str | None
    """Name of the control run, where there is one."""
    splits: dict[str, dict[str, ControlSplit]]
    """{run: {general set: its rise, split by the control}}, for every run but the control."""


def compare(runs: Sequence[ReportedRun], control: ReportedRun | None = None) -> Comparison:
    """Compares runs; `control` is one of them."""
    arms = group_arms([MeasuredRun(run.name, run.config, run.validation) for run in runs])
    splits = {}
    if control is not None:
        curves = {curve.name: curve for curve, _ in control.validation}
        splits = {run.name: _splits(run, curves) for run in runs if run is not control}
    return Comparison(arms, arm_differences(arms), control.name if control is not None else None, splits)


def refuse_control(
    runs: Sequence[ReportedRun], control: ReportedRun, splits: Mapping[str, Mapping[str, ControlSplit]]
) -> None:
    """Raises BadInput for a control that splits nothing, unless evaluations that are still to come may change that."""
    found = [(run, name, split) for run, sets in splits.items() for name, split in sets.items()]
    evaluated = {curve.name for curve, _ in control.validation if curve.is_finite.sum() > 1}
    ended = all(run.ended for run in runs)
    if any(
        split.missing is None or not (split.final_refusal or ended or (control.ended and name not in evaluated))
        for _, name, split in found
    ):
        return
    value = f"--control {control.folder}"
    if found:
        refuse(
            [
                Fault(value, f"set {name} of {run} cannot be split: {split.missing}.", split.remedy or "")
                for run, name, split in found
            ]
        )
    elif ended:
        raise BadInput(Fault(value, "no run has a general set to be split.", "Leave --control out."))


def _splits(run: ReportedRun, control: Mapping[str, LossCurve]) -> dict[str, ControlSplit]:
    return {
        curve.name: control_split(curve, control.get(curve.name))
        for curve, _ in run.validation
        if curve.role != "domain"
    }
