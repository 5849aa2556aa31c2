"""A model with other tokens: a Hugging Face folder to another one whose tokenizer knows more words, or other words.

Which rows a new token is made of is decided first (RowSource), then every matrix that has one row a token (the
embedding, and the output layer where it is not tied) is written anew from its own rows:

- a token that both tokenizers have keeps its row;
- a new one gets the mean of the rows of the pieces that the old tokenizer cuts its text into;
- one that has no such pieces, or all new ones where that is asked for, a random row with the mean and the standard
  deviation that the old rows have in each dimension.

No row is zero: a zero row has no direction to learn in, and its logit is above that of most tokens. The tokenizer of
the new folder is proved before the folder gets its name (new_tokenizer.py).
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from megatron_cpt.checkpoint.hf_dtypes import config_for, parent_dtypes
from megatron_cpt.checkpoint.hf_folder import (
    INDEX,
    copy_files,
    copy_history,
    model_files,
    open_hf_tensors,
    refuse_altered,
    tokenizer_files,
    write_hashes,
    write_shard,
)
from megatron_cpt.checkpoint.hf_weights import check_tensors, vocabulary_tensors
from megatron_cpt.checkpoint.new_tokenizer import (
    add_tokens,
    added_words,
    check_in_transformers,
    check_token_ids,
    read_tokenizer,
    token_id_changes,
    words_faults,
)
from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.families.multimodal import multimodal_of, text_fields, with_text_fields
from megatron_cpt.families.others import other_names
from megatron_cpt.families.shape import read_config, read_shape
from megatron_cpt.runs.folder import refuse_without_room, whole_folder, write_json
from megatron_cpt.tokenizer.formats import token_contents, unknown_token

NewRows = Literal["mean", "random"]
_ROWS_AT_ONCE = 4096
"""Rows of a matrix that are turned into float64 together."""

_OF_ANY_VOCABULARY = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.*",
    "additional_chat_templates/*",
    "tokenization*.py",
)
"""Files of a tokenizer that list no tokens: beside a tokenizer.json with further words, lists would say otherwise."""


@dataclass(frozen=True)
class RowSource:
    """What the row of a token is made of."""

    pieces: tuple[int, ...]
    """Old tokens whose rows are averaged; none for a random row."""
    kept: bool = False
    """Whether it is an old token, whose row stays as it is."""


@dataclass(frozen=True)
class NewVocabulary:
    """How the rows of the new folder came about."""

    rows: int
    """Rows of the embedding."""
    kept: int
    """Rows of the old model."""
    averaged: int
    """New rows that are the mean of old ones."""
    drawn: int
    """New rows that were drawn at random, in the matrix that has most of them."""


def extend_vocabulary(
    hf_folder: Path,
    output: Path,
    new_tokens: Sequence[str] = (),
    tokenizer: Path | None = None,
    new_rows: NewRows = "mean",
    seed: int = 1234,
) -> NewVocabulary:
    """Writes the folder of the same model with another vocabulary.

    Args:
        new_tokens: words to add to the model's own tokenizer.
        tokenizer: folder of the tokenizer to use instead; either this or new_tokens.
        new_rows: of tokens that the old tokenizer did not have.
        seed: of random rows.
    Raises:
        BadInput: nothing to do, a word is known already or would be decoded as another, no tokenizer.json, a
            tokenizer that transformers reads otherwise, something is at `output`.
        IntegrityFault: a torn or altered file.
    """
    refuse_altered(hf_folder)
    shape = read_shape(hf_folder)
    with open_hf_tensors(hf_folder) as tensors:
        check_tensors(tensors, shape)
        files = tensors.files
        embedding, output_layer = map(tensors.stored_name, vocabulary_tensors(shape))
        names = other_names(read_config(hf_folder))
        further = tuple(filter(names.has_row_of_each_token, tensors.others))
    old = read_tokenizer(hf_folder)
    new = read_tokenizer(tokenizer) if tokenizer else add_tokens(old, new_tokens)
    words = added_words(old, new)
    refuse(words_faults(new, words))
    multimodal = multimodal_of(read_config(hf_folder)) is not None
    if multimodal:
        refuse([*_moved_tokens(tokenizer, old, new)])
    sources = row_sources(old, new, new_rows, shape.vocabulary)
    refuse_without_room(output, sum(file.stat().st_size for file in files))
    with whole_folder(output) as folder:
        matrices = (embedding, *further) if shape.tied_embeddings else (embedding, output_layer, *further)
        # A tied output layer that is stored all the same is the embedding once more.
        left_out = {output_layer} if shape.tied_embeddings else set()
        drawn = [_write_file(file, folder / file.name, matrices, left_out, sources, seed) for file in files]
        _write_index(hf_folder, folder, left_out)
        changes = token_id_changes(hf_folder, tokenizer, old, new) if tokenizer and not multimodal else {}
        _write_configs(hf_folder, folder, len(sources), changes)
        _copy_tokenizer_files(hf_folder, tokenizer, folder)
        copy_history(hf_folder, folder)
        if tokenizer is None:
            new.save(str(folder / "tokenizer.json"))
        check_token_ids(folder, len(sources))
        check_in_transformers(folder, new, words, len(sources))
        write_hashes(folder)
    kept = sum(source.kept for source in sources)
    return NewVocabulary(len(sources), kept, len(sources) - kept - max(drawn), max(drawn))


def _moved_tokens(tokenizer: Path | None, old: Tokenizer, new: Tokenizer) -> Iterator[Fault]:
    """Why another tokenizer is not for a model that reads more than text."""
    after = new.get_vocab(with_added_tokens=True)
    moved = [token for token, place in old.get_vocab(with_added_tokens=True).items() if after.get(token) != place]
    if moved:
        rule = (
            f"{len(moved):,} tokens have other ids in it or none, such as {moved[0]!r}, and config.json and the "
            "processor's files name tokens that stand for pictures by their ids."
        )
        yield Fault(f"--tokenizer {tokenizer}", rule, "Add words to the model's own tokenizer: --new-tokens.")


def row_sources(old: Tokenizer, new: Tokenizer, new_rows: NewRows, rows: int) -> list[RowSource]:
    """What each row of the new matrices is made of, by the id of its token.

    A token is the same in both tokenizers where it stands for the same text: a name alone does not tell, for "é" is
    a letter in one tokenizer and a byte in another.

    Args:
        rows: of the old matrices; those beyond the old tokenizer's words are not used by any text, and an old token
            beyond them is new. The new matrices are no smaller where the new tokenizer has all words of the old one
            at their places.
    """
    old = Tokenizer.from_str(old.to_str())
    old.encode_special_tokens = True  # a control token without a row is cut into pieces as well
    before, after = old.get_vocab(with_added_tokens=True), new.get_vocab(with_added_tokens=True)
    old_content, new_content = orjson.loads(old.to_str()), orjson.loads(new.to_str())
    texts, new_texts = token_contents(old_content, before), token_contents(new_content, after)
    # Where two tokens stand for the same text, a byte by its number is the less usual one.
    place_of = {texts[token]: place for token, place in sorted(before.items(), key=lambda item: not _is_byte(item[0]))}
    unknown = before.get(unknown_token(old_content["model"]) or "")
    first = old.encode("a", add_special_tokens=False).tokens[:1]
    puts_blank = bool(first) and texts[first[0]].startswith(b" ")
    blank = place_of.get(b" ") if puts_blank else None
    count = max(after.values()) + 1
    if all(after.get(token) == place for token, place in before.items()):
        count = max(count, rows)
    # A row that no token of either tokenizer has is kept where it was: nothing reads it.
    sources = [RowSource((place,), kept=True) if place < rows else RowSource(()) for place in range(count)]
    for token, place in after.items():
        text = new_texts[token]
        same = before[token] if texts.get(token) == text else place_of.get(text, rows)
        if same < rows:
            sources[place] = RowSource((same,), kept=True)
            continue
        pieces: list[int] = []
        if new_rows == "mean" and _is_text(text):
            words = text.decode().removeprefix(" ") if puts_blank else text.decode()
            pieces = old.encode(words, add_special_tokens=False).ids
        # What stands for text that a tokenizer cannot spell says nothing of it, nor does the blank put before it alone.
        pieces = [piece for piece in pieces if piece < rows and piece != unknown]
        sources[place] = RowSource(() if pieces == [blank] else tuple(pieces))
    return sources


def _is_byte(token: str) -> bool:
    """Whether a token is one byte by its number: `<0xE4>`."""
    return len(token) == len("<0x00>") and token.startswith("<0x")


def _is_text(content: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def statistics(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the rows in each dimension, float64 [width] each, with little memory."""
    mean = matrix.mean(dim=0, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for part in matrix.split(_ROWS_AT_ONCE):
        squares += (part.double() - mean).square().sum(dim=0)
    return mean, (squares / (len(matrix) - 1)).sqrt()


def new_matrix(old: Tensor, sources: Sequence[RowSource], seed: int) -> tuple[Tensor, int]:
    """The matrix of the new vocabulary from the old one, [old tokens, width], in its dtype, and how many of its rows
    are random; means in fp32."""
    mean, spread = statistics(old)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.zeros(len(sources), old.shape[1], dtype=old.dtype)
    drawn = 0
    for row, source in enumerate(sources):
        if source.pieces:
            pieces = old[list(source.pieces)]
            matrix[row] = pieces[0] if len(pieces) == 1 else pieces.mean(dim=0, dtype=torch.float32)
        if not source.kept and not matrix[row].any():  # no pieces, or pieces that were never trained
            matrix[row] = mean + spread * torch.randn(old.shape[1], generator=generator)
            drawn += 1
    return matrix, drawn


def _write_file(
    path: Path, output: Path, matrices: Sequence[str], left_out: set[str], sources: Sequence[RowSource], seed: int
) -> int:
    """Writes one file of weights; one of which nothing changes is copied byte for byte, one of which nothing is left
    is not written. Returns how many rows of a matrix in it are random, the most of all."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    if not names & (left_out | set(matrices)):
        shutil.copyfile(path, output)
        return 0
    tensors = {name: tensor for name, tensor in load_file(path).items() if name not in left_out}
    most = 0
    for number, name in enumerate(sorted(matrices)):
        if name in tensors:
            # Each matrix has random rows of its own.
            tensors[name], drawn = new_matrix(tensors[name], sources, seed + number)
            most = max(most, drawn)
    if tensors:
        write_shard(output, tensors)
    return most


def _write_index(hf_folder: Path, output: Path, left_out: set[str]) -> None:
    """Writes the index of files if there is one."""
    if not (hf_folder / INDEX).is_file():
        return
    index = orjson.loads((hf_folder / INDEX).read_bytes())
    places = {name: file for name, file in index["weight_map"].items() if name not in left_out}
    total = sum(
        tensor.numel() * tensor.itemsize for path in output.glob("*.safetensors") for tensor in load_file(path).values()
    )
    write_json(output / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_configs(hf_folder: Path, output: Path, rows: int, changes: dict[str, dict[str, Any]]) -> None:
    """Writes config.json and the generation config with the changed fields of each, by the file's name."""
    config = config_for(hf_folder, parent_dtypes(hf_folder).words)
    if quantization := read_config(hf_folder).get("quantization_config"):  # matrices in fp8 are copied
        config["quantization_config"] = quantization
    config = with_text_fields(config, text_fields(config) | {"vocab_size": rows})
    write_json(output / "config.json", config | changes.get("config.json", {}))
    path = hf_folder / "generation_config.json"
    if path.is_file():
        write_json(output / path.name, orjson.loads(path.read_bytes()) | changes.get(path.name, {}))


def _copy_tokenizer_files(hf_folder: Path, tokenizer: Path | None, output: Path) -> None:
    """Copies what describes neither weights nor rows: the tokenizer's files from its folder, others from the model's.

    Of a tokenizer with further words, its other lists of tokens stay behind.
    """
    copy_files(hf_folder, output, [name for name in model_files(hf_folder) if name != Path("generation_config.json")])
    of_tokenizer = tokenizer_files(tokenizer or hf_folder)
    if tokenizer is None:
        of_tokenizer = [name for name in of_tokenizer if any(name.match(pattern) for pattern in _OF_ANY_VOCABULARY)]
    copy_files(tokenizer or hf_folder, output, of_tokenizer)
