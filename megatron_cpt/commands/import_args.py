"""`megatron-cpt import-args SOURCE -- [ARGUMENT...]`: a run.yaml from what another program was started with.

That are Megatron-LM's arguments of pretrain_gpt.py: in a shell script, which is read and not run; in a file; in the
`args` of a torch_dist checkpoint, whose run is continued, or with `-- --finetune` begun anew; or after `--`. Or they
are a YAML or JSON file of LLaMA-Factory, axolotl, Hugging Face's Trainer, Megatron-Bridge, NeMo or OLMo-core, which is
recognised by its content. What stands after `--` holds over what a source says: arguments, or KEY=VALUE with the keys
of the file.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_cpt.commands.parsers import add_assume, assumed_tokens, command_parser
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.config_file import PROGRAMS, config_path
from megatron_cpt.planning.import_arguments import import_arguments
from megatron_cpt.planning.import_config import import_config
from megatron_cpt.planning.launch_script import read_script, unknown_words
from megatron_cpt.planning.megatron_lm_arguments import RELEASE, Given, read_words, refuse_unknown
from megatron_cpt.planning.megatron_lm_checkpoint import Progress, iteration_folder, read_checkpoint
from megatron_cpt.planning.outcomes import Imported, ImportOptions, Outcome, Result, counted, replay_note
from megatron_cpt.planning.run_file import next_lines, run_text
from megatron_cpt.runs.folder import ExitCode, refuse_to_replace, write_durably

_TITLES: dict[Result, str] = {
    "taken": "taken: the key has the value",
    "equal": "equal: nothing of it changes what is trained",
    "refused": "refused: it changes what is trained, and the run.yaml does not have it",
    "unknown": "unknown",
}
_WIDTH = 120


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "import-args",
        __doc__,
        "megatron-cpt import-args pretrain.sh --model Llama-3-8B --replay data/general --output imported.yaml",
        "megatron-cpt import-args --model Llama-3-8B --output short.yaml -- --train-iters 1000 --lr 3e-5 "
        "--global-batch-size 64 --micro-batch-size 1 --seq-length 64 --bf16 --data-path data/medicine",
        "megatron-cpt import-args llama_factory.yaml --model Llama-3-8B --nproc 8 --assume medicine=2B "
        "--output medicine.yaml -- learning_rate=2e-5",
    )
    top.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help="script, file, configuration or checkpoint")
    top.add_argument("parameters", nargs="*", metavar="PARAMETER", help="what the script is called with ($1, ...)")
    top.add_argument("--output", type=Path, default=Path("run.yaml"), metavar="FILE", help="default: run.yaml")
    top.add_argument(
        "--model",
        metavar="HF_DIR",
        help="Hugging Face folder, or a checkpoint of `convert from-megatron` (default: the folder that is named)",
    )
    top.add_argument("--folder", metavar="RUN", help="run folder (default: that of the other program, with -cpt)")
    top.add_argument(
        "--replay",
        action="extend",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="datasets of the blend with text like pretraining's",
    )
    top.add_argument("--nproc", type=int, metavar="N", help="ranks of the run (default: what torchrun is told)")
    add_assume(top, "tokens of datasets that are not there yet, for a length in epochs: medicine=5B")
    top.add_argument(
        "--from", dest="program", choices=list(PROGRAMS), help="program of a configuration (default: by its content)"
    )
    return top


def main(arguments: list[str]) -> int:
    """Writes the file and prints what became of each argument or key. Raises BadInput where there is no run in them."""
    own, passed = _divided(arguments)
    args = parser().parse_intermixed_args(own)
    refuse_to_replace([args.output])
    if args.source is None and not passed:
        rule = "there is neither a script, a configuration, a checkpoint nor an argument after `--`."
        raise BadInput(Fault("import-args", rule, "Name one: `megatron-cpt import-args pretrain.sh`."))
    imported, ranks, notes, origin = _import(args, passed)
    write_durably(args.output, run_text([*_header(args, origin, imported)], imported.entries))
    print("\n".join(_table(imported.outcomes)))
    numbers = ", ".join(f"{number} {result}" for result, number in counted(imported.outcomes).items())
    print(f"\nwrote {args.output}: {numbers}")
    for note in filter(None, [*notes, replay_note(imported.entries)]):
        print(f"note: {note}")
    print("docs/migrating.md tells what differs in meaning.")
    print("\n".join(next_lines(args.output, ranks or 8, assumed_tokens(args.assume))))
    return ExitCode.DONE


def _import(args: argparse.Namespace, passed: Sequence[str]) -> tuple[Imported, int | None, list[str], str]:
    """The run, its ranks where they are known, what could not be read, and the program it comes from."""
    if args.nproc is not None and args.nproc < 1:
        raise BadInput(Fault(f"--nproc {args.nproc}", "is less than 1.", "Give the ranks of the run."))
    options = ImportOptions(args.model, args.folder, args.replay, args.nproc, assumed_tokens(args.assume))
    path = config_path(args.source) if args.source is not None else None
    if path is not None or (args.program is not None and args.source is not None):
        config, imported, ranks = import_config(path or args.source, passed, options, args.program)
        return imported, ranks, [], f"{config.program.title} ({config.program.version})"
    notes: list[str] = []
    try:
        given, told, progress = _read(args, passed, notes)
        ranks = args.nproc or told
        imported = import_arguments(given, replace(options, ranks=ranks), progress=progress)
    except BadInput:
        # What is missing may be what was left out.
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        raise
    return imported, ranks, notes, f"Megatron-LM ({RELEASE})"


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before and after `--`."""
    words = list(arguments)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def _read(
    args: argparse.Namespace, passed: Sequence[str], notes: list[str]
) -> tuple[list[Given], int | None, Progress | None]:
    """The arguments, the ranks that a launcher starts, and how far the run had come.

    With Megatron-LM's `--finetune` behind the dashes it begins anew, as there.

    Args:
        notes: gets what was left out of a script, or assumed.
    """
    ranks, progress = None, None
    found: list[Given] = []
    if args.source is not None and args.source.is_dir():
        checkpoint = read_checkpoint(iteration_folder(args.source))
        found, progress, ranks = list(checkpoint.arguments), checkpoint.progress, checkpoint.ranks
    elif args.source is not None:
        if args.source.exists() and not args.source.is_file():
            raise BadInput(Fault(str(args.source), "is no regular file.", "Name a script, a file, or a checkpoint."))
        try:
            text = args.source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            remedy = "Name a script, a file with arguments, or a checkpoint."
            raise BadInput(Fault(str(args.source), f"cannot be read: {reason}.", remedy)) from error
        launch = read_script(text, str(args.source), args.parameters)
        notes += launch.unread
        ranks, found = launch.ranks, read_words(launch.arguments, launch.unknown)
        values = {value for each in found for value in (each.flag, *each.values)}
        notes += [
            f"{why}: the arguments that it gives are left out; give them after `--`"
            for word, why in launch.unknown.items()
            if word not in values and not word.startswith("-")
        ]
    later = read_words(passed, unknown_words(passed, "after `--` it has to be the value itself"))
    replaced = {each.argument.flag for each in later if each.argument}
    kept = [each for each in found if each.argument is None or each.argument.flag not in replaced]
    refuse_unknown([*kept, *later])
    return [*kept, *later], ranks, None if "--finetune" in replaced else progress


