"""What the laws are fitted to: loss curves with the learning rate of every update, from run folders.

A loss that is missing is left out, never 0; its learning rate still counts. Logs of other systems: foreign.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import Fault, IntegrityFault, refuse
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.records import read_records


@dataclass(frozen=True)
class Curve:
    """The loss of one set along one run."""

    name: str
    """Of the run."""
    rates: np.ndarray
    """float64 [updates]: the learning rate of every update, from the first to at least the last step below."""
    steps: np.ndarray
    """int64 [points]: updates done where the loss was measured; at least 1, rising."""
    losses: np.ndarray
    """float64 [points]: nats per token."""
    base_forward_area: float | None = None
    """S1 of the base's pretraining; None where its history is not known."""
    base_annealing_area: float | None = None
    """S2 of the base's pretraining; None where its history is not known."""
    base_peak_rate: float | None = None
    """Highest learning rate of the base's pretraining; None where its history is not known."""
    base_final_rate: float | None = None
    """Last learning rate of the base's pretraining; None where its history is not known."""
    domain_share: float = 1.0
    """Share of new data among the training tokens: 1 - replay ratio."""
    start_loss: float | None = None
    """Loss before the first update, nats per token; None where it was not measured."""
    model_size: float | None = None
    """Parameters without embeddings; None where it is not known."""

    def after(self, step: int) -> "Curve":
        """The curve without its points before a step; the rates stay."""
        kept = self.steps >= step
        return replace(self, steps=self.steps[kept], losses=self.losses[kept])

    def until(self, step: int) -> "Curve":
        """The curve without its points after a step; the rates stay."""
        kept = self.steps <= step
        return replace(self, steps=self.steps[kept], losses=self.losses[kept])


def sets_of(path: str | Path) -> list[str]:
    """The validation sets that a run folder has losses of, in the order of its records."""
    records = read_records(RunFolder(path).records)
    return list(dict.fromkeys(record["set"] for record in records if record.get("kind") == "validation"))


def read_run(path: str | Path, validation_set: str) -> Curve:
    """The curve of a validation set of a run folder, with the learning rates that were used.

    The base's areas are those of lineage.json, None where it has none. Raises BadInput for a folder without
    records, without that set or without the rate of an update, IntegrityFault for a damaged file.
    """
    folder = RunFolder(path)
    records, lineage, plan = read_records(folder.records), read_object(folder.lineage), read_object(folder.plan)
    first = first_step(plan)
    rates = {r["step"] - first: r.get("learning_rate") for r in records if r.get("kind") == "train"}
    marks = [
        r | {"step": r["step"] - first}
        for r in records
        if r.get("kind") == "validation" and r.get("set") == validation_set
    ]
    refuse(_run_faults(path, records, rates, marks, validation_set))
    points = {mark["step"]: mark.get("loss") for mark in marks if mark.get("identity") == marks[-1].get("identity")}
    measured = sorted(step for step, loss in points.items() if step > 0 and loss is not None)
    return Curve(
        name=Path(path).name,
        rates=np.array([rates[step] for step in sorted(rates)], dtype=np.float64),
        steps=np.array(measured, dtype=np.int64),
        losses=np.array([points[step] for step in measured], dtype=np.float64),
        base_forward_area=lineage.get("parent_forward_area"),
        base_annealing_area=lineage.get("parent_annealing_area"),
        base_peak_rate=lineage.get("parent_peak_learning_rate"),
        base_final_rate=lineage.get("parent_final_learning_rate"),
        domain_share=domain_share(plan),
        start_loss=points.get(0),
        model_size=plan.get("model", {}).get("non_embedding_parameters"),
    )


def _run_faults(
    path: str | Path,
    records: Sequence[dict[str, Any]],
    rates: dict[int, float | None],
    marks: Sequence[dict[str, Any]],
    validation_set: str,
) -> list[Fault]:
    if not marks:
        names = sorted({record["set"] for record in records if record.get("kind") == "validation"})
        return [Fault(f"{path}: {validation_set}", "is not a validation set of this run.", f"It has {names}.")]
    last = max(mark["step"] for mark in marks)
    if any(rates.get(step) is None for step in range(1, last + 1)):
        remedy = "The laws need the rate of every update: give a run whose records are whole."
        return [Fault(str(path), "some updates have no recorded learning rate.", remedy)]
    return []


def first_step(plan: dict[str, Any]) -> int:
    """Steps of another run that a run goes on counting, by its plan.json: a curve's steps are those after them."""
    return int(plan.get("start", {}).get("step", 0))


def domain_share(plan: dict[str, Any]) -> float:
    """Tokens read from domain sources over all, of a plan.json; 1 where there is no plan."""
    sources = plan.get("blend", {}).get("sources", [])
    total = sum(source["sequences"] for source in sources)
    domain = sum(source["sequences"] for source in sources if source["role"] == "domain")
    return domain / total if total else 1.0


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise IntegrityFault(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise IntegrityFault(f"{path}: not an object.")
    return content
