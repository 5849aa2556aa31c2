"""dtypes of the tensors of a Hugging Face folder, which exports of what was trained from it have too.

The tensors say, not a word of config.json, which may be another one or none. Checkpoints hold no safetensors of the
folder that they come from; a small file in `hf/` tells the dtypes of its tensors, and which of them hold those of all
experts of a layer: folders of one family differ in it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import orjson
import torch

from megatron_cpt.checkpoint.hf_folder import has_safetensors, open_hf_tensors
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.families.multimodal import text_fields, with_text_fields
from megatron_cpt.families.shape import read_config, stacks_of, stated_dtype
from megatron_cpt.families.weights import Stack, StackPlace
from megatron_cpt.runs.folder import write_json

_FILE = "tensor_dtypes.json"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# safetensors' words.
STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class TensorDtypes:
    """The dtype of each tensor of a folder, and which tensors hold those of all experts."""

    common: str | None
    """That of all but some; None: each tensor has the dtype that it is trained or stored in."""
    others: Mapping[str, str] = field(default_factory=dict)
    """The tensors that have another one, by name."""
    stacks: tuple[Stack, ...] | None = field(default=None, compare=False)
    """The tensors that hold those of all experts of a layer; None: as in published folders of the family."""

    def of(self, name: str, own: torch.dtype) -> torch.dtype:
        """The dtype of a tensor that is trained or stored in `own`."""
        word = self.others.get(name, self.common)
        return own if word is None else DTYPES[word]

    @property
    def words(self) -> set[str]:
        """All that are named."""
        return {*self.others.values(), *([] if self.common is None else [self.common])}

    def __str__(self) -> str:
        further = "".join(f", {word} in {count}" for word, count in sorted(Counter(self.others.values()).items()))
        return f"{self.common}{further}"


@dataclass(frozen=True)
class Conversion:
    """One tensor on its way into another place."""

    source: str
    """Its dtype before."""
    target: str
    """Its dtype there."""

    @property
    def rounds(self) -> bool:
        """Whether the target cannot hold every number of the source."""
        source, target = DTYPES[self.source], DTYPES[self.target]
        return torch.promote_types(source, target) != target


def parent_dtypes(*folders: Path) -> TensorDtypes:
    """The dtypes of a model's tensors before training, by the first of some folders that says.

    Where none has safetensors or tells of them, config.json of the last one has the word.

    Raises:
        BadInput, IntegrityFault: as opening the folder does.
    """
    for folder in folders:
        if (found := _read_dtypes(folder)) is not None:
            return found
    word = stated_dtype(folders[-1])
    return TensorDtypes(word if word in DTYPES else None)


def chosen_dtypes(word: str | None, *folders: Path) -> TensorDtypes:
    """The dtype that is asked for, in every tensor; None: the parent's. Raises BadInput, IntegrityFault."""
    if word is None:
        return parent_dtypes(*folders)
    if word not in DTYPES:
        raise BadInput(Fault(f"dtype {word}", "cannot be exported.", f"Choose one of: {', '.join(DTYPES)}."))
    return replace(parent_dtypes(*folders), common=word, others={})


def _read_dtypes(folder: Path) -> TensorDtypes | None:
    """The dtypes of a folder's safetensors, or of those that its model came from; None where it does not say."""
    if has_safetensors(folder):
        with open_hf_tensors(folder) as tensors:
            stored = {name: tensors.dtype(name) for name in tensors.names}
            stacks = tuple(tensors.stacks.values())
        words = {name: STORED[dtype] for name, dtype in stored.items() if dtype in STORED}
        # The commonest; of two as common, always the same one.
        common = min(Counter(words.values()).items(), key=lambda item: (-item[1], item[0]))[0] if words else None
        return TensorDtypes(common, {name: word for name, word in words.items() if word != common}, stacks)
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        values = orjson.loads(path.read_bytes())
        found = TensorDtypes(values["common"], dict(values["others"]), _noted_stacks(folder, values.get("stacks")))
        if not found.words <= set(DTYPES):
            raise ValueError("a dtype is not known")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFault(f"{path}: does not tell dtypes of tensors ({error})") from error


def write_dtypes(folder: Path, dtypes: TensorDtypes) -> None:
    """Leaves a note of the dtypes in the folder of a checkpoint that describes its model."""
    note: dict[str, Any] = {"common": dtypes.common, "others": dict(dtypes.others)}
    if dtypes.stacks is not None:
        note["stacks"] = {stack.name: stack.transposed for stack in dtypes.stacks}
    write_json(folder / _FILE, note)


def _noted_stacks(folder: Path, transposed: Mapping[str, bool] | None) -> tuple[Stack, ...] | None:
    """The tensors of a note that hold those of all experts.

    Args:
        transposed: whether each is, by name; None: the note, an older one, does not tell of any.
    """
    if transposed is None:
        return None
    stacks = stacks_of(read_config(folder))
    return tuple(replace(stack, transposed=transposed[stack.name]) for stack in stacks if stack.name in transposed)


def config_for(hf_folder: Path, words: Collection[str], others: Collection[str] = ()) -> dict[str, Any]:
    """A folder's config.json for tensors in some dtypes: it names one that holds them all.

    transformers loads them in it, and fails over words such as `auto` and `torch.bfloat16`. What the folder itself
    states stays where some of the tensors have it.

    Args:
        others: dtypes of tensors beside the language model, for which alone what is stated does not stay.
    """
    config, stated = read_config(hf_folder), stated_dtype(hf_folder)
    config.pop("quantization_config", None)  # what was in fp8 was read as bf16
    word = stated if stated in words else _widest({*words, *others})
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    text = text_fields(config)
    within = {name: word for name in ("dtype", "torch_dtype") if name in text}
    return with_text_fields(config, text | within) | dict.fromkeys(names, word)


def word_of(dtype: torch.dtype) -> str:
    """The name of a dtype: bfloat16."""
    return str(dtype).removeprefix("torch.")


def _widest(words: Iterable[str]) -> str:
    """A dtype that holds every number of all these."""
    return word_of(reduce(torch.promote_types, (DTYPES[word] for word in words)))


def roundings(conversions: Mapping[str, Conversion], stacks: Mapping[str, StackPlace]) -> str:
    """How many tensors of a folder are rounded, and from what to what; empty where none is.

    Args:
        conversions: by the names in the name table.
        stacks: where the tensors are that folders hold in one with those of other experts.
    """
    by_tensor = {stacks[name].stack if name in stacks else name: each for name, each in conversions.items()}
    counts = Counter(each for each in by_tensor.values() if each.rounds)
    return ", ".join(
        f"{count:,} tensors from {kind.source} to {kind.target}"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    )
