"""`megatron-cpt evaluate CHECKPOINT_OR_HF --tasks FILE...`: downstream tasks on the Megatron model itself."""

import argparse
import os
import subprocess
from pathlib import Path

from megatron_cpt.checkpoint.hf_convert import load_model
from megatron_cpt.checkpoint.integrity import is_complete
from megatron_cpt.commands.train import environment, launcher
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import ParallelSettings, TaskSettings
from megatron_cpt.corpus.tokenize import Tokenizer
from megatron_cpt.evaluate.results import document, table
from megatron_cpt.evaluate.tasks import group_rates, score_tasks
from megatron_cpt.families.shape import ModelShape, read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.runs.durable import write_json
from megatron_cpt.runs.status import ExitCode
from megatron_cpt.tasks.benchmarks import GROUPS
from megatron_cpt.tasks.task import Task, open_tasks


def main(arguments: list[str]) -> int:
    """Scores the tasks, under torchrun where N is more than 1, prints a table and writes tasks.json.

    Bad input is found before any process starts.
    """
    words = _parser().parse_intermixed_args(arguments)
    hf_folder = words.source / "hf" if is_complete(words.source) else words.source
    shape, tokenizer = read_shape(hf_folder), Tokenizer.load(hf_folder)
    tasks = read_tasks(words, tokenizer, shape)
    refuse(_layout_faults(words))
    if words.nproc > 1 and "WORLD_SIZE" not in os.environ:
        command = [*launcher(words.nproc), "-m", "megatron_cpt.commands.dispatch", "evaluate", *for_ranks(words)]
        return subprocess.call(command, env=environment(words.nproc))
    groups.join_world()
    try:
        groups.divide_world(ParallelSettings(tensor=words.tensor, pipeline=words.pipeline))
        model = load_model(words.source, shape, "fp32")
        scores = score_tasks(model, tasks, shape.longest_sequence, words.micro_batch_size)
        if groups.rank() == 0:
            means = group_rates(GROUPS, scores)
            settings = {
                "delimiter": words.delimiter,
                "precision": "fp32",
                "begins_with_bos": tokenizer.bos_for("auto") is not None,
                "tokenizer": tokenizer.identity,
            }
            output = words.output or Path("tasks.json")
            write_json(output, document(str(words.source), settings, tasks, scores, means))
            print(table(tasks, scores, means))
            print(f"tasks: {output}")
    finally:
        groups.leave_world()
    return ExitCode.DONE


def for_ranks(words: argparse.Namespace) -> list[str]:
    """The command line again, for each rank. It has no --nproc, which torchrun would take for its own."""
    names = ("output", "delimiter", "shots", "examples", "limit", "micro_batch_size", "tensor", "pipeline")
    named = {name: getattr(words, name) for name in names}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in named.items() if value is not None]
    return [str(words.source), *options, "--tasks", *map(str, words.tasks)]


def read_tasks(words: argparse.Namespace, tokenizer: Tokenizer, shape: ModelShape) -> list[Task]:
    """The tasks of all files. Raises BadInput, also for a task that is in two files."""
    tasks: dict[str, Task] = {}
    for path in words.tasks:
        settings = TaskSettings(
            path=str(path),
            shots=words.shots,
            examples=words.examples,
            delimiter=words.delimiter,
            limit=words.limit,
        )
        for task in open_tasks(path.stem, settings, tokenizer, shape.longest_sequence):
            if task.name in tasks:
                rule = f"holds task {task.name!r}, which another file holds too."
                raise BadInput(Fault(str(path), rule, "Give one file of each task."))
            tasks[task.name] = task
    return list(tasks.values())


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
        "--tasks", type=Path, nargs="+", required=True, metavar="FILE", help="JSONL files of questions or of texts"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: tasks.json here)")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="solved examples before each question")
    parser.add_argument("--examples", metavar="FILE", help="where they come from (default: the task's own questions)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task alone")
    parser.add_argument("--delimiter", default=" ", help="between question and choice (default: a blank)")
    parser.add_argument("--micro-batch-size", type=int, default=8, metavar="N", help="choices at a time (default 8)")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor-parallel size (default 1)")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline stages (default 1)")
    return parser
