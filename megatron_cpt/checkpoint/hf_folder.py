"""The tensors of a Hugging Face folder: found, checked and read slice by slice; written shard by shard.

Only safetensors are read; nothing is unpickled. A folder has either one `model.safetensors`, or
several files and `model.safetensors.index.json`, whose `weight_map` says which file holds which tensor.
One with both is refused: transformers reads the single file, other programs read the index. What we export ourselves
has a `sha256.json` beside it.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_cpt.checkpoint.tensor_forms import Form, Index, forms_of, of_stack
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.families.fields import fp8_block, is_mxfp4
from megatron_cpt.families.multimodal import text_fields
from megatron_cpt.families.others import OtherNames, other_names
from megatron_cpt.families.shape import ADAPTER, adapter_fault, read_config, stacks_of
from megatron_cpt.families.weights import Stack, stack_places
from megatron_cpt.runs.folder import file_sha256, sync_file, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HASHES, LINEAGE = "sha256.json", "lineage.json"
"""What an export of ours has beside the files of a Hugging Face folder."""
_OTHER_WEIGHTS = "transformers_weights"
# What a folder holds beside config.json and weights, by names in lower case: what makes its tokenizer ...
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.json*",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
# ... and what belongs to the model.
_MODEL_FILES = (
    "generation_config.json",
    "*processor_config.json",
    "licen[cs]e*",
    "copying*",
    "notice*",
    "*use_policy*",
)
_COMPARED_ELEMENTS = 1 << 24
"""Elements of two tensors that are compared at a time."""
READABLE = ("F32", "BF16", "F16", "F64")


class HFTensors:
    """The tensors of an open folder, by the names that a language model's have in the name table of its family.

    In a model that reads more than text, and where one tensor holds those of all experts, these are not the names in
    the files. Tensors that are none of the model that is trained (families/others.py) are kept apart. Matrices in fewer
    bits are read as bf16 (tensor_forms.py).
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[Path, Any],
        names: OtherNames | None = None,
        quantization: Any = None,
        stacks: Iterable[Stack] = (),
        hidden: int = 0,
    ) -> None:
        """Takes the open files.

        Args:
            quantization: `quantization_config`.
            stacks: which tensors may hold those of all experts.
            hidden: `hidden_size`.
        """
        names = names or OtherNames()
        self.folder = folder
        self.files = tuple(files)
        """The files that hold the tensors; a folder may have others beside them."""
        file_of = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
        forms = forms_of(file_of, fp8_block(quantization), is_mxfp4(quantization))
        self._others = {name: form for name, form in sorted(forms.items()) if names.is_other(name)}
        self._forms: dict[str, Form] = {}
        self._stored: dict[str, str] = {}
        self.stacks: dict[str, Stack] = {}
        """Which tensors hold those of all experts, and how, by their names with `{layer}`."""
        for name in sorted(forms.keys() - self._others.keys()):
            text = names.text_name(name)
            text = name if text in self._stored else text  # the second of two is surplus
            self._stored[text] = name
            for one, form in self._unstacked(text, forms[name], stacks, hidden).items():
                self._forms[one], self._stored[one] = form, name

    @property
    def names(self) -> set[str]:
        """All tensors of the language model."""
        return set(self._forms)

    @property
    def others(self) -> tuple[str, ...]:
        """All other tensors, in order, by their names in the files."""
        return tuple(self._others)

    def _unstacked(self, name: str, form: Form, stacks: Iterable[Stack], hidden: int) -> dict[str, Form]:
        """The tensors of a name table that a tensor of a folder holds: those of all experts, or itself."""
        for stack in stacks:
            layer = re.fullmatch(re.escape(stack.name).replace(r"\{layer\}", r"(\d+)"), name)
            if layer is None or not form.size:
                continue
            stored = stack.as_stored(form.size, hidden)
            places = stack_places(stored, int(layer[1]), form.size[0])
            parts = {one: of_stack(form, place) for one, place in places.items() if one not in self._forms}
            found = {one: part for one, part in parts.items() if part is not None}
            if found and len(found) == len(places):  # with one that the folder has twice, it is surplus
                self.stacks[stack.name] = stored
                return found
        return {name: form}

    def stored_name(self, name: str) -> str:
        """The name of a tensor in the files; of one that they lack, the name that begins there as those of others do.

        They lack a tied output layer, and the tensor of all experts of a layer where they hold each by itself.
        """
        if name in self._stored:
            return self._stored[name]
        first, _, rest = name.partition(".")
        for text, stored in self._stored.items():
            own = text.removeprefix(f"{first}.")
            if own != text and stored.endswith(own):
                return stored.removesuffix(own) + rest
        return name

    def size(self, name: str) -> tuple[int, ...]:
        """Dimensions of a tensor."""
        return self._forms[name].size

    def dtype(self, name: str) -> str:
        """dtype of a tensor as it is read, in safetensors' words: F32, BF16, ..."""
        return self._forms[name].dtype

    @property
    def dequantized(self) -> str:
        """How many tensors of the language model are in fewer bits in the files, and in which; empty where none is."""
        kinds = {self._stored[name]: form.bits for name, form in self._forms.items() if form.bits is not None}
        return ", ".join(f"{count:,} tensors from {bits}" for bits, count in Counter(kinds.values()).items())

    def read(self, name: str, axis: int, start: int, length: int) -> Tensor:
        """Rows (axis 0) or columns (axis 1) start to start + length of a tensor, on the CPU.

        Raises:
            BadInput: they hold a NaN or an infinity.
        """
        along = slice(start, start + length)
        index: Index = (along,) if axis == 0 else (slice(None), along)
        part = self._forms[name].read(index)
        if not is_finite(part):
            rule = "the tensor holds a NaN or an infinity."
            raise BadInput(Fault(f"{self.folder}: {name}", rule, "Fetch the folder again, or use another model."))
        return part

    def read_other(self, name: str) -> Tensor:
        """One of the other tensors, whatever it holds."""
        return self._others[name].read(())

    def dtype_of_other(self, name: str) -> str:
        """dtype of one of the other tensors as it is read, in safetensors' words."""
        return self._others[name].dtype

    def bytes_of_other(self, name: str) -> int:
        """Bytes of one of the other tensors."""
        bits = re.search(r"\d+", self.dtype_of_other(name))  # BF16, I64, F8_E4M3; BOOL is a byte
        return prod(self._others[name].size) * (int(bits[0]) if bits else 8) // 8

    def holds(self, name: str, number: float) -> bool:
        """Whether a tensor is a number, in its own dtype."""
        if name not in self._forms:
            return False
        found = self._forms[name].read(())
        return found.numel() == 1 and bool((found == torch.tensor(number, dtype=found.dtype)).all())

    def are_equal(self, first: str, second: str) -> bool:
        """Whether two tensors have the same dtype, size and bytes, read some rows at a time."""
        if (self.dtype(first), self.size(first)) != (self.dtype(second), self.size(second)):
            return False
        rows = max(1, _COMPARED_ELEMENTS // prod(self.size(first)[1:]))
        parts = (slice(start, start + rows) for start in range(0, self.size(first)[0], rows))
        one, other = self._forms[first], self._forms[second]
        return all(
            torch.equal(one.read((part,)).view(torch.uint8), other.read((part,)).view(torch.uint8)) for part in parts
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity, in one pass and without a mask.

    A sum is finite only if all its terms are. One in the tensor's own dtype is many times as fast, and may overflow;
    one in float64 does not.
    """
    return bool(tensor.sum().isfinite() or tensor.sum(dtype=torch.float64).isfinite())


@contextmanager
def open_hf_tensors(folder: Path) -> Iterator[HFTensors]:
    """Opens the safetensors of a folder; their headers are read, their tensors are not.

    Raises:
        BadInput: the folder has no safetensors (pickles are refused), or its index does not fit its files.
        IntegrityFault: a header or the index is torn or altered.
    """
    places = _read_index(folder)
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for path in sorted(set(places.values())) or [folder / SINGLE]:
            try:
                files[path] = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise IntegrityFault(f"{path}: not a whole safetensors file ({error})") from error
        _check_index(folder, places, files)
        if not (folder / "config.json").is_file():
            yield HFTensors(folder, files)
            return
        config = read_config(folder)
        text = text_fields(config)
        hidden = text.get("hidden_size")
        yield HFTensors(
            folder,
            files,
            other_names(config),
            text.get("quantization_config"),
            stacks_of(config),
            hidden if isinstance(hidden, int) else 0,
        )


def _read_index(folder: Path) -> dict[str, Path]:
    """The file of each tensor as the index states it; empty for a folder of one file.

    Raises:
        BadInput: there are no safetensors, the index names files that are not in the folder, or transformers would
            read other weights.
        IntegrityFault: the index is not readable.
    """
    if (folder / INDEX).is_file():
        try:
            index: dict[str, str] = orjson.loads((folder / INDEX).read_bytes())["weight_map"]
            places = {name: folder / file for name, file in index.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityFault(f"{folder / INDEX}: not a readable index ({error})") from error
        if not places:
            raise IntegrityFault(f"{folder / INDEX}: its weight_map is empty")
        for name, path in places.items():
            if path.parent != folder or path.suffix != ".safetensors" or not is_file(path) or leaves(path):
                raise BadInput(
                    Fault(
                        f"{folder / INDEX}: {name} in {index[name]!r}",
                        "must name a .safetensors file of this folder, and no link out of it.",
                        "Fetch the missing files, or another copy if the index leaves the folder.",
                    )
                )
        _refuse_other_weights(folder, set(places.values()))
        return places
    if (folder / SINGLE).is_file():
        if leaves(folder / SINGLE):
            rule = f"is a link out of the folder, to {(folder / SINGLE).resolve()}."
            raise BadInput(Fault(str(folder / SINGLE), rule, "Copy the file here, or name the folder that it is in."))
        _refuse_other_weights(folder, set())
        return {}
    raise BadInput(_no_safetensors(folder))


def _refuse_other_weights(folder: Path, indexed: set[Path]) -> None:
    """Refuses a folder of which transformers would read other weights than ours: no proof would hold.

    Args:
        indexed: files that the index names; empty where there is none.
    Raises:
        BadInput: a single file beside an index of other files, which transformers prefers; an adapter, which it adds;
            a field of config.json that names other weights.
    """
    faults = []
    if indexed and (folder / SINGLE).is_file() and indexed != {folder / SINGLE}:
        rule = (
            f"the folder holds two sets of weights: transformers reads {SINGLE}, other programs read the "
            f"{len(indexed)} files of the index."
        )
        remedy = f"Remove the set that is not meant: {SINGLE}, or {INDEX} and its files."
        faults.append(Fault(f"{folder}: both {SINGLE} and {INDEX}", rule, remedy))
    if (folder / ADAPTER).is_file():
        rule = "transformers adds the adapter to the model where peft is installed; here adapters are not read."
        remedy = "Merge it into the weights first (merge_and_unload in peft), or remove the adapter's files."
        faults.append(Fault(f"{folder / ADAPTER}", rule, remedy))
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if config.get(_OTHER_WEIGHTS) is not None:
        rule = "transformers reads the weights from there; here they are read from the safetensors of the folder."
        remedy = f"Save the model as {SINGLE} or as shards with an index, and take the field out."
        faults.append(Fault(f"{folder / 'config.json'}: {_OTHER_WEIGHTS} = {config[_OTHER_WEIGHTS]!r}", rule, remedy))
    refuse(faults)


def has_safetensors(folder: Path) -> bool:
    """Whether a folder holds weights that are read here."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX))


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def leaves(path: Path) -> bool:
    """Whether a file is a link to outside of its folder, that of a hub's cache to its own blobs aside."""
    target, folder = path.resolve(), path.parent.resolve()
    blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else folder
    return target.parent not in (folder, blobs)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that make its tokenizer, relative to it, in order."""
    return _matching(folder, (*_TOKENIZER_FILES, *_own_code(folder / "tokenizer_config.json")))


def model_files(folder: Path) -> list[Path]:
    """The files of a folder beside config.json, weights and tokenizer that belong to its model, relative to it."""
    return _matching(folder, (*_MODEL_FILES, *_own_code(folder / "config.json")))


def _own_code(description: Path) -> tuple[str, ...]:
    """Which files are code where a description names some (`auto_map`): they are copied and never executed."""
    try:
        named = orjson.loads(description.read_bytes()).get("auto_map")
    except (OSError, ValueError, AttributeError):
        return ()
    return ("*.py",) if named else ()


def copy_tokenizer_files(folder: Path, output: Path) -> None:
    """Copies tokenizer and model files unchanged: a tokenizer that is saved anew may not be the same one."""
    copy_files(folder, output, {*tokenizer_files(folder), *model_files(folder)})


def read_history(folder: Path) -> dict[str, Any]:
    """The learning-rate history that an export or a checkpoint's `hf` carries, empty for a model made elsewhere."""
    path = folder / LINEAGE
    return orjson.loads(path.read_bytes()) if path.is_file() else {}


def copy_history(folder: Path, output: Path) -> None:
    """Copies the learning-rate history that an export of ours carries; a folder made elsewhere has none."""
    if (folder / LINEAGE).is_file():
        copy_files(folder, output, [Path(LINEAGE)])


def copy_files(folder: Path, output: Path, names: Iterable[Path]) -> None:
    """Copies files, given relative to the folder, unchanged."""
    for name in names:
        (output / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, output / name)


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    names = [path.relative_to(folder) for path in (*folder.glob("*"), *folder.glob("*/*.jinja")) if path.is_file()]
    return sorted(name for name in names if any(fnmatchcase(str(name).lower(), pattern) for pattern in patterns))


def _no_safetensors(folder: Path) -> Fault:
    """Why a folder without safetensors cannot be read."""
    if not folder.is_dir():
        return Fault(str(folder), "there is no such folder.", "Name a folder with config.json, tokenizer and weights.")
    if (folder / ADAPTER).is_file():
        return adapter_fault(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return Fault(
            f"{folder}: weights in pickles (.bin, .pt)",
            "only safetensors are read, because a pickle can run any program.",
            "Where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) in transformers.",
        )
    return Fault(
        f"{folder}: no weights",
        f"there is neither {SINGLE} nor {INDEX}.",
        "Fetch the weights, or set `model.weights=random` to train from scratch.",
    )


def _check_index(folder: Path, places: Mapping[str, Path], files: Mapping[Path, Any]) -> None:
    """Refuses an index that does not say of each tensor which file holds it. Raises BadInput."""
    held = [(name, path) for path, file in files.items() for name in file.keys()]  # noqa: SIM118
    if places and set(held) != set(places.items()):
        odd = sorted({name for name, _ in set(held) ^ set(places.items())})
        raise BadInput(
            Fault(
                f"{folder / INDEX}: {', '.join(odd[:5])}",
                f"index and files disagree about {len(odd)} tensors.",
                "Fetch the folder again: files of two models may be mixed.",
            )
        )


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes one safetensors file and waits until it is on disk."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        of_system = _OF_SYSTEM.search(str(error))
        if of_system is None:
            raise
        raise OSError(int(of_system[1]), os.strerror(int(of_system[1])), str(path)) from error
    sync_file(path)


_OF_SYSTEM = re.compile(r"\(os error (\d+)\)")
"""How safetensors tells of an error of the system: by its number."""


def write_hashes(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Leaves the hashes of what makes a folder its model, for whoever reads it later; a card may be changed.

    Args:
        known: those of files that whoever wrote them has hashed.
    """
    hashes = dict(known or {})
    names = [*tokenizer_files(folder), *(Path(name) for name in ("config.json", INDEX, LINEAGE))]
    names += [path.relative_to(folder) for path in folder.glob("*.safetensors")]
    for name in {str(name) for name in names if (folder / name).is_file()} - set(hashes):
        hashes[name] = file_sha256(folder / name)
    write_json(folder / HASHES, {"sha256": dict(sorted(hashes.items()))})


def altered_files(folder: Path, rank: int = 0, ranks: int = 1) -> list[str]:
    """The files of an export of ours that are not what was written. A folder made elsewhere has no hashes, and none.

    Args:
        rank: of `ranks` that share the files, each of which calls it.
    """
    if not (folder / HASHES).is_file():
        return []
    try:
        hashes: dict[str, str] = orjson.loads((folder / HASHES).read_bytes())["sha256"]
        mine = list(hashes.items())[rank::ranks]
        return [name for name, digest in mine if not is_file(folder / name) or file_sha256(folder / name) != digest]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [HASHES]


def refuse_altered(folder: Path) -> None:
    """Raises IntegrityFault where an export of ours is not what was written."""
    if altered := altered_files(folder):
        raise altered_fault(folder, altered)


def altered_fault(folder: Path, altered: Sequence[str]) -> IntegrityFault:
    """What is told of files that are not what was written."""
    return IntegrityFault(
        f"{folder}: {', '.join(altered)}: not what was written, by the hashes of {HASHES}. Copy or export it again; "
        f"where it was changed on purpose, remove {HASHES}."
    )
