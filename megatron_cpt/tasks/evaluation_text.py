"""Evaluation items as `prepare --decontaminate` looks for them: tasks of JSONL files, documents of datasets."""

from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.indexed import idx_path
from megatron_cpt.corpus.manifest import file_sha256
from megatron_cpt.preparation.contamination import EvaluationItem, EvaluationSet, dataset_items
from megatron_cpt.tasks.questions import Item, Text, read_items


def evaluation_sets(paths: Sequence[str]) -> list[EvaluationSet]:
    """A set for each task of the files, and one for each dataset, of which the prefix is given.

    Raises BadInput listing every path that is neither, and as read_items does.
    """
    sets: list[EvaluationSet] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            sets += [dataset_items(path)] if idx_path(path).is_file() else _tasks(Path(path))
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(*faults)
    return sets


def _tasks(path: Path) -> list[EvaluationSet]:
    tasks = read_items(path)
    sha256 = file_sha256(path)
    return [
        EvaluationSet(
            name=task or path.name.split(".")[0],
            source=str(path.resolve()),
            sha256=sha256,
            items=tuple(EvaluationItem(item.id, _texts(item)) for item in items),
        )
        for task, items in tasks.items()
    ]


def _texts(item: Item) -> tuple[str, ...]:
    """A question with each of its choices, so that an answer is found where it follows its question."""
    if isinstance(item, Text):
        return (item.text,)
    return tuple(f"{item.prompt}\n{choice}" for choice in item.choices)
