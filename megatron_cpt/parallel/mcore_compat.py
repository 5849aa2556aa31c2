"""Where the releases of Megatron-Core that are accepted, 0.16.1 to 0.19, differ: the one file that asks which it is.

No version number is compared: what is installed is asked itself, so that a change which is taken into another release,
or made by hand, is met as well. What follows from an answer is passed by keyword; all else is called alike in every
release. Faults that one release has and another has not are mended for both (docs/architecture.md lists them).
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

NAMES_USED_BUT_ABSENT: Mapping[str, Mapping[str, Any]] = {
    # 0.16.1 asks whether it is None, and does not have it where Transformer Engine is absent.
    "megatron.core.transformer.moe.moe_utils": {"te_general_gemm": None},
}
"""Module: global names that it reads in some release without having defined them, and the values they should have."""


def known_fields(config: type) -> frozenset[str]:
    """The fields of one of Megatron-Core's dataclasses of settings: each release adds some and takes others away."""
    return frozenset(field.name for field in dataclasses.fields(config))


def options_of_save(save: Callable[..., Any]) -> dict[str, Any]:
    """What dist_checkpointing.save must be told so that it writes `torch_dist` shards itself.

    From 0.17 on another package, nvidia-resiliency-ext, writes unless it is told not to.
    """
    return {"async_strategy": "mcore"} if "async_strategy" in inspect.signature(save).parameters else {}
