"""What is asked of the installed Megatron-Core, on functions and dataclasses like those of its releases."""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import megatron.core
import pytest
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import gpt_model
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.parallel.mcore_compat import gpt_model_class, known_fields, options_of_save, release, untried
from megatron_cpt.parallel.upstream_fixes import NEWEST_RELEASE
from tests.train.runs import GPT_MODEL

PACKAGE = Path(__file__).parents[2] / "megatron_cpt"
TORCH_HALF = ("parallel", "data", "model", "checkpoint", "evaluate", "train")


def save_of_0_16(content: dict[str, object], folder: str, async_sharded_save: bool = False) -> None: ...


def save_of_0_17(
    content: dict[str, object], folder: str, async_sharded_save: bool = False, async_strategy: str = "nvrx"
) -> None: ...


def test_a_save_is_told_to_write_itself_where_another_may() -> None:
    assert options_of_save(save_of_0_16) == {}
    assert options_of_save(save_of_0_17) == {"async_strategy": "mcore"}
    is_later = tuple(map(int, megatron.core.__version__.split(".")[:2])) >= (0, 17)
    assert bool(options_of_save(dist_checkpointing.save)) == is_later


def test_fields_are_those_of_the_dataclass_and_of_what_it_extends() -> None:
    @dataclass
    class Base:
        first: int = 1

    @dataclass
    class Extended(Base):
        second: int = 2
        not_a_field = 3

    assert known_fields(Extended) == {"first", "second"}
    assert {"num_layers", "tensor_model_parallel_size"} <= known_fields(TransformerConfig)


def test_a_release_that_was_not_tried_is_warned_of() -> None:
    assert [untried(version) for version in ("0.16.1", "0.17.0", "0.19.2", release())] == [None] * 4
    for version in ("0.15.3", "0.20.0", "0.20.0+d98e8a6", "1.0.0rc1", "unknown"):
        warning = untried(version)
        assert warning is not None and warning.startswith(f"megatron-core {version} was never tried")


def test_gpt_model_is_asked_for_where_it_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert gpt_model_class() is GPTModel
    monkeypatch.setattr(gpt_model, "GPTModel", None)
    assert gpt_model_class() is None
    monkeypatch.setitem(sys.modules, GPT_MODEL, None)
    assert gpt_model_class() is None
    # A package that GPTModel's own module does not find is no release without it.
    monkeypatch.delitem(sys.modules, GPT_MODEL)
    monkeypatch.setitem(sys.modules, "megatron.core.quantization.utils", None)
    with pytest.raises(ModuleNotFoundError, match="quantization"):
        gpt_model_class()


def test_no_other_file_of_the_machine_wing_asks() -> None:
    """No signature is looked at, no import of Megatron-Core tried and no version read elsewhere."""
    asking = set()
    for package in TORCH_HALF:
        for path in (PACKAGE / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                imported = node.module if isinstance(node, ast.ImportFrom) else None
                if imported == "inspect" or (isinstance(node, ast.Import) and node.names[0].name == "inspect"):
                    asking.add(path.name)
                if isinstance(node, ast.Try) and any("megatron.core" in ast.unparse(part) for part in node.body):
                    asking.add(path.name)
                if isinstance(node, ast.Attribute) and ast.unparse(node) == "megatron.core.__version__":
                    asking.add(path.name)
    assert asking == {"mcore_compat.py"}


def to_do(release: str) -> str:
    """What a release asks for whose fixes nobody has read; nothing, if they are in the table."""
    newest, installed = (tuple(map(int, re.findall(r"\d+", version)[:3])) for version in (NEWEST_RELEASE, release))
    if installed <= newest:
        return ""
    return (
        f"Megatron-Core {release} is newer than {NEWEST_RELEASE}, the newest release whose fixes are in "
        "megatron_cpt/parallel/upstream_fixes.py. What to do: docs/megatron-core.md, What a newer release asks for."
    )


def test_the_fixes_of_the_installed_release_are_in_the_table() -> None:
    assert to_do("0.16.1") == to_do(NEWEST_RELEASE) == ""
    assert to_do("0.19.10").startswith("Megatron-Core 0.19.10 is newer")
    assert to_do("0.20.0rc1").startswith("Megatron-Core 0.20.0rc1 is newer")
    assert not to_do(megatron.core.__version__), to_do(megatron.core.__version__)
