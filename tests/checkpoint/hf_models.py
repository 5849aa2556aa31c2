"""Small random Llamas in Hugging Face folders, and jobs that ranks do with them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_cpt.checkpoint.hf_convert import load_model, megatron_logits
from megatron_cpt.checkpoint.hf_export import export_hf
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.families.folders import SMALL

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
KINDS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "llama3_rope": {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 9000},
}
TOKENIZER = b'{"version": "1.0", "model": {}}\n'


def write_llama(folder: Path, dtype: torch.dtype = torch.float32, shards: str = "5GB", **changes: Any) -> Path:
    """A random Llama of odd sizes as transformers saves it. Norms are random too, or a mix-up would not show."""
    torch.manual_seed(0)
    fields = {name: value for name, value in (SMALL | changes).items() if name != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_tensors(folder: Path, reference: Path) -> None:
    """Names, dtypes and bits of all tensors are the same."""
    ours, theirs = all_tensors(folder), all_tensors(reference)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def load_and_export(
    folder: Path, output: Path, tokens: Tensor, tensor: int, pipeline: int, shard_bytes: int
) -> np.ndarray | None:
    """A job for ranks: the folder into a layout and out again. Returns the logits of the last stage."""
    groups.divide_world(ParallelSettings(tensor=tensor, pipeline=pipeline))
    shape = read_shape(folder)
    model = load_model(folder, shape, "fp32")
    logits = megatron_logits(model, shape, tokens)
    export_hf(model, shape, folder, output, shard_bytes=shard_bytes, lineage={"parent": "base"})
    return None if logits is None else logits.numpy()
