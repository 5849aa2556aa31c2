"""`megatron-cpt evaluate CHECKPOINT_OR_HF --tasks FILE... --lm-eval TASK...`: downstream tasks on the sharded model."""

import argparse
import importlib.util
import os
from functools import partial
from pathlib import Path

from megatron_cpt.checkpoint.convert import load_model, newest_of_run
from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.commands.ranks import add_ranks, in_ranks, is_rank, rank_faults
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import ParallelSettings, TaskSettings
from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.evaluate.scoring import counted_accuracies, document, group_accuracies, score_tasks, table
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.runs.checkpoint_state import hf_folder_of
from megatron_cpt.runs.folder import ExitCode, refuse_to_replace, write_json
from megatron_cpt.runs.processes import OFFLINE
from megatron_cpt.tasks.task_files import GROUPS, Task, open_tasks, task_row_faults
from megatron_cpt.tokenizer.tokenizer import Tokenizer


def main(arguments: list[str]) -> int:
    """Scores the tasks, under torchrun where N is more than 1, prints a table and writes tasks.json.

    Bad input is found before any process starts.
    """
    args = parser().parse_intermixed_args(arguments)
    named, args.source = args.source, newest_of_run(args.source)
    hf_folder = hf_folder_of(args.source)
    shape, tokenizer = read_shape(hf_folder), Tokenizer.load(hf_folder)
    tasks = _read_tasks(args, tokenizer, shape)
    without_rows = [fault for task in tasks for fault in task_row_faults(task, shape.vocabulary)]
    refuse([*rank_faults(args), *_harness_faults(args), *without_rows])
    output = args.output or Path("tasks.json")
    refuse_to_replace([output])
    # The harness's libraries read at their import whether the network may be used.
    offline = not args.lm_eval or OFFLINE.keys() <= os.environ.keys()
    if not is_rank() and (args.nproc > 1 or not offline):
        # One checkpoint for all ranks: a run that goes on may save another.
        words = [str(args.source) if Path(word) == named else word for word in arguments]
        quiet = {"TOKENIZERS_PARALLELISM": "false"}  # tokenizers warn of processes that fork after them
        return in_ranks("evaluate", words, args.nproc, OFFLINE | quiet | os.environ)
    groups.init_process_group()
    try:
        groups.init_model_parallel(ParallelSettings(tensor=args.tensor, pipeline=args.pipeline))
        model = load_model(args.source, shape, "fp32")
        scores = score_tasks(model, tasks, shape.max_positions, args.micro_batch_size) if tasks else {}
        means = group_accuracies(GROUPS, counted_accuracies(scores))
        settings = {
            "delimiter": args.delimiter,
            "precision": "fp32",
            "begins_with_bos": tokenizer.bos_for("auto") is not None,
            "tokenizer": tokenizer.identity,
        }
        written, tables = document(str(args.source), settings, tasks, scores, means), [table(tasks, scores, means)]
        if args.lm_eval:
            # An optional library.
            from megatron_cpt.evaluate import lm_eval  # noqa: PLC0415

            longest = shape.max_positions
            score = partial(log_likelihoods, model, micro_batch_size=args.micro_batch_size, longest=longest)
            asked = lm_eval.MegatronLM(score, hf_folder, longest)
            results = lm_eval.evaluate_lm_eval(asked, args.lm_eval, args.include, args.num_fewshot, args.limit)
            if results is not None:
                written["harness"] = lm_eval.lm_eval_document(results)
                tables.append(lm_eval.lm_eval_table(results))
        if groups.rank() == 0:
            write_json(output, written)
            print("\n".join(filter(None, tables)))
            print(f"tasks: {output}")
    finally:
        groups.destroy()
    return ExitCode.DONE


def _read_tasks(args: argparse.Namespace, tokenizer: Tokenizer, shape: ModelShape) -> list[Task]:
    """The tasks of all files. Raises BadInput, also for a task that is in two files."""
    tasks: dict[str, Task] = {}
    for path in args.tasks:
        settings = TaskSettings(
            path=str(path),
            num_fewshot=args.num_fewshot or 0,
            fewshot_file=args.fewshot_file,
            delimiter=args.delimiter,
            limit=args.limit,
        )
        for task in open_tasks(path.stem, settings, tokenizer, shape.max_positions):
            if task.name in tasks:
                rule = f"holds task {task.name!r}, which another file holds too."
                raise BadInput(Fault(str(path), rule, "Give one file of each task."))
            tasks[task.name] = task
    return list(tasks.values())


def _harness_faults(args: argparse.Namespace) -> list[Fault]:
    if not args.tasks and not args.lm_eval:
        return [Fault("--tasks and --lm-eval", "are both missing: there is nothing to score.", "Give one of them.")]
    if args.lm_eval and importlib.util.find_spec("lm_eval") is None:
        rule = "needs lm-evaluation-harness, which is not installed."
        return [Fault("--lm-eval", rule, "Install it: pip install 'megatron-cpt[eval]'.")]
    return []


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "evaluate",
        __doc__,
        "megatron-cpt evaluate runs/medicine --tasks questions.jsonl",
    )
    top.add_argument(
        "source",
        type=Path,
        metavar="CHECKPOINT_OR_HF",
        help="RUN/checkpoints/step-..., RUN for its newest, or a HF folder",
    )
    top.add_argument(
        "--tasks",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSONL files of questions or of texts",
    )
    top.add_argument(
        "--lm-eval",
        action="extend",
        nargs="+",
        default=[],
        metavar="TASK",
        help="tasks of lm-evaluation-harness (needs `.[eval]`)",
    )
    top.add_argument("--include", type=Path, metavar="DIR", help="folder of further harness tasks; its code runs")
    top.add_argument("--output", type=Path, help="file to write (default: tasks.json here)")
    top.add_argument(
        "--num-fewshot",
        type=int,
        metavar="N",
        help="solved examples before each question (default: 0, or what a harness task says)",
    )
    top.add_argument("--fewshot-file", metavar="FILE", help="where they come from (default: the task's own questions)")
    top.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task alone")
    top.add_argument("--delimiter", default=" ", help="between question and choice (default: a blank)")
    top.add_argument("--micro-batch-size", type=int, default=8, metavar="N", help="choices at a time (default 8)")
    add_ranks(top)
    return top
