"""transformers' own model of a Hugging Face folder: what our model of it is compared with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from megatron_cpt.checkpoint.hf_folder import copy_files, open_hf_tensors, tokenizer_files
from megatron_cpt.checkpoint.hf_weights import check_tensors
from megatron_cpt.config.model import RopeSettings
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_config, read_shape
from megatron_cpt.families.size import parameter_count

DTYPE_FIELDS = ("dtype", "torch_dtype")
# Beside the weights: activations and logits of a sequence, what the loader holds for a moment, the allocator's own.
HEADROOM = 1.25


@contextmanager
def reference_model(
    hf_folder: Path, dtype: torch.dtype, device: torch.device, rope: RopeSettings | None = None
) -> Iterator[Any]:
    """transformers' model, whole, on one device, given up at the end. No code of the folder is executed.

    The folder is checked before transformers sees it: transformers opens whatever file an index names, wherever it
    lies, and draws what is missing at random.

    Args:
        rope: other rotary positions than the folder states; None: its own.
    Raises:
        BadInput, IntegrityFault: as load_hf_weights does.
    """
    shape = read_shape(hf_folder, rope)
    with open_hf_tensors(hf_folder) as tensors:
        check_tensors(tensors, shape)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        hf_folder,
        config=transformers_config(hf_folder, rope),
        dtype=dtype,
        attn_implementation="eager",  # the one that knows every family's mathematics: others leave out soft caps
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    try:
        yield model.eval().to(device)
    finally:
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def transformers_config(hf_folder: Path, rope: RopeSettings | None) -> Any:
    """What transformers makes of a folder's config.json, with other rotary positions if there are any."""
    with TemporaryDirectory() as scratch:
        write_readable_config(hf_folder, Path(scratch), rope)
        return AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)


def transformers_tokenizer(hf_folder: Path) -> Any:
    """transformers' tokenizer of a folder, which is made by rules of its own. No code of the folder is executed."""
    with TemporaryDirectory() as scratch:
        write_readable_config(hf_folder, Path(scratch))
        copy_files(hf_folder, Path(scratch), tokenizer_files(hf_folder))
        tokenizer = AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
    tokenizer.name_or_path = str(hf_folder)
    return tokenizer


def write_readable_config(hf_folder: Path, output: Path, rope: RopeSettings | None = None) -> None:
    """Writes config.json without the dtype: transformers fails over words such as "auto" and "torch.bfloat16"."""
    fields = {name: value for name, value in read_config(hf_folder, rope).items() if name not in DTYPE_FIELDS}
    (output / "config.json").write_bytes(orjson.dumps(fields))


@torch.no_grad()
def transformers_logits(hf_folder: Path, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """transformers' logits on the CPU: tokens int64 [b, s] to float32 [b, s, vocabulary]."""
    with reference_model(hf_folder, dtype, torch.device("cpu")) as model:
        logits: Tensor = model(tokens).logits
        return logits.float()


@torch.no_grad()
def transformers_losses(
    hf_folder: Path, windows: Tensor, dtype: torch.dtype, device: torch.device, rope: RopeSettings | None = None
) -> list[float]:
    """transformers' mean loss of each sequence, in nats per token: windows int64 [b, s + 1]."""
    with reference_model(hf_folder, dtype, device, rope) as model:
        return [
            float(cross_entropy(model(window[None, :-1]).logits[0].float(), window[1:]))
            for window in windows.to(device)
        ]


def room_for_reference(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> torch.device | None:
    """Where the whole model fits now: on the device, else in this machine's memory, else nowhere (None)."""
    needed = HEADROOM * parameter_count(shape) * dtype.itemsize
    if device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu") if needed <= psutil.virtual_memory().available else None
