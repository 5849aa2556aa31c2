"""lm-evaluation-harness's tasks for a run: opened once, with all their questions as token ids.

Needs the optional library lm-eval; nothing else imports this file before it is asked for.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lm_eval.api.metrics import mean
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import HarnessSettings
from megatron_cpt.evaluate.harness import MegatronLM, load_tasks
from megatron_cpt.evaluate.harness_score import ACCURACIES, HarnessTask, score
from megatron_cpt.evaluate.likelihood import Likelihoods
from megatron_cpt.parallel.seed import random_states_kept
from megatron_cpt.tasks.requests import Continuation


def open_harness(entries: Mapping[str, HarnessSettings], hf_folder: Path, longest: int) -> dict[str, list[HarnessTask]]:
    """The tasks of each entry, the same on every rank. Random states are left as they were.

    Args:
        longest: tokens of the model's input at most.
    Raises:
        BadInput: as evaluate_harness does, and for a task whose score could not be followed.
    """
    with random_states_kept():
        return {name: _open_entry(f"tasks.harness.{name}:", entry, hf_folder, longest)
                for name, entry in entries.items()}  # fmt: skip


def _open_entry(where: str, settings: HarnessSettings, hf_folder: Path, longest: int) -> list[HarnessTask]:
    # The harness's own evaluator seeds before it opens: tasks that draw then ask the same questions.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    include = None if settings.include is None else Path(settings.include)
    _, tasks = load_tasks(where, settings.tasks, include)
    refuse([fault for name, task in tasks.items() for fault in _faults(f"{where} {name}", task)])
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        task.set_config(key="num_fewshot", value=(own or 0) if own == 0 or settings.shots is None else settings.shots)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    opened = []
    for name, task in tasks.items():
        try:
            task.build_all_requests(limit=settings.limit)
            opened.append(_harness_task(name, task, settings.role, hf_folder, longest))
            # What cannot be scored is to be found now, not at a mark far into the run.
            score(opened[-1], *_guesses(len(opened[-1].requests)))
        # A task's own template or function can raise anything.
        except Exception as error:
            rule = f"cannot be asked or scored: {type(error).__name__}: {error}."
            raise BadInput(Fault(f"{where} {name}", rule, "Mend the task, or take it out.")) from error
    return opened


def _guesses(requests: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    return np.full(requests, -1.0), np.zeros(requests, dtype=np.bool_)


def _harness_task(name: str, task: Any, role: str, hf_folder: Path, longest: int) -> HarnessTask:
    requests = requests_of(task.instances, hf_folder, longest)
    return HarnessTask(
        name=name,
        role=role,
        metric=metric_of(task) or "loss",
        shots=int(task.get_config("num_fewshot")),
        task=task,
        requests=tuple(request for of_one in requests for request in of_one),
        requests_of_instance=tuple(map(len, requests)),
    )


def requests_of(instances: Sequence[Any], hf_folder: Path, longest: int) -> list[list[Continuation]]:
    """What each instance asks of the model, encoded as the harness does with any model."""
    asked: list[Continuation] = []

    def note(continuations: list[Continuation]) -> Likelihoods:
        asked.extend(continuations)
        return Likelihoods(np.zeros(len(continuations)), np.zeros(len(continuations), bool))

    encoder, requests = MegatronLM(note, hf_folder, longest), []
    for instance in instances:
        asked.clear()
        getattr(encoder, instance.request_type)([instance], disable_tqdm=True)
        requests.append([*asked])
    return requests


def metric_of(task: Any) -> str | None:
    """The accuracy that counts: normalised where the harness reports it, else plain. None: the task has none."""
    means = [name for name, combined in task.aggregation().items() if combined is mean]
    return next((ours for theirs, ours in ACCURACIES.items() if theirs in means), None)


def _faults(value: str, task: Any) -> list[Fault]:
    if task.OUTPUT_TYPE != "multiple_choice" or metric_of(task) is not None:
        return []
    rule = f"its metrics ({', '.join(task.aggregation())}) hold no accuracy that is a mean over questions."
    return [Fault(value, rule, "Score it with `megatron-cpt evaluate --harness`.")]
