"""The Megatron model as lm-evaluation-harness sees it, on every layout of tensor, pipeline and data parallel ranks.

Every rank runs the harness on its own, with the same seeds, so that all ask the same questions in the same order; the
ranks meet in the scoring. Tokens are those of transformers' tokenizer, as in the harness's own model of Hugging Face
folders. What the harness wants written (`generate_until`) is refused: this model scores text, it does not write.

Needs the optional library lm-eval; nothing else imports this file before it is asked for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from megatron_cpt.checkpoint.reference import transformers_tokenizer
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.evaluate.likelihood import Likelihoods
from megatron_cpt.parallel.collectives import first_on_rank_zero
from megatron_cpt.tasks.requests import Continuation, windows

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


def evaluate_harness(
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
    manager, _ = load_tasks("--harness", names, folder)
    results = simple_evaluate(model, tasks=list(names), num_fewshot=shots, limit=limit, task_manager=manager)
    return None if results is None else dict(results)


def load_tasks(where: str, names: Sequence[str], folder: Path | None) -> tuple[TaskManager, dict[str, Any]]:
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


def harness_document(results: dict[str, Any]) -> dict[str, Any]:
    """What tasks.json keeps of the harness's results: scores, versions, shots, and each question's log-likelihoods."""
    kept = {name: results.get(name, {}) for name in ("results", "groups", "versions", "n-shot", "n-samples")}
    samples = {
        task: [{"doc_id": sample["doc_id"], "filter": sample["filter"], "responses": sample["filtered_resps"]}
               for sample in lines]
        for task, lines in results.get("samples", {}).items()
    }  # fmt: skip
    return {**kept, "samples": samples}


def harness_table(results: dict[str, Any]) -> str:
    """The harness's own tables: tasks, then groups where there are some."""
    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables)
