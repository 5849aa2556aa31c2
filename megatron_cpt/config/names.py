"""Names and paths that users give: which cannot be used."""

import re
from collections.abc import Iterable, Iterator

from megatron_cpt.config.errors import Fault

# Names stand in file names, TensorBoard tags and `data.sources.NAME.weight=2`.
_NAME = re.compile(r"[\w-]+")


def name_faults(section: str, names: Iterable[str]) -> Iterator[Fault]:
    """Names that cannot stand where names do."""
    for name in names:
        if not _NAME.fullmatch(name):
            rule = "a name holds letters, digits, `-` and `_`: it stands in file names and dotted settings."
            yield Fault(f"{section}: '{name}'", rule, "Rename it.")


def path_faults(name: str, paths: list[str]) -> Iterator[Fault]:
    """No path, or an empty one."""
    remedy = "Name dataset prefixes (`DIR/NAME` of `DIR/NAME.bin`), selections or globs."
    if not paths:
        yield Fault(f"{name} is empty", "there is nothing to read.", remedy)
    elif not all(path.strip() for path in paths):
        yield Fault(f"{name} has an empty path", "a path names something.", remedy)
