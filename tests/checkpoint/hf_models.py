"""Small random models in Hugging Face folders, and jobs that ranks do with them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from megatron_cpt.checkpoint.convert import load_model, megatron_logits
from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes
from megatron_cpt.checkpoint.hf_export import export_hf
from megatron_cpt.checkpoint.hf_folder import SINGLE
from megatron_cpt.checkpoint.hf_weights import join_shards
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.others import other_names
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.weights import Place, Rule
from megatron_cpt.parallel import groups
from tests.families.folders import SMALL, text_of

# Families whose norms multiply by 1 + their weight.
ZERO_CENTERED = ("gemma", "gemma2", "gemma3_text", "nemotron", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
TOKENIZER = b'{"version": "1.0", "model": {}}\n'


def write_llama(folder: Path, dtype: torch.dtype = torch.float32, shards: str = "5GB", **changes: Any) -> Path:
    """A random Llama of odd sizes as transformers saves it."""
    return write_model(folder, SMALL | changes, dtype, shards)


def write_model(
    folder: Path,
    fields: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    shards: str = "5GB",
    published: bool = True,
) -> Path:
    """A random model as transformers saves it. Norms and biases are random too, or a mix-up would not show.

    Args:
        published: whether experts have the form of published folders where transformers gives them another.
    """
    torch.manual_seed(0)
    model = auto_model(fields).from_config(AutoConfig.for_model(**deepcopy(fields)))  # it writes into dictionaries
    mean = 0.0 if text_of(fields)["model_type"] in ZERO_CENTERED else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=mean if name.endswith("norm.weight") else 0.0, std=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.05)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    if published and (publish := AS_PUBLISHED.get(fields["model_type"])) is not None:
        save_file(publish(all_tensors(folder)), folder / SINGLE, metadata={"format": "pt"})
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


def in_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a folder, those of all experts of a layer in one: gate's rows, then up's."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in tensors:
        block, at, _ = name.partition(".experts.0.")
        if at:
            gate, up, down = (
                torch.stack([tensors[f"{block}.experts.{expert}.{kind}_proj.weight"] for expert in range(6)])
                for kind in ("gate", "up", "down")
            )
            found |= {f"{block}.experts.gate_up_proj": torch.cat([gate, up], 1), f"{block}.experts.down_proj": down}
    return found


def turned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a folder, each expert's matrix turned."""
    return {
        name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor for name, tensor in tensors.items()
    }


# What published folders have otherwise than transformers saves.
AS_PUBLISHED = {"qwen3_5_moe": in_one, "qwen3_vl_moe": turned}


def auto_model(fields: dict[str, Any]) -> Any:
    """transformers' class that loads and makes a model of a config.json."""
    return AutoModelForImageTextToText if "vision_config" in fields else AutoModelForCausalLM


def transformers_count(fields: dict[str, Any]) -> int:
    """Parameters of the language model that transformers makes of a config.json; no memory is taken."""
    config = AutoConfig.for_model(**deepcopy(fields))
    text = config.get_text_config()
    alone = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING  # some language models are only a part of another
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text) if alone else auto_model(fields).from_config(config)
    others = other_names(fields)
    return sum(weights.numel() for name, weights in model.named_parameters() if not others.is_other(name))


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


def megatron_config(shape: ModelShape, **changes: Any) -> TransformerConfig:
    """What Megatron-LM would have for a Llama of this shape on a CPU, with changes."""
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn_hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.query_groups,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        **changes,
    )


def load_and_export(
    folder: Path, output: Path, tokens: Tensor, tensor: int, pipeline: int, shard_bytes: int
) -> np.ndarray | None:
    """A job for ranks: the folder into a layout and out again. Returns the logits of the last stage."""
    groups.init_model_parallel(ParallelSettings(tensor=tensor, pipeline=pipeline))
    shape = read_shape(folder)
    model = load_model(folder, shape, "fp32")
    logits = megatron_logits(model, shape, tokens)
    export_hf(model, shape, folder, output, shard_bytes=shard_bytes, lineage={"parent": "base"})
    return None if logits is None else logits.numpy()


def gather_hf_tensors(parameter: Tensor, rule: Rule, place: Place, shape: ModelShape) -> dict[str, Tensor]:
    """The whole Hugging Face tensors of a parameter, in float32, on the first rank that shares it; {} on the others.

    Every rank that shares it calls this with the same parameter.
    """
    group = parallel_state.get_expert_tensor_parallel_group() if rule.of_expert else groups.tensor_group()
    first = dist.get_rank(group) == 0
    shards = [torch.empty_like(parameter) for _ in range(dist.get_world_size(group))] if first else None
    dist.gather(parameter.contiguous(), shards, group=group, group_dst=0)
    return join_shards(shards, rule, place, shape, TensorDtypes("float32")) if shards else {}
