"""What is known of the training of public bases: base_histories.yaml, by name."""

import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


@cache
def public_bases() -> dict[str, dict[str, Any]]:
    """Settings of `base_history` by the name of a public base; unknown values are left out."""
    text = files("megatron_cpt").joinpath("config/base_histories.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return table


_PREFIX, _SUFFIXES = "meta-", ("-hf", "-deduped")
"""Parts of the names that bases are published under, and of no name in the table. Both kinds of Pythia have one
schedule."""


def public_base_of(folder: str | Path) -> str | None:
    """The public base whose name a Hugging Face folder has, such as `Meta-Llama-3-8B`, also in the cache of its hub
    (`models--EleutherAI--pythia-410m/snapshots/HASH`). None: no name of the table."""
    path = Path(folder)
    if path.parent.name == "snapshots":
        path = path.parent.parent
    name = path.name.rpartition("--")[2].lower().replace("_", "-").removeprefix(_PREFIX)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name if name in public_bases() else None


def parameters_in_name(base: str) -> float | None:
    """The number of parameters that the name of a base tells, roughly; None where it tells none."""
    found = re.search(r"-(\d+(?:\.\d+)?)([mb])(?![a-z])", base)
    return None if found is None else float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]]


def with_public_values(value: Any) -> Any:
    """A `base_history` as written, with what the table says of the base that it names; given values win.

    Raises:
        ValueError: no base of the table has that name.
    """
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(name := given.get("name"), str):
        return given
    if name not in public_bases():
        near = get_close_matches(name.lower(), public_bases(), 3, 0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"'{name}' is not a base whose history is known; {meant}Known: {', '.join(public_bases())}. For another, "
            "give tokens, tokens_per_step, kind, peak_lr and final_lr without a name"
        )
    return public_bases()[name] | given
