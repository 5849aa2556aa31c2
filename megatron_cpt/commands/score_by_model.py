"""The part of `megatron-cpt score` that needs a model: `--by model --checkpoint CHECKPOINT_OR_HF`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.checkpoint.convert import load_model, newest_of_run
from megatron_cpt.commands.ranks import in_ranks, is_rank, rank_faults
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.evaluate.score_documents import ScoringModel, score_documents
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.planning.checks import row_faults
from megatron_cpt.quality.score import Scored, already
from megatron_cpt.runs.checkpoint_state import hf_folder_of
from megatron_cpt.tokenizer.tokenizer import Tokenizer


def score_by_model(
    args: argparse.Namespace, arguments: Sequence[str], name: str, datasets: Sequence[SelectedDataset]
) -> list[Scored] | int:
    """Scores under torchrun where --nproc is more than 1, and returns its exit code then."""
    if args.checkpoint is None:
        raise BadInput(Fault("--by model", "needs a model.", "Give --checkpoint CHECKPOINT_OR_HF."))
    refuse(rank_faults(args))
    source = newest_of_run(Path(args.checkpoint))
    hf_folder = hf_folder_of(source)
    shape, tokenizer = read_shape(hf_folder), Tokenizer.load(hf_folder)
    if datasets[0].manifest.tokenizer not in (None, tokenizer.identity):
        rule = f"has another tokenizer than {datasets[0].prefix}."
        raise BadInput(Fault(f"--checkpoint {source}", rule, "Prepare the text with the model's own tokenizer."))
    model, rows = f"--checkpoint {source}", shape.vocabulary
    refuse([fault for part in datasets for fault in row_faults(str(part.prefix), part.manifest, model, rows)])
    how = {"by": "model", "precision": args.precision, "files": _files(source), "longest": shape.max_positions}
    already(datasets, name, how, args.overwrite)
    if args.nproc > 1 and not is_rank():
        # One checkpoint for all ranks: a run that goes on may save another. The last word of a flag counts.
        return in_ranks("score", [*arguments, f"--checkpoint={source}"], args.nproc)
    groups.init_process_group()
    try:
        groups.init_model_parallel(ParallelSettings(tensor=args.tensor, pipeline=args.pipeline))
        loaded = load_model(source, shape, args.precision)
        scorer = ScoringModel(loaded, args.micro_batch_size, shape.max_positions, tokenizer.vocabulary_size)
        done = score_documents(scorer, datasets, name, how, args.overwrite)
        return done if groups.rank() == 0 else []
    finally:
        groups.destroy()


def _files(source: Path) -> list[list[str | int]]:
    """Name, size and time of the files that hold the weights: another training is another score."""
    files = sorted(file for file in source.rglob("*") if file.suffix in (".safetensors", ".distcp"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
