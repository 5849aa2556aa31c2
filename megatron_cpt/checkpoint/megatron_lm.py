"""Checkpoints that Megatron-LM or Megatron-Bridge wrote (torch_dist), found and matched by their tensors' names.

Only their table of contents and their tensors are read, by readers that unpickle neither programs nor objects. What
else lies beside them (common.pt, random states, optimizer) is never opened.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from megatron_cpt.checkpoint.stored import Stored
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.families.shape import ModelShape, name_table
from megatron_cpt.families.weights import VocabularyParallel

TRACKER = "latest_checkpointed_iteration.txt"
# A norm that Transformer Engine fuses with the projection behind it is saved under another key than one that stands
# alone; Megatron-LM has written both from its local layers.
NORM_KEYS = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
)


def find_shards(folder: Path) -> Path:
    """The torch_dist folder: this one, or that of the newest iteration in it.

    Raises:
        BadInput: there is none.
    """
    if (folder / ".metadata").is_file():
        return folder
    newest = newest_iteration(folder)
    if newest is not None and (newest / ".metadata").is_file():
        return newest
    if any(folder.glob("**/mp_rank_*")):
        rule = "holds pickles of Megatron-LM's older format (`--ckpt-format torch`), which can run any program."
        remedy = "Where you trust it: load and save it in Megatron-LM with `--ckpt-convert-format torch_dist`."
        raise BadInput(Fault(str(folder), rule, remedy))
    rule = f"is no torch_dist checkpoint: neither .metadata nor {TRACKER} of a folder with one is here."
    raise BadInput(Fault(str(folder), rule, "Name one of its iteration folders, such as iter_0000100."))


def newest_iteration(folder: Path) -> Path | None:
    """The folder that Megatron-LM's tracker names; None where there is no tracker that names one."""
    try:
        word = (folder / TRACKER).read_text().strip()
    except (OSError, ValueError):
        return None
    if word == "release":
        return folder / word
    return folder / f"iter_{int(word):07}" if word.isdecimal() else None


def match_places(
    places: Mapping[str, Stored], sizes: Mapping[str, tuple[int, ...]], shape: ModelShape, shards: Path
) -> dict[str, Stored]:
    """The places of all parameters under the keys that the checkpoint has for them.

    Args:
        places: as Megatron-Core would save them here (stored.stored_places).
        sizes: dimensions of the checkpoint's tensors, by key.
    Raises:
        BadInput: tensors are missing, surplus or of another size; every kind is told.
    """
    table = name_table(shape)
    found: dict[str, Stored] = {}
    missing: list[str] = []
    faults: list[Fault] = []
    for name, place in places.items():
        keys = [key for key in alternatives(place.key) if key in sizes]
        if not keys:
            missing.append(place.key)
            continue
        found[name] = replace(place, key=keys[0])
        padded = isinstance(table[name][0], VocabularyParallel)
        if not fits(sizes[keys[0]], place.whole, padded):
            value = f"{shards}: {keys[0]} is {sizes[keys[0]]}"
            faults.append(Fault(value, f"config.json calls for {place.whole}.", "Give the config.json of this model."))
    used = {place.key for place in found.values()}
    surplus = [key for key in sizes if key not in used and not key.startswith(("optimizer.", "chained_"))]
    if missing:
        faults.append(
            Fault(
                f"{shards}: {some(missing)}",
                f"tensors are missing that config.json calls for ({len(set(missing))}).",
                "Give the config.json of this model; only names of Megatron-Core's GPTModel are known.",
            )
        )
    if surplus:
        faults.append(
            Fault(
                f"{shards}: {some(surplus)}",
                f"tensors are there that a {shape.family} of this config.json does not have ({len(surplus)}).",
                "Give the config.json of this model; only names of Megatron-Core's GPTModel are known.",
            )
        )
    refuse(list(dict.fromkeys(faults)))
    return found


def alternatives(key: str) -> list[str]:
    """The keys under which a parameter may have been saved, the likeliest first."""
    keys = [key]
    for fused, alone in NORM_KEYS:
        keys += [key.replace(one, other) for one, other in ((fused, alone), (alone, fused)) if one in key]
    return keys


def fits(size: tuple[int, ...], wanted: tuple[int, ...], padded: bool) -> bool:
    """Whether a tensor has the dimensions that are wanted; padding of the vocabulary may add rows."""
    return size == wanted or (padded and size[1:] == wanted[1:] and size[0] > wanted[0])


def some(keys: list[str]) -> str:
    """The first of them."""
    first = list(dict.fromkeys(keys))
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")
