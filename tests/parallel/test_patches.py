"""Names of Megatron-Core and torch that are replaced: all in the table, all there, on GPUs only those needed there."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer import mlp

from megatron_cpt.parallel.patches import PATCHES, Patch, replace_name

PACKAGE = Path(__file__).parents[2] / "megatron_cpt"
NAMES = {f"{patch.module}.{patch.name}": patch for patch in PATCHES}
LIBRARIES = ("megatron", "torch")


@pytest.mark.parametrize("patch", [patch for patch in PATCHES if "*" not in patch.module], ids=lambda patch: patch.name)
def test_the_installed_version_has_the_name(patch: Patch) -> None:
    module = importlib.import_module(patch.module)
    if not patch.is_defined:
        assert patch.name in inspect.getsource(module)  # read, whether it is defined or not
        return
    owner: Any = module
    for step in patch.name.replace("()", "").split("."):
        assert hasattr(owner, step)
        owner = getattr(owner, step)


def test_no_name_is_listed_twice_and_every_switch_exists() -> None:
    assert len(NAMES) == len(PATCHES)
    for switch in {switch for patch in PATCHES for switch in patch.switch.split("; ")}:
        module, _, function = switch.rpartition(".")
        assert callable(getattr(importlib.import_module(f"megatron_cpt.{module}"), function)), switch


def replaced_names(tree: ast.Module) -> set[str]:
    """Attributes of what a file imports from Megatron-Core and torch that the file sets by itself."""
    imported = {
        (name.asname or name.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
        if (node.module or "" if isinstance(node, ast.ImportFrom) else name.name).split(".")[0] in LIBRARIES
    }
    found = set()
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = [target for target in node.targets if isinstance(target, ast.Attribute)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            targets = node.args[:1]
        found |= {ast.unparse(target) for target in targets if ast.unparse(target).split(".")[0] in imported}
    return found


def test_a_file_that_sets_a_name_by_itself_is_found() -> None:
    text = "import torch\nfrom megatron.core import a as b\nb.c = 1\nsetattr(torch.nn, 'x', 2)\nown.y = 3\n"
    assert replaced_names(ast.parse(text)) == {"b.c", "torch.nn"}


def test_every_name_is_replaced_through_the_table() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert replaced_names(ast.parse(path.read_text())) == set(), path


def test_what_is_not_listed_or_not_there_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        replace_name("megatron.core.transformer.mlp", "MLP", None)
    monkeypatch.delattr(mlp, "bias_swiglu_impl")
    with pytest.raises(AttributeError, match=r"mlp\.bias_swiglu_impl: not in the installed version"):
        replace_name("megatron.core.transformer.mlp", "bias_swiglu_impl", None)


def test_where_cuda_is_only_what_is_needed_there_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for patch in PATCHES:
        owner = type("Owner", (), {patch.name.rpartition(".")[2]: None})()
        if patch.on_gpu:
            replace_name(patch.module, patch.name, 1, owner=owner)
            assert getattr(owner, patch.name.rpartition(".")[2]) == 1
        else:
            with pytest.raises(RuntimeError, match="on CPUs alone"):
                replace_name(patch.module, patch.name, 1, owner=owner)
