"""Checkpoints of weights alone as Megatron-Core writes them, from any layout."""

from collections.abc import Sequence
from pathlib import Path

from megatron.core import dist_checkpointing
from megatron.core.models.common.language_module.language_module import LanguageModule

from megatron_cpt.checkpoint.hf_dtypes import parent_dtypes
from megatron_cpt.checkpoint.load import leave_hashes, model_state, seal, whole_folder_of_ranks
from megatron_cpt.checkpoint.save import keep_results, make_folder
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import barrier


def save_weights(checkpoint: Path, model: Sequence[LanguageModule], hf_folder: Path) -> None:
    """Writes one. Every rank calls it."""
    keep_results()
    with whole_folder_of_ranks(checkpoint, needed=0) as folder:
        if groups.rank() == 0:
            make_folder(folder, hf_folder, parent_dtypes(hf_folder))
        barrier()
        dist_checkpointing.save(model_state(model), str(folder / "shards"))
        leave_hashes(folder, groups.rank())
        seal(folder)
