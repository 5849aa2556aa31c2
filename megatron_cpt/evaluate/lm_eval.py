"""lm-evaluation-harness's tasks: opened once with all their questions as token ids, and scored on this model.

Every rank runs the harness on its own, with the same seeds, so that all ask the same questions in the same order; the
ranks meet in the scoring. Tokens are those of transformers' tokenizer, as in the harness's own model of Hugging Face
folders. `generate_until` is refused: this model scores text and does not generate.

Needs the optional library lm-eval; nothing imports this file before it is asked for.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lm_eval import simple_evaluate
from lm_eval.api.metrics import mean
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from megatron_cpt.checkpoint.convert import transformers_tokenizer
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import LmEvalSettings
from megatron_cpt.evaluate.likelihood import Likelihoods
from megatron_cpt.evaluate.scoring import ACCURACIES, LmEvalTask, lm_eval_score
from megatron_cpt.parallel.groups import first_on_rank_zero, random_states_kept
from megatron_cpt.tasks.task_files import Continuation, windows


def open_lm_eval(entries: Mapping[str, LmEvalSettings], hf_folder: Path, longest: int) -> dict[str, list[LmEvalTask]]:
    """The tasks of each entry, the same on every rank. Random states are left as they were.

    Args:
        longest: tokens of the model's input at most.
    Raises:
        BadInput: as evaluate_harness does, and for a task whose score could not be followed.
    """
    with random_states_kept():
        return {name: _open_entry(f"tasks.lm_eval.{name}:", entry, hf_folder, longest)
                for name, entry in entries.items()}  # fmt: skip


def _open_entry(where: str, settings: LmEvalSettings, hf_folder: Path, longest: int) -> list[LmEvalTask]:
    # The harness's own evaluator seeds before it opens: tasks that draw then ask the same questions.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    include = None if settings.include is None else Path(settings.include)
    _, tasks = _load_tasks(where, settings.tasks, include)
    refuse([fault for name, task in tasks.items() for fault in _faults(f"{where} {name}", task)])
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        task.set_config(
            key="num_fewshot", value=(own or 0) if own == 0 or settings.num_fewshot is None else settings.num_fewshot
        )
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    opened = []
    for name, task in tasks.items():
        try:
            task.build_all_requests(limit=settings.limit)
            opened.append(_lm_eval_task(name, task, settings.role, hf_folder, longest))
            # What cannot be scored is to be found now, not at an evaluation far into the run.
            lm_eval_score(opened[-1], *_guesses(len(opened[-1].requests)))
        # A task's own template or function can raise anything.
        except Exception as error:
            rule = f"cannot be asked or scored: {type(error).__name__}: {error}."
            raise BadInput(Fault(f"{where} {name}", rule, "Mend the task, or take it out.")) from error
    return opened


def _guesses(requests: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    return np.full(requests, -1.0), np.zeros(requests, dtype=np.bool_)


def _lm_eval_task(name: str, task: Any, role: str, hf_folder: Path, longest: int) -> LmEvalTask:
    requests = _requests_of(task.instances, hf_folder, longest)
    return LmEvalTask(
        name=name,
        role=role,
        metric=_metric_of(task) or "loss",
        num_fewshot=int(task.get_config("num_fewshot")),
        task=task,
        requests=tuple(request for of_one in requests for request in of_one),
        requests_of_instance=tuple(map(len, requests)),
    )


def _requests_of(instances: Sequence[Any], hf_folder: Path, longest: int) -> list[list[Continuation]]:
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


def _metric_of(task: Any) -> str | None:
    """The accuracy that counts: normalised where the harness reports it, else plain. None: the task has none."""
    means = [name for name, combined in task.aggregation().items() if combined is mean]
    return next((ours for theirs, ours in ACCURACIES.items() if theirs in means), None)


def _faults(value: str, task: Any) -> list[Fault]:
    if task.OUTPUT_TYPE != "multiple_choice" or _metric_of(task) is not None:
        return []
    rule = f"its metrics ({', '.join(task.aggregation())}) hold no accuracy that is a mean over questions."
    return [Fault(value, rule, "Score it with `megatron-cpt evaluate --lm-eval`.")]


SCORED = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""Kinds of tasks that are scored by log-likelihood."""


Scoring = Callable[[list[Continuation]], Likelihoods]
"""Scores continuations: log_likelihoods of a model."""


