"""A checkpoint of ours from a torch_dist checkpoint of Megatron-LM: weights, main weights and the moments of Adam.

Megatron-Core names optimizer state by its layout (megatron/core/optimizer/, 0.16.1):

| optimizer of Megatron-LM | arguments | tensors, behind `optimizer.state.` |
|---|---|---|
| not distributed | | `fp32_param.NAME` (none in fp32), `exp_avg.NAME`, `exp_avg_sq.NAME` |
| distributed | `--dist-ckpt-optim-fully-reshardable` | `param.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME` |
| distributed | none: `dp_reshardable` | flat buckets of a layout: not read |
| distributed, earlier releases | none: `fully_sharded_model_space` | as the first, but flat: not read |

NAME is the key of the weight, and so is the place in the tensor: what is here writes the state of the first two as our
own `fully_reshardable` checkpoints have it, which load into any layout. One tensor stands in memory at a time.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megatron_cpt.checkpoint.convert import match_megatron
from megatron_cpt.checkpoint.dcp import Stored, StoredTensors, find_shards, some, stored_places, write_streamed
from megatron_cpt.checkpoint.hf_dtypes import parent_dtypes
from megatron_cpt.checkpoint.load import leave_hashes, seal
from megatron_cpt.checkpoint.save import make_folder
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.families.shape import name_table, read_shape
from megatron_cpt.runs.checkpoint_state import CheckpointState
from megatron_cpt.runs.folder import refuse_existing, refuse_without_room, whole_folder, write_json

_MAIN = "param"
_WORDS = {_MAIN: ("param", "fp32_param"), "exp_avg": ("exp_avg",), "exp_avg_sq": ("exp_avg_sq",)}
"""What we keep of a parameter, and what Megatron-Core calls it."""
_PREFIX = re.compile(r"^(chained_\d+\.)?optimizer\.state\.")
_WEIGHTS_ALONE = "The weights alone go over with `convert to-hf`; optimizer.moment_warmup_steps fills the moments then."
_SAVE_AGAIN = (
    "Load and save it once in Megatron-LM, with the layout that it has and --dist-ckpt-optim-fully-reshardable. "
    f"{_WEIGHTS_ALONE}"
)


def checkpoint_from_megatron(folder: Path, hf_config: Path, output: Path, state: CheckpointState) -> None:
    """Writes a checkpoint from which a run goes on with `init_from.load_optimizer`. One process calls it.

    Args:
        folder: of an iteration, or with a tracker that names the newest.
        hf_config: the folder with config.json and tokenizer of the model.
        state: what of it is told in position.json.
    Raises:
        BadInput: there is no such checkpoint, its tensors are not those of the config, its optimizer state is missing
            or of one layout, or there is something at `output` already.
        IntegrityFault: it cannot be read, or not safely, or its main weights are not its weights.
        StorageFault: there is no room for it.
    """
    refuse_existing(output)
    shape, shards = read_shape(hf_config), find_shards(folder)
    stored = StoredTensors(shards, has_hashes=False)
    sources = match_megatron(stored, shape, shards)
    places, values = stored_places(shape)
    dtypes = {name: stored.dtype(source) for name, source in sources.items()}
    table = name_table(shape)
    parameters = {name: source for name, source in sources.items() if not table[name][0].buffer}
    states = _state_sources(stored, parameters, shards)
    if state.updates is None:
        rule = "common.pt does not tell how many updates Adam has made."
        raise BadInput(Fault(str(shards), rule, _WEIGHTS_ALONE))
    weights: dict[str, Stored] = {}
    for name, of_parameter in states.items():
        for key, source in of_parameter.items():
            own = f"optimizer.state.{key}.{name}"
            places[own] = places[name].renamed(f"optimizer.state.{key}.{{}}".format)
            sources[own], dtypes[own] = source, torch.float32
            if key == _MAIN:
                weights[own] = sources[name]

    def read(name: str) -> Tensor:
        tensor = stored.read(sources[name]).to(dtypes[name])
        if name in weights and not _rounds_to(tensor, stored.read(weights[name])):
            raise IntegrityFault(_DAMAGED.format(shards=shards, key=sources[name].key))
        return tensor

    refuse_without_room(output, sum(prod(place.size) * dtypes[name].itemsize for name, place in places.items()))
    with whole_folder(output) as unfinished:
        make_folder(unfinished, hf_config, parent_dtypes(hf_config))
        write_json(unfinished / "position.json", asdict(state))
        write_streamed(unfinished / "shards", places, values, dtypes, read)
        leave_hashes(unfinished, rank=0)
        seal(unfinished)


def _rounds_to(main: Tensor, weight: Tensor) -> bool:
    """Whether a main weight is that of a weight. One step of bf16 apart is allowed: a precision-aware optimizer keeps
    what was rounded off, which need not round the same way."""
    return torch.allclose(main.to(weight.dtype).float(), weight.float(), rtol=2.0**-7, atol=0.0)


_DAMAGED = (
    "{shards}: {key}: its main weights are not the weights of the model. Megatron-Core's fully_reshardable mixes up "
    "the state of parameters behind padding in its buffers (pull request 5077): the weights are right, and the moments "
    f"are of other parameters. {_WEIGHTS_ALONE}"
)


def _state_sources(
    stored: StoredTensors, parameters: Mapping[str, Stored], shards: Path
) -> dict[str, dict[str, Stored]]:
    """Where the state of each parameter stands, by what we keep of it. Raises BadInput where it is not to be read."""
    keys = {_PREFIX.sub("", key): key for key in stored.sizes if _PREFIX.match(key)}
    if not keys:
        if any(".dp_group_idx_" in key for key in stored.sizes):
            rule = "is laid out by the ranks that wrote it (dp_reshardable, Megatron-LM's default)."
            raise BadInput(Fault(f"{shards}: its optimizer state", rule, _SAVE_AGAIN))
        rule = "there is none in it (--no-save-optim, or a converted model)."
        raise BadInput(Fault(f"{shards}: its optimizer state", rule, _WEIGHTS_ALONE))
    found: dict[str, dict[str, Stored]] = {}
    missing = []
    for name, place in parameters.items():
        found[name] = {}
        for key, words in _WORDS.items():
            own = _state_place(place, words, keys)
            if own is None and key == _MAIN and stored.dtype(place) is torch.float32:
                own = place  # fp32 weights are their own main weights
            if own is None:
                missing.append(f"{key} of {place.key}")
                continue
            for of_state, weight in zip(own.parts, place.parts, strict=True):
                size, its = stored.sizes[of_state.key], stored.sizes[weight.key]
                if size != its:
                    rule = f"is {size}, and the weight {its}: it is flat, of one layout."
                    raise BadInput(Fault(f"{shards}: {of_state.key}", rule, _SAVE_AGAIN))
            found[name][key] = own
    if missing:
        rule = f"is not there for all weights ({len(missing)} missing): it is not that of Adam, or weights were frozen."
        raise BadInput(Fault(f"{shards}: {some(missing)}", rule, _WEIGHTS_ALONE))
    return found


def _state_place(place: Stored, words: Sequence[str], keys: Mapping[str, str]) -> Stored | None:
    """Where the state of a parameter stands that has one of these names; None where it is not there.

    Args:
        keys: of all state, by what stands behind its prefix.
    """
    for word in words:
        own = {part.key: keys.get(f"{word}.{part.key}", "") for part in place.parts}
        if all(own.values()):
            return place.renamed(own.__getitem__)
    return None
