"""The Hugging Face folder that describes a run's model: the one it starts from, or what `model.rope` makes of that."""

from pathlib import Path

from megatron_cpt.checkpoint.hf_folder import copy_companions
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.shape import read_config
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import first_on_rank_zero
from megatron_cpt.runs.durable import write_json
from megatron_cpt.runs.folder import RunFolder


def description(config: RunConfig, folder: RunFolder) -> Path:
    """The folder whose config.json and tokenizer are the model's; its weights are in `model.hf`."""
    return Path(config.model.hf) if config.model.rope is None else folder.model


def describe(config: RunConfig, folder: RunFolder) -> None:
    """Writes the description where it is not that of `model.hf`. Every rank calls it."""
    with first_on_rank_zero():
        if groups.rank() != 0 or config.model.rope is None:
            return
        folder.model.mkdir(exist_ok=True)
        base = Path(config.model.hf)
        copy_companions(base, folder.model)
        write_json(folder.model / "config.json", read_config(base, config.model.rope))
