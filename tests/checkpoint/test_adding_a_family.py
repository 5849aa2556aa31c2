"""The family that docs/families.md adds as its example works, from the page to the logits."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_cpt.checkpoint.convert import transformers_logits
from megatron_cpt.families.family import Family
from megatron_cpt.families.shape import FAMILIES
from tests.checkpoint.hf_models import assert_same_tensors, load_and_export, write_model
from tests.families.folders import SMALL
from tests.ranks import Ranks

PAGE = Path(__file__).parents[2] / "docs/families.md"
MODEL = SMALL | {"model_type": "arcee"}


def test_the_page_names_every_family_and_no_other() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.read_text().split("## What is refused")[0], re.MULTILINE) == [
        "model_type",
        *FAMILIES,
    ]


def family_of_the_page(folder: Path) -> Family:
    """The page's example, imported as the file that it tells to write."""
    source = folder / f"arcee_{os.getpid()}.py"
    source.write_text(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])
    spec = importlib.util.spec_from_file_location("arcee", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    family: Family = module.ARCEE
    return family


def use_family(place: Path, folder: Path, output: Path, tokens: Tensor, tensor: int) -> np.ndarray | None:
    """A job: in and out with the family of the page."""
    family = family_of_the_page(place)
    FAMILIES[family.model_type] = family
    try:
        return load_and_export(folder, output, tokens, tensor, pipeline=1, shard_bytes=40_000)
    finally:
        del FAMILIES[family.model_type]


def test_the_family_of_the_page_goes_in_and_out(
    two_ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "hf", MODEL)
    tokens = torch.randint(101, (2, 40), generator=torch.Generator().manual_seed(1))
    results = two_ranks.call(
        use_family, place=tmp_path, folder=folder, output=tmp_path / "out", tokens=tokens, tensor=2
    )
    monkeypatch.setitem(FAMILIES, "arcee", family_of_the_page(tmp_path))  # the reference too is of known families
    for logits in results:
        np.testing.assert_allclose(logits, transformers_logits(folder, tokens).numpy(), rtol=0, atol=1e-5)
    assert_same_tensors(tmp_path / "out", folder)
