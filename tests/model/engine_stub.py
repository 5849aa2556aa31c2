"""Transformer Engine's own Python, with its compiled module left out: layers build, nothing computes.

`make install` puts the Python of the pinned release, without its libraries, into a folder of the virtual environment
that no import finds by itself. Enumerations of the compiled module are made from the sources that compare them with
Python's own; any other of its names is an object that can be named, and not called.
"""

import enum
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

ENGINE = "2.20.2"
"""The release whose Python this is made for."""
FOLDER = Path(os.environ.get("TRANSFORMER_ENGINE_PYTHON", Path(sys.prefix) / "transformer_engine_python"))


def missing() -> str | None:
    """Why the stub cannot be used; None if it can."""
    if importlib.util.find_spec("transformer_engine") is not None:
        return "Transformer Engine itself is installed"
    if not (FOLDER / f"transformer_engine-{ENGINE}.dist-info").is_dir():
        return f"the Python of Transformer Engine {ENGINE} is not in {FOLDER} (make install)"
    return None


class Name:
    """Stands for a name of the compiled module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Name":
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(f"{self._name}.{name}")

    def __call__(self, *given: Any, **named: Any) -> Any:
        raise RuntimeError(f"{self._name} computes, and is left out")

    def __index__(self) -> int:
        return 0

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


class _Compiled(types.ModuleType):
    """A module that is left out."""

    def __getattr__(self, name: str) -> Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(f"{self.__name__}.{name}")


def install() -> None:
    """Makes `transformer_engine` importable in this process: before Megatron-Core is."""
    os.environ |= {"NVTE_PROJECT_BUILDING": "1", "TORCHDYNAMO_DISABLE": "1"}
    sys.path.append(str(FOLDER))
    package = FOLDER / "transformer_engine/pytorch"
    compiled: Any = _Compiled("transformer_engine_torch")
    compiled.__spec__ = importlib.machinery.ModuleSpec("transformer_engine_torch", None)
    compiled.__file__ = "stub"
    compiled.DType = _enumeration("DType", package / "constants.py", r"^    (k\w+)\s*=")
    compiled.NVTE_Fused_Attn_Backend = _enumeration(
        "FusedAttnBackend", package / "cpp_extensions/fused_attn.py", r"NVTE_Fused_Attn_Backend\.(NVTE_\w+)\)"
    )
    sys.modules["transformer_engine_torch"] = compiled
    # Exports to ONNX, and kernels in Triton, with packages of their own.
    for path in (package / "onnx_extensions.py", *(package / "triton").glob("*.py")):
        name = ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")
        sys.modules[name] = _Compiled(name)
    if importlib.util.find_spec("einops") is None:
        sys.modules["einops"] = _Compiled("einops")
    common: Any = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda *given, **named: None
    importlib.import_module("transformer_engine.pytorch")


def _enumeration(name: str, source: Path, member: str) -> Any:
    """The compiled module's enumeration that a class of the sources is compared with."""
    body = source.read_text().split(f"class {name}")[1].split("\nassert {")[0]
    return enum.IntEnum(name, {found: number for number, found in enumerate(re.findall(member, body, re.MULTILINE))})
