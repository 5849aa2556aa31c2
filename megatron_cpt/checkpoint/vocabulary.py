"""A model with other tokens: a Hugging Face folder to another one whose tokenizer knows more words, or other words.

Which rows a new token is made of is decided first (RowSource), then every matrix that has one row a token (the
embedding, and the output layer where it is not tied) is written anew from its own rows:

- a token that both tokenizers have keeps its row;
- a new one gets the mean of the rows of the pieces that the old tokenizer cuts its text into;
- one that has no such pieces, or all new ones where that is asked for, a random row with the mean and the standard
  deviation that the old rows have in each dimension.

No row is zero: a zero row has no direction to learn in, and its logit is above that of most tokens.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from megatron_cpt.checkpoint.hf_export import make_partial
from megatron_cpt.checkpoint.hf_folder import (
    INDEX,
    copy_files,
    model_files,
    open_hf_tensors,
    tokenizer_files,
    write_shard,
)
from megatron_cpt.checkpoint.hf_weights import check_tensors
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of, read_shape
from megatron_cpt.families.weights import VocabularyParallel
from megatron_cpt.runs.durable import sync_folder, write_json

NewRows = Literal["mean", "random"]


@dataclass(frozen=True)
class RowSource:
    """What the row of a token is made of."""

    pieces: tuple[int, ...]
    """Old tokens whose rows are averaged; none for a random row."""
    kept: bool = False
    """Whether it is an old token, whose row stays as it is."""


def extend_vocabulary(
    hf_folder: Path,
    output: Path,
    new_tokens: Sequence[str] = (),
    tokenizer: Path | None = None,
    new_rows: NewRows = "mean",
    seed: int = 1234,
) -> ModelShape:
    """Writes the folder of the same model with another vocabulary, and returns its shape.

    Args:
        new_tokens: words to add to the model's own tokenizer.
        tokenizer: folder of the tokenizer to use instead; either this or new_tokens.
        new_rows: of tokens that the old tokenizer did not have.
        seed: of random rows.
    Raises:
        BadInput: nothing to do, a word is known already, no tokenizer.json, something is at `output`.
        IntegrityFault: a torn or altered file.
    """
    shape = read_shape(hf_folder)
    old = read_tokenizer(hf_folder)
    new = read_tokenizer(tokenizer) if tokenizer else add_tokens(old, new_tokens)
    sources = row_sources(old, new, new_rows, shape.vocabulary)
    matrices = {
        rule.tensors[0].name
        for rule in family_of(shape).weights(shape)
        if isinstance(rule, VocabularyParallel) and rule.exported
    }
    partial = output.with_name(f".{output.name}.partial")
    make_partial(output, partial)
    with open_hf_tensors(hf_folder) as tensors:
        check_tensors(tensors, shape)
    for path in sorted(hf_folder.glob("*.safetensors")):
        write_file(path, partial / path.name, matrices, sources, seed)
    write_descriptions(hf_folder, partial, {"vocab_size": len(sources), **end_tokens(tokenizer, new)})
    # With another tokenizer, the parent's generation config names an end of a text that is none.
    left = [Path("generation_config.json")] if tokenizer else []
    copy_files(hf_folder, partial, [name for name in model_files(hf_folder) if name not in left])
    copy_files(tokenizer or hf_folder, partial, tokenizer_files(tokenizer or hf_folder))
    new.save(str(partial / "tokenizer.json"))
    sync_folder(partial)
    partial.rename(output)
    sync_folder(output.parent)
    return read_shape(output)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, which must be described by a tokenizer.json. Raises BadInput."""
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        rule = f"is not a readable tokenizer ({error})."
        raise BadInput(Fault(str(folder / "tokenizer.json"), rule, "Save one with transformers first.")) from None