def _header(args: argparse.Namespace, origin: str, imported: Imported) -> Iterator[str]:
    """The comment at the top of the file, with what it does not have."""
    yield f"A run of continual pretraining, written by `megatron-cpt import-args` from {args.source or 'a list'}."
    yield f"docs/migrating.md tells what differs in meaning from {origin}."
    lacking = [outcome for outcome in imported.outcomes if outcome.result in ("refused", "unknown")]
    if lacking:
        yield ""
        yield "Not in this file:"
    for outcome in lacking:
        yield from textwrap.wrap(
            f"{outcome.text}: {outcome.words}", _WIDTH - 4, subsequent_indent="  ", break_on_hyphens=False
        )


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What became of each argument or key, those that need a look last."""
    for result, title in _TITLES.items():
        rows = [outcome for outcome in outcomes if outcome.result == result]
        if not rows:
            continue
        yield f"\n{title}"
        width = min(44, max(len(outcome.text) for outcome in rows))
        for outcome in rows:
            first = f"  {outcome.text:<{width}}  "
            lines = textwrap.wrap(outcome.words, _WIDTH - width - 4, break_on_hyphens=False) or [""]
            if len(outcome.text) > width:
                yield f"  {outcome.text}"
                first = " " * (width + 4)
            yield first + lines[0]
            yield from (" " * (width + 4) + line for line in lines[1:])