class MegatronLM(TemplateLM):
    """What the harness asks of a model: its texts become token ids, which `score` is asked."""

    def __init__(self, score: Scoring, hf_folder: Path, longest: int) -> None:
        """`longest`: tokens of the model's input at most."""
        super().__init__()
        self.tokenizer = transformers_tokenizer(hf_folder)
        self._score, self._longest = score, longest

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's results."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; None: with what the tokenizer adds, unless the text begins with the prefix token."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        most = self._longest + 1  # the last id is a label alone
        asked = [Continuation(tuple([*before, *ids][-most:]), min(len(ids), most - 1), False)
                 for _, before, ids in requests]  # fmt: skip
        found = self._score(asked)
        return list(zip(found.logs.tolist(), found.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, token by token."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        asked = [windows(ids, self._longest + 1, self.prefix_token_id) for ids in texts]
        flat = [window for of_text in asked for window in of_text]
        logs = iter(self._score(flat).logs.tolist())
        return [sum(next(logs) for _ in of_text) for of_text in asked]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Never reached: tasks that ask for it are refused before."""
        raise NotImplementedError("a model that only scores text was asked to write")


def evaluate_lm_eval(
    model: MegatronLM, names: Sequence[str], folder: Path | None, shots: int | None, limit: int | None
) -> dict[str, Any] | None:
    """The harness's own results on tasks of its own and of a folder, on the first rank; None on the others.

    Args:
        names: tasks, groups or tags.
        folder: further tasks, as the YAML files (and Python functions) that the harness reads.
        shots: solved examples before each question; None: what each task says.
        limit: questions of each task; None: all.
    Raises:
        BadInput: a task that is not there, whose data are not on this machine, or that wants text to be written.
    """
    manager, _ = _load_tasks("--lm-eval", names, folder)
    results = simple_evaluate(model, tasks=list(names), num_fewshot=shots, limit=limit, task_manager=manager)
    return None if results is None else dict(results)


def _load_tasks(where: str, names: Sequence[str], folder: Path | None) -> tuple[TaskManager, dict[str, Any]]:
    """The harness's task objects by name, first on rank 0, and what made them.

    Args:
        where: what names them, for messages.
        names: tasks, groups or tags, or paths of YAML files.
        folder: further tasks.
    Raises:
        BadInput: as evaluate_harness does.
    """
    try:
        with first_on_rank_zero():  # datasets are unpacked into a cache by the first that asks
            manager = task_manager(names, folder)
            tasks = dict(manager.load(list(names))["tasks"])
    # The harness and its data sets library raise several kinds for what is not there.
    except Exception as error:
        rule = f"cannot be opened: {type(error).__name__}: {error}."
        remedy = "Name tasks of lm-evaluation-harness or of the included folder, whose data are on this machine "
        remedy += "(HF_HUB_OFFLINE=0 lets it look on the network)."
        raise BadInput(Fault(f"{where} {' '.join(names)}", rule, remedy)) from error
    written = [name for name, task in tasks.items() if task.get_config("output_type") not in SCORED]
    if written:
        rule = "wants text to be written; tasks are scored by log-likelihood alone."
        raise BadInput(Fault(f"{where} {', '.join(written)}", rule, "Take it out, or evaluate the HF export."))
    return manager, tasks


def task_manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """The folder's tasks, and where they are not enough the harness's own, which take ten seconds to list."""
    include = None if folder is None else str(folder)
    manager = TaskManager(include_path=include, include_defaults=False)
    if {name for name in names if not Path(name).is_file()} <= set(manager.all_tasks):
        return manager
    return TaskManager(include_path=include, include_defaults=True)


def lm_eval_document(results: dict[str, Any]) -> dict[str, Any]:
    """What tasks.json keeps of the harness's results: scores, versions, shots, and each question's log-likelihoods."""
    kept = {name: results.get(name, {}) for name in ("results", "groups", "versions", "n-shot", "n-samples")}
    samples = {
        task: [{"doc_id": sample["doc_id"], "filter": sample["filter"], "responses": sample["filtered_resps"]}
               for sample in lines]
        for task, lines in results.get("samples", {}).items()
    }  # fmt: skip
    return {**kept, "samples": samples}


def lm_eval_table(results: dict[str, Any]) -> str:
    """The harness's own tables: tasks, then groups where there are some."""
    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables)