def add_tokens(old: Tokenizer, new_tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with further words, found whole wherever they stand. Raises BadInput for one that it has."""
    known = old.get_vocab(with_added_tokens=True)
    faults = [
        Fault(f"new token {token!r}", "the tokenizer has it already, or it is given twice.", "Take it out.")
        for place, token in enumerate(new_tokens)
        if token in known or token in new_tokens[:place]
    ]
    if not new_tokens or not all(new_tokens):
        faults.append(Fault("new tokens", "there is none, or one is empty.", "Give words, or a tokenizer folder."))
    if faults:
        raise BadInput(*faults)
    new = Tokenizer.from_str(old.to_str())
    new.add_tokens([AddedToken(token, normalized=False) for token in new_tokens])
    return new


def row_sources(old: Tokenizer, new: Tokenizer, new_rows: NewRows, rows: int) -> list[RowSource]:
    """What each row of the new matrices is made of, by the id of its token.

    Args:
        rows: of the old matrices; those beyond the old tokenizer's words are not used by any text. The new matrices
            are no smaller where the new tokenizer has all words of the old one at their places.
    """
    before = old.get_vocab(with_added_tokens=True)
    after = new.get_vocab(with_added_tokens=True)
    count = max(after.values()) + 1
    if all(after.get(token) == place for token, place in before.items()):
        count = max(count, rows)
    # A row that no token of either tokenizer has is kept where it was: nothing reads it.
    sources = [RowSource((place,), kept=True) if place < rows else RowSource(()) for place in range(count)]
    for token, place in after.items():
        if token in before:
            sources[place] = RowSource((before[token],), kept=True)
            continue
        text = new.decode([place], skip_special_tokens=False)
        pieces = old.encode(text, add_special_tokens=False).ids if new_rows == "mean" and "\ufffd" not in text else []
        sources[place] = RowSource(tuple(pieces))
    return sources


def new_matrix(old: Tensor, sources: Sequence[RowSource], seed: int) -> Tensor:
    """The matrix of the new vocabulary from the old one, [old tokens, width], in its dtype; means in fp32."""
    mean, spread = old.mean(dim=0, dtype=torch.float32), old.float().std(dim=0)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.zeros(len(sources), old.shape[1], dtype=old.dtype)
    for row, source in enumerate(sources):
        if source.pieces:
            pieces = old[list(source.pieces)]
            matrix[row] = pieces[0] if len(pieces) == 1 else pieces.mean(dim=0, dtype=torch.float32)
        if not source.kept and not matrix[row].any():  # no pieces, or pieces that were never trained
            matrix[row] = mean + spread * torch.randn(old.shape[1], generator=generator)
    return matrix


def write_file(path: Path, output: Path, matrices: set[str], sources: Sequence[RowSource], seed: int) -> None:
    """Writes one file of weights; one that holds no matrix of the vocabulary is copied byte for byte."""
    with safe_open(path, framework="pt") as file:
        held = matrices & set(file.keys())
    if not held:
        shutil.copyfile(path, output)
        return
    tensors = load_file(path)
    # Each matrix has random rows of its own.
    changed = {
        name: new_matrix(tensors[name], sources, seed + number)
        for number, name in enumerate(sorted(matrices))
        if name in held
    }
    write_shard(output, tensors | changed)


def end_tokens(folder: Path | None, tokenizer: Tokenizer) -> dict[str, int | None]:
    """Fields of config.json that name the first and the last token of a text by another tokenizer's ids."""
    if folder is None:
        return {}
    path = folder / "tokenizer_config.json"
    named = orjson.loads(path.read_bytes()) if path.is_file() else {}
    found: dict[str, int | None] = {}
    for name in ("bos_token", "eos_token"):
        token = named.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        found[f"{name}_id"] = tokenizer.token_to_id(content) if content else None
    return found


def write_descriptions(hf_folder: Path, output: Path, changes: dict[str, int | None]) -> None:
    """Writes config.json with changes, and the index of files if there is one."""
    config = orjson.loads((hf_folder / "config.json").read_bytes())
    write_json(output / "config.json", config | changes)
    if (hf_folder / INDEX).is_file():
        index = orjson.loads((hf_folder / INDEX).read_bytes())
        total = sum(
            tensor.numel() * tensor.itemsize
            for path in output.glob("*.safetensors")
            for tensor in load_file(path).values()
        )
        write_json(output / INDEX, index | {"metadata": {"total_size": total}})
