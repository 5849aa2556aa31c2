"""`megatron-cpt evaluate CHECKPOINT_OR_HF --tasks FILE...`: multiple-choice tasks on the Megatron model itself."""

import argparse
import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_cpt.checkpoint.hf_convert import load_model
from megatron_cpt.checkpoint.integrity import is_complete
from megatron_cpt.commands.train import environment, launcher
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.corpus.tokenize import Tokenizer
from megatron_cpt.evaluate.questions import Question, read_questions
from megatron_cpt.evaluate.tasks import Rate, TaskScore, score_tasks
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.runs.durable import write_json
from megatron_cpt.runs.status import ExitCode


def main(arguments: list[str]) -> int:
    """Scores the tasks, under torchrun where N is more than 1, prints a table and writes tasks.json.

    Bad input is found before any process starts.
    """
    words = _parser().parse_intermixed_args(arguments)
    tasks = read_tasks(words.tasks)
    hf_folder = words.source / "hf" if is_complete(words.source) else words.source
    shape, tokenizer = read_shape(hf_folder), Tokenizer.load(hf_folder)
    refuse(_layout_faults(words))
    if words.nproc > 1 and "WORLD_SIZE" not in os.environ:
        command = [*launcher(words.nproc), "-m", "megatron_cpt.commands.dispatch", "evaluate", *for_ranks(words)]
        return subprocess.call(command, env=environment(words.nproc))
    groups.join_world()
    try:
        groups.divide_world(ParallelSettings(tensor=words.tensor, pipeline=words.pipeline))
        model = load_model(words.source, shape, "fp32")
        scores = score_tasks(model, tasks, tokenizer, shape.max_positions, words.micro_batch_size, words.delimiter)
        if groups.rank() == 0:
            output = words.output or Path("tasks.json")
            write_json(output, document(words, tokenizer, scores))
            print(table(scores))
            print(f"tasks: {output}")
    finally:
        groups.leave_world()
    return ExitCode.DONE


def for_ranks(words: argparse.Namespace) -> list[str]:
    """The command line again, for each rank. It has no --nproc, which torchrun would take for its own."""
    named = {name: getattr(words, name) for name in ("output", "delimiter", "micro_batch_size", "tensor", "pipeline")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in named.items() if value is not None]
    return [str(words.source), *options, "--tasks", *map(str, words.tasks)]


def read_tasks(paths: Sequence[Path]) -> dict[str, list[Question]]:
    """The tasks of several files by name. Raises BadInput, also for a task that is in two files."""
    tasks: dict[str, list[Question]] = {}
    for path in paths:
        for name, questions in read_questions(path).items():
            if name in tasks:
                rule = f"holds task {name!r}, which another file holds too."
                raise BadInput(Fault(str(path), rule, "Give one file of each task."))
            tasks[name] = questions
    return tasks


def document(words: argparse.Namespace, tokenizer: Tokenizer, scores: dict[str, TaskScore]) -> dict[str, Any]:
    """The content of tasks.json."""
    return {
        "model": str(words.source),
        "settings": {
            "delimiter": words.delimiter,
            "shots": 0,
            "precision": "fp32",
            "begins_with_bos": tokenizer.bos_for("auto") is not None,
            "tokenizer": tokenizer.identity,
        },
        "files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in words.tasks},
        "tasks": {name: asdict(score) for name, score in scores.items()},
    }


def table(scores: dict[str, TaskScore]) -> str:
    """One line a task."""
    width = max(map(len, [*scores, "task"]))
    lines = [f"{'task':<{width}}  questions  accuracy           normalized         chance"]
    for name, score in scores.items():
        rates = f"{_shown(score.accuracy):<17}  {_shown(score.normalized_accuracy):<17}"
        cut = f"  ({score.truncated} prompts cut)" if score.truncated else ""
        lines.append(f"{name:<{width}}  {score.questions:>9,}  {rates}  {score.chance:.1%}{cut}")
    return "\n".join(lines)


def _shown(rate: Rate) -> str:
    return f"{rate.value:.2%}" + ("" if rate.standard_error is None else f" ± {rate.standard_error:.2%}")


def _layout_faults(words: argparse.Namespace) -> list[Fault]:
    ranks = int(os.environ.get("WORLD_SIZE", words.nproc))
    if words.tensor * words.pipeline and ranks % (words.tensor * words.pipeline) == 0:
        return []
    rule = f"cannot be shared by {ranks} ranks: their product must divide the number of ranks."
    return [Fault(f"--tensor {words.tensor} --pipeline {words.pipeline}", rule, "Give other sizes, or --nproc.")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megatron-cpt evaluate", description=__doc__)
    parser.add_argument(
        "source", type=Path, metavar="CHECKPOINT_OR_HF", help="RUN/checkpoints/step-..., or a HF folder"
    )
    parser.add_argument(
        "--tasks", type=Path, nargs="+", required=True, metavar="FILE", help="JSONL files of multiple-choice questions"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: tasks.json here)")
    parser.add_argument("--delimiter", default=" ", help="between question and choice (default: a blank)")
    parser.add_argument("--micro-batch-size", type=int, default=8, metavar="N", help="choices at a time (default 8)")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor-parallel size (default 1)")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline stages (default 1)")
    return parser
