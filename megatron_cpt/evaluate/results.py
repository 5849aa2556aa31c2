"""Scores of tasks as people and programs read them: a table, and the content of tasks.json."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron_cpt.evaluate.tasks import ChoiceScore, Rate, TaskScore, TextScore
from megatron_cpt.tasks.task import Task


def document(
    model: str,
    settings: Mapping[str, Any],
    tasks: Sequence[Task],
    scores: Mapping[str, TaskScore],
    group_rates: Mapping[str, Rate],
) -> dict[str, Any]:
    """The content of tasks.json."""
    files = dict.fromkeys(task.file for task in tasks)
    return {
        "model": model,
        "settings": dict(settings),
        "files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "tasks": {
            task.name: {"shots": task.shots, "truncated": task.truncated, "identity": task.identity}
            | asdict(scores[task.name])
            for task in tasks
        },
        "groups": {name: asdict(rate) for name, rate in group_rates.items()},
    }


def table(tasks: Sequence[Task], scores: Mapping[str, TaskScore], group_rates: Mapping[str, Rate]) -> str:
    """One line a task, questions before texts, then groups. A star marks the accuracy that counts."""
    width = max(map(len, [task.name for task in tasks] + list(group_rates) + ["group"]))
    cut = {task.name: f"  ({task.truncated:,} cut at the beginning)" if task.truncated else "" for task in tasks}
    asked = {name: one for name, one in scores.items() if isinstance(one, ChoiceScore)}
    read = {name: one for name, one in scores.items() if isinstance(one, TextScore)}
    lines = []
    if asked:
        lines.append(f"{'task':<{width}}  questions  accuracy            normalized          chance")
    for name, choice in asked.items():
        plain = _shown(choice.accuracy, choice.metric == "accuracy")
        normalized = _shown(choice.normalized_accuracy, choice.metric != "accuracy")
        rates = f"{plain:<18}  {normalized:<18}"
        lines.append(f"{name:<{width}}  {choice.questions:>9,}  {rates}  {choice.chance:.1%}{cut[name]}")
    if read:
        lines.append(f"{'task':<{width}}      texts  nats/token  per word  per byte  bits/byte")
    for name, text in read.items():
        lines.append(
            f"{name:<{width}}  {text.texts:>9,}  {text.loss:>10.4f}  {text.word_perplexity:>8.2f}"
            f"  {text.byte_perplexity:>8.3f}  {text.bits_per_byte:>9.4f}{cut[name]}"
        )
    if group_rates:
        lines.append(f"{'group':<{width}}  mean")
    lines += [f"{name:<{width}}  {_shown(rate, False)}" for name, rate in group_rates.items()]
    return "\n".join(lines)


def _shown(rate: Rate, counts: bool) -> str:
    error = "" if rate.standard_error is None else f" ± {rate.standard_error:.2%}"
    return f"{rate.value:.2%}{error}{' *' if counts else ''}"
