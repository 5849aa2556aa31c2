"""What scripts use, by the names that stay: `from megatron_cpt import api`.

Importing it imports no torch; conversions do when they are called. Every error that a user can cause is one of
`BadInput`, `IntegrityFault`, `NumericsFault`, `StorageFault` and `WorkerDied`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, NumericsFault, StorageFault, WorkerDied
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import ParallelSettings, Precision, RunConfig
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import verify_dataset
from megatron_cpt.gap.curves import LossCurve, loss_curves
from megatron_cpt.gap.figures import GapFigures, gap_figures
from megatron_cpt.mixture.blend import BlendPlan
from megatron_cpt.mixture.order import Located, SampleOrder
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Prepared, prepare
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.records import read_records
from megatron_cpt.scaling_law.continual import LAWS
from megatron_cpt.scaling_law.curves import Curve, read_csv, read_run
from megatron_cpt.scaling_law.fit import Fit, fit_law

if TYPE_CHECKING:
    from megatron_cpt.checkpoint.convert import LogitDifference

__all__ = [
    "LAWS",
    "BadInput",
    "BlendPlan",
    "Curve",
    "Fault",
    "Fit",
    "GapFigures",
    "IndexedDataset",
    "IntegrityFault",
    "Located",
    "LossCurve",
    "NumericsFault",
    "PrepareSettings",
    "Prepared",
    "RunConfig",
    "RunPlan",
    "SampleOrder",
    "StorageFault",
    "WorkerDied",
    "convert_from_hf",
    "convert_to_hf",
    "fit_law",
    "gap_figures",
    "gap_of_run",
    "load_config",
    "make_plan",
    "open_dataset",
    "prepare",
    "read_csv",
    "read_run",
    "verify_conversion",
]


def open_dataset(prefix: str | Path, verify: bool = False) -> IndexedDataset:
    """A dataset of Megatron's format, `PREFIX.bin` and `PREFIX.idx`, mapped into memory.

    Args:
        prefix: path without `.bin` and `.idx`.
        verify: reads every byte and compares it with the hashes of `PREFIX.manifest.json`.
    Raises:
        BadInput: there is no such dataset or, with `verify`, no manifest.
        IntegrityFault: the files are not what was written.
    """
    if verify:
        verify_dataset(prefix)
    return IndexedDataset(prefix)


def gap_of_run(folder: str | Path) -> dict[str, GapFigures]:
    """The figures of the stability gap of each validation set of a run folder, by the name of the set.

    Losses are in nats per token, positions in tokens of the run.

    Raises:
        BadInput: the folder has no records.
        IntegrityFault: the records are damaged.
    """
    return {curve.name: gap_figures(curve) for curve in loss_curves(read_records(RunFolder(folder).records))}


def convert_from_hf(hf_folder: str | Path, output: str | Path) -> str:
    """Writes a Hugging Face folder as a checkpoint of weights alone, which loads into any layout.

    A few tensors are in memory at once, never the model. One process calls it, or rank 0 of a run's ranks alone.

    Returns:
        How many tensors were rounded, and from which dtype to which; empty where none was.
    Raises:
        BadInput: there is something at `output`, or the folder is of no model that is known.
        IntegrityFault: a torn or altered file.
    """
    from megatron_cpt.checkpoint.convert import checkpoint_from_hf

    with _one_process():
        return checkpoint_from_hf(Path(hf_folder), Path(output))


def convert_to_hf(
    checkpoint: str | Path, output: str | Path, dtype: str | None = None, hf_config: str | Path | None = None
) -> str:
    """Writes the model of a checkpoint as a Hugging Face folder.

    Args:
        checkpoint: a checkpoint, or a run folder: its newest. With `hf_config`, a torch_dist checkpoint of Megatron-LM
            or Megatron-Bridge.
        dtype: of the weights: `float32`, `bfloat16` or `float16`. None: each tensor's in the folder that the model
            came from.
        hf_config: the folder whose config.json and tokenizer a foreign checkpoint has; of a model that reads more than
            text, the folder that has the tensors beside its language model now.
    Returns:
        How many tensors were rounded, and from which dtype to which; empty where none was.
    Raises:
        BadInput: it is no complete checkpoint, its tensors are not those of the config, or there is something at
            `output`.
        IntegrityFault: its bytes are not those that were written.
    """
    from megatron_cpt.checkpoint.convert import hf_from_checkpoint, hf_from_megatron, is_own_with_others

    with _one_process():
        if hf_config is None or is_own_with_others(Path(checkpoint)):
            others = None if hf_config is None else Path(hf_config)
            return hf_from_checkpoint(Path(checkpoint), Path(output), dtype, others=others)
        return hf_from_megatron(Path(checkpoint), Path(hf_config), Path(output), dtype)


def verify_conversion(
    source: str | Path, hf_folder: str | Path, precision: Precision = "fp32"
) -> "tuple[LogitDifference, LogitDifference | None]":
    """Compares Megatron-Core's logits with those of transformers in fp32, on the same random tokens.

    Args:
        source: what Megatron-Core loads: a checkpoint, a run folder (its newest checkpoint) or a Hugging Face folder.
        hf_folder: what transformers loads.
        precision: Megatron-Core's arithmetic. In fp32 two models that are the same differ by rounding alone.
    Returns:
        The difference of Megatron-Core from transformers in fp32 (`largest` and `mean` absolute difference of a logit,
        `divergence` in nats, `same_choice` from 0 to 1, over so many `positions`) and, with bf16, that of transformers'
        own bf16.
    Raises:
        BadInput: there is no model at `source` or `hf_folder`.
        IntegrityFault: its bytes are not those that were written.
    """
    from megatron_cpt.checkpoint.convert import verify

    with _one_process():
        found = verify(Path(source), Path(hf_folder), precision)
    assert found is not None, "one process is the last stage"
    return found


@contextmanager
def _one_process() -> Iterator[None]:
    """Process groups of this process alone, for the block; those that are there already are used and kept."""
    import torch.distributed as dist

    from megatron_cpt.parallel import groups

    if dist.is_initialized():
        yield
        return
    groups.init_process_group()
    try:
        groups.init_model_parallel(ParallelSettings())
        yield
    finally:
        groups.destroy()
