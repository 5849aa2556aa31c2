"""Where the releases of Megatron-Core that are accepted, 0.16.1 to 0.19, differ: the one file that asks which it is.

What is installed is asked itself, so that a change which is taken into another release, or made by hand, is met as
well. Its version number decides one thing: whether a run warns that this release was never tried. What follows from an
answer is passed by keyword; all else is called alike in every release. Faults that one release has and another has not
are mended for both (docs/architecture.md lists them).
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from megatron_cpt.parallel.upstream_fixes import NEWEST_RELEASE

NAMES_USED_BUT_ABSENT: Mapping[str, Mapping[str, Any]] = {
    # 0.16.1 asks whether it is None, and does not have it where Transformer Engine is absent.
    "megatron.core.transformer.moe.moe_utils": {"te_general_gemm": None},
}
"""Module: global names that it reads in some release without having defined them, and the values they should have."""


_OLDEST_RELEASE = "0.16.1"


def release() -> str:
    """The version of the Megatron-Core that is imported: with PYTHONPATH it need not be the one that pip installed."""
    return str(importlib.import_module("megatron.core").__version__)


def untried(version: str) -> str | None:
    """What is said of a release that the tests were not run with; None of one that they were.

    Args:
        version: as `release` gives it.
    """
    oldest, newest, installed = (
        tuple(map(int, re.findall(r"\d+", each)[:3])) for each in (_OLDEST_RELEASE, NEWEST_RELEASE, version)
    )
    if oldest <= installed <= newest:
        return None
    return (
        f"megatron-core {version} was never tried with this version of megatron-cpt, which is made for "
        f"{_OLDEST_RELEASE} to {NEWEST_RELEASE}. What it changes can go unnoticed: compare a short run's losses with "
        "those under one of these, or run `make parity`"
    )


def known_fields(config: type) -> frozenset[str]:
    """The fields of one of Megatron-Core's dataclasses of settings: each release adds some and takes others away."""
    return frozenset(field.name for field in dataclasses.fields(config))


def options_of_save(save: Callable[..., Any]) -> dict[str, Any]:
    """What dist_checkpointing.save must be told so that it writes `torch_dist` shards itself.

    From 0.17 on another package, nvidia-resiliency-ext, writes unless it is told not to.
    """
    return {"async_strategy": "mcore"} if "async_strategy" in inspect.signature(save).parameters else {}


_GPT_MODEL = "megatron.core.models.gpt.gpt_model"


def gpt_model_class() -> type | None:
    """GPTModel; None where the release has only HybridModel, which is to take its place (model/hybrid.py).

    0.20 calls GPTModel deprecated. Where both are there, it is the one that Megatron-Core's own tests build of whole
    transformer layers.
    """
    try:
        module = importlib.import_module(_GPT_MODEL)
    except ModuleNotFoundError as error:
        if error.name is None or not _GPT_MODEL.startswith(error.name):
            raise  # what is missing is something that it needs
        return None
    return getattr(module, "GPTModel", None)
