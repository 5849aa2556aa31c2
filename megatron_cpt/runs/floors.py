"""The oldest versions of libraries that this package starts with; earlier ones have known holes.

torch before 2.10 runs code from checkpoints that should be data (CVE-2025-32434, CVE-2026-24747), transformers before
5.3 from a config.json (CVE-2026-4372), and safetensors before 0.8 leaves torn files. The versions are those of
pyproject.toml, as they were installed with this package. pip heeds them once; a container or a path can bring others.
"""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from megatron_cpt.config.errors import Fault

_ENFORCED = ("torch", "transformers", "safetensors")


def floor_faults() -> Iterator[Fault]:
    """Libraries that are older than this package needs."""
    for name, floor in _floors().items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue  # its import says so
        if _numbers(installed) < _numbers(floor):
            yield Fault(f"{name} {installed}", f"is older than {floor}.", f"Install it: pip install '{name}>={floor}'.")


def _floors() -> dict[str, str]:
    """The floor of each library; none where the package is not installed but read from its sources."""
    try:
        required = requires("megatron-cpt") or []
    except PackageNotFoundError:
        return {}
    found = (re.match(r"([\w-]+).*?>=([\d.]+)", line) for line in required if "extra ==" not in line)
    return {match[1]: match[2] for match in found if match is not None and match[1] in _ENFORCED}


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version, such as (2, 10, 0) of 2.10.0a0+b4e4ee8: what vendors build is not older."""
    release = re.match(r"\d+(\.\d+)*", text)
    parts = [int(part) for part in release[0].split(".")] if release is not None else []
    return (*parts, 0, 0, 0)[:3]
