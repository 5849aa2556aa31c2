"""The tensors of a folder that are none of the model that is trained (families/others.py).

They are never loaded into the model. An export copies them, bit for bit, out of the folder that the model came from.
Checkpoints hold none of them; a small file in `hf/` tells that folder, and the hash of these tensors in it, so that no
other folder's are joined to the model in silence.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import torch
from torch import Tensor

from megatron_cpt.checkpoint.hf_dtypes import STORED
from megatron_cpt.checkpoint.hf_folder import HFTensors, has_safetensors, open_hf_tensors
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.families.multimodal import multimodal_of
from megatron_cpt.families.others import OtherNames, other_names
from megatron_cpt.families.shape import read_config
from megatron_cpt.families.weights import Stack
from megatron_cpt.runs.folder import write_json

_FILE = "other_tensors.json"


@dataclass(frozen=True)
class OtherTensors:
    """Where the tensors beside a language model are, and what they are."""

    folder: str
    """The folder that has them, absolute."""
    sha256: str
    """Hash of their names, sizes and bytes; empty where they have not been read yet."""


def find_others(hf_folder: Path) -> OtherTensors | None:
    """The other tensors of a model that a folder holds or describes; None where it has none. Nothing is hashed.

    Args:
        hf_folder: one with weights, or a checkpoint's `hf`, which tells where they are.
    Raises:
        IntegrityFault: what the folder says of them cannot be read.
    """
    names = other_names(read_config(hf_folder))
    if names == OtherNames():
        return None
    if has_safetensors(hf_folder):
        if names.kind is None:
            with open_hf_tensors(hf_folder) as tensors:
                if not tensors.others:  # transformers writes none of the layers that it leaves out
                    return None
        return OtherTensors(str(hf_folder.absolute()), "")
    path = hf_folder / _FILE
    if not path.is_file():
        return None
    try:
        values = orjson.loads(path.read_bytes())
        return OtherTensors(str(values["folder"]), str(values["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFault(f"{path}: does not tell where the other tensors are ({error})") from error


def hashed_others(hf_folder: Path) -> OtherTensors | None:
    """As find_others, with the hash: of a folder with weights they are all read."""
    found = find_others(hf_folder)
    if found is None or found.sha256:
        return found
    with open_hf_tensors(hf_folder) as tensors:
        digest = OthersHash()
        for name in tensors.others:
            digest.add(name, tensors.read_other(name))
    return OtherTensors(found.folder, digest.hexdigest())


def write_others(folder: Path, others: OtherTensors | None) -> None:
    """Leaves a note of them in the folder that describes the model of a run or a checkpoint."""
    if others is not None:
        write_json(folder / _FILE, asdict(others))


def refuse_unlike(others: OtherTensors | None, known: OtherTensors | None, shown: Path) -> None:
    """Raises BadInput where a model's other tensors are not those that are known of it.

    Args:
        known: None where nothing is known.
        shown: what knows them.
    """
    if others is not None and known is not None and others.sha256 != known.sha256:
        rule = f"its tensors beside the language model are not those of {shown}, which came from {known.folder}."
        raise BadInput(Fault(others.folder, rule, "Name the folder that the model came from, or a copy of it."))


def source_of_others(others: OtherTensors) -> Path:
    """The folder that has them. Raises BadInput where it is not there."""
    folder = Path(others.folder)
    if not (folder / "config.json").is_file() or not has_safetensors(folder):
        rule = "the model's tensors beside its language model are copied from there, and it holds no weights."
        remedy = "Bring the folder back, or name a copy of it: `model.hf` of a run, --hf-config of `convert to-hf`."
        raise BadInput(Fault(others.folder, rule, remedy))
    return folder


class OthersHash:
    """SHA-256 of tensors by name, dtype, size and bytes, which are added one after the other in the order of names."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Adds one."""
        self._sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """The hash."""
        return self._sha256.hexdigest()


class OpenOthers:
    """The other tensors of a model that is exported, and the names in their folder of the language model's."""

    def __init__(self, tensors: HFTensors | None = None, known: OtherTensors | None = None) -> None:
        self._tensors, self._known = tensors, known

    def stored_name(self, name: str) -> str:
        """What a tensor of the language model is called in the folder."""
        return name if self._tensors is None else self._tensors.stored_name(name)

    @property
    def stacks(self) -> tuple[Stack, ...] | None:
        """The tensors of the folder that hold those of all experts of a layer; None: there is none open."""
        return None if self._tensors is None else tuple(self._tensors.stacks.values())

    @property
    def dtypes(self) -> set[str]:
        """dtypes that the other tensors have: float32, bfloat16, ..."""
        words = set() if self._tensors is None else {self._tensors.dtype_of_other(name) for name in self._names}
        return {STORED[word] for word in words & STORED.keys()}

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self._tensors.bytes_of_other(name) for name in self._names) if self._tensors is not None else 0

    @property
    def _names(self) -> Sequence[str]:
        return () if self._tensors is None else self._tensors.others

    def divided(self, file_bytes: int) -> list[list[str]]:
        """Their names, in order, by the files that they are to be written to.

        Args:
            file_bytes: bytes of tensors in one file, about; a tensor is never divided.
        """
        files: list[list[str]] = []
        filled = 0
        for name in self._names:
            assert self._tensors is not None
            size = self._tensors.bytes_of_other(name)
            if not files or filled + size > file_bytes:
                files.append([])
                filled = 0
            files[-1].append(name)
            filled += size
        return files

    def read(self, files: Sequence[Sequence[str]]) -> Iterator[dict[str, Tensor]]:
        """The tensors of each file, one file in memory at a time.

        Raises:
            IntegrityFault: after the last, where they are not what is known of them.
        """
        digest = OthersHash()
        for names in files:
            assert self._tensors is not None
            content = {name: self._tensors.read_other(name) for name in names}
            for name, tensor in content.items():
                digest.add(name, tensor)
            yield content
        if self._known is not None and self._known.sha256 not in ("", digest.hexdigest()):
            raise IntegrityFault(
                f"{self._known.folder}: its tensors beside the language model are not those that the model came with. "
                "Name the folder as it was, or a copy of it"
            )


@contextmanager
def opened_others(hf_folder: Path, others: OtherTensors | None = None) -> Iterator[OpenOthers]:
    """What an export of a model joins to its language model: nothing where it is all of the model.

    Args:
        hf_folder: what describes the model.
        others: None: those that it has or tells of.
    Raises:
        BadInput: they are not to be had.
    """
    others = others or find_others(hf_folder)
    multimodal = multimodal_of(read_config(hf_folder)) is not None
    if others is None and not multimodal:
        yield OpenOthers()
        return
    if others is None:
        rule = "holds no weights and does not tell where those beside the language model are."
        raise BadInput(Fault(str(hf_folder), rule, "Name the whole folder that the model came from."))
    with open_hf_tensors(source_of_others(others)) as tensors:
        yield OpenOthers(tensors, others)
