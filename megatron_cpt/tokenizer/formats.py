"""Tokenizer files of each format, opened by the library that owns the format.

| format | library |
|---|---|
| tokenizer.json; GPT-2's vocab.json and merges.txt | tokenizers |
| sentencepiece .model | sentencepiece |
| tiktoken ranks, tekken.json | tiktoken (tiktoken_ranks.py) |

Texts that are numbers (Megatron-LM's NullTokenizer) are read by tools/preprocess_data.py alone.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from megatron_cpt.config.errors import BadInput, Fault


@dataclass(frozen=True)
class Encoded:
    """The ids of texts, laid end to end."""

    tokens: npt.NDArray[np.int32]
    """Ids of all: int32[sum of lengths]."""
    lengths: npt.NDArray[np.int64]
    """Ids of each text: int64[texts]."""

    @staticmethod
    def of(texts: Sequence[Sequence[int]]) -> "Encoded":
        """From the ids of every text apart."""
        return Encoded.joined([np.array(ids, np.int32) for ids in texts])

    @staticmethod
    def joined(texts: Sequence[npt.NDArray[Any]]) -> "Encoded":
        """From arrays of the ids of every text apart, each of a dtype of four bytes."""
        tokens = np.concatenate(texts).view(np.int32) if texts else np.empty(0, np.int32)
        return Encoded(tokens, np.array([len(ids) for ids in texts], np.int64))

    def chosen(self, which: npt.NDArray[np.bool_]) -> "Encoded":
        """The texts where bool[texts] is true."""
        return Encoded(self.tokens[np.repeat(which, self.lengths)], self.lengths[which])

    def each(self) -> list[npt.NDArray[np.int32]]:
        """The ids of every text apart."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


class Library(Protocol):
    """A tokenizer library with a vocabulary in it."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text alone, without BOS, EOD or anything else that is not in it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are shown as they are written."""

    def number_of(self, token: str) -> int | None:
        """The id of a token, or None."""

    def token_of(self, number: int) -> str:
        """The token of an id."""

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for: int64[vocabulary], control tokens 0."""


@dataclass(frozen=True)
class Opened:
    """A vocabulary that was read, with what its files say of it."""

    library: Library
    identity: str
    """Hash of what determines ids."""
    vocabulary_size: int
    """One more than the largest id."""
    bos: int | None
    eos: int | None
    adds_bos: bool
    """Whether the tokenizer by itself begins a text with BOS, as in the base model's training."""
    control: npt.NDArray[np.bool_]
    """bool[vocabulary]: ids that plain text never gives, `unk` aside."""
    unknown: int | None
    """The id that stands for text which it cannot say."""
    says_all: bool
    """Whether there is a token for every byte, so that no text is lost."""


@dataclass(frozen=True)
class SentencePiece:
    """The library with a model in it. Text never gives its control symbols: they stay text by themselves."""

    path: Path
    model: sentencepiece.SentencePieceProcessor

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded.of(self.model.encode(list(texts), out_type=int, num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        # Control symbols decode to nothing: the text between them is decoded, they are shown as they are written.
        parts: list[str] = []
        plain: list[int] = []
        for number in ids:
            if self.model.is_control(number):
                parts += [self.model.decode(plain), self.model.id_to_piece(number)]
                plain = []
            else:
                plain.append(number)
        return "".join([*parts, self.model.decode(plain)])

    def number_of(self, token: str) -> int | None:
        number = self.model.piece_to_id(token)
        return int(number) if self.model.id_to_piece(number) == token else None

    def token_of(self, number: int) -> str:
        return str(self.model.id_to_piece(number))

    def token_bytes(self) -> npt.NDArray[np.int64]:
        lengths = np.zeros(self.model.get_piece_size(), np.int64)
        for number in range(len(lengths)):
            if self.model.is_byte(number):
                lengths[number] = 1
            elif not (self.model.is_control(number) or self.model.is_unknown(number)):
                lengths[number] = len(self.model.id_to_piece(number).replace("▁", " ").encode())
        return lengths


def open_sentencepiece(path: Path) -> Opened:
    """A .model file. Raises BadInput where the library cannot read it."""
    model = sentencepiece.SentencePieceProcessor()
    content = path.read_bytes()
    try:
        model.LoadFromSerializedProto(content)
    # The library raises RuntimeError with its own source lines in the message.
    except RuntimeError as error:
        remedy = "Give a sentencepiece .model, tiktoken ranks, or a Hugging Face folder."
        raise BadInput(Fault(str(path), "is not a tokenizer that is read.", remedy)) from error
    size = int(model.get_piece_size())
    control = np.array([model.is_control(number) for number in range(size)], np.bool_)
    bos, eos = (None if number < 0 else int(number) for number in (model.bos_id(), model.eos_id()))
    # The library adds no BOS unless it is asked to; that Llama 2 was trained with one only its users know.
    return Opened(
        library=SentencePiece(path, model),
        identity=hashlib.sha256(content).hexdigest(),
        vocabulary_size=size,
        bos=bos,
        eos=eos,
        adds_bos=False,
        control=control,
        unknown=int(model.unk_id()),
        says_all=any(model.is_byte(number) for number in range(size)),
    )


END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only control token."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_BPE_DEFAULTS: dict[str, Any] = {"byte_fallback": False, "fuse_unk": False, "ignore_merges": False}


@dataclass(frozen=True)
class HuggingFace:
    """The `tokenizers` library with a vocabulary in it."""

    backend: tokenizers.Tokenizer
    content: bytes
    """The tokenizer.json that it was read from, or would be written to."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:
            raise _cannot_say("the tokenizer", error) from error
        return Encoded.of([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=False))

    @cached_property
    def contents(self) -> list[bytes] | None:
        """The bytes of each id, where the text of ids is their bytes one behind the other: byte-level. None: it is
        not."""
        content = orjson.loads(self.content)
        if (content.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        contents = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, stands_for in token_contents(content, vocabulary).items():
            contents[vocabulary[token]] = stands_for
        return contents

    def number_of(self, token: str) -> int | None:
        number = self.backend.token_to_id(token)
        return None if number is None else int(number)

    def token_of(self, number: int) -> str:
        return str(self.backend.id_to_token(number))

    def token_bytes(self) -> npt.NDArray[np.int64]:
        content = orjson.loads(self.content)
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        lengths = np.zeros(max(vocabulary.values(), default=-1) + 1, np.int64)
        for token, stands_for in token_contents(content, vocabulary).items():
            lengths[vocabulary[token]] = len(stands_for)
        for token in content.get("added_tokens", []):
            if token["special"]:
                lengths[token["id"]] = 0
        return lengths


def _cannot_say(what: str, error: Exception) -> BadInput:
    """What the library says, in bare Exceptions, where a word model lacks the token for words that it lacks."""
    remedy = "Add the token that stands for what it does not know to its vocabulary."
    return BadInput(Fault(what, f"cannot say every text ({error}).", remedy))


def token_contents(content: dict[str, Any], vocabulary: Mapping[str, int]) -> dict[str, bytes]:
    """The bytes of text that each token of a vocabulary stands for, by its name in the tokenizer.json `content`.

    An added token stands for its own name, whatever letters it has. A token of the model is spelled in byte-level's
    signs for bytes, as one byte (`<0xE4>`), or with a sign for the blank before it; so is one that the model has and
    that is added besides, which sentencepiece-like tokenizers do with runs of blanks.
    """
    byte_of = _byte_of_sign() if _uses_byte_level(content) else {}
    words = content["model"]["vocab"]
    in_model = set(words) if isinstance(words, dict) else {piece for piece, _ in words}
    added = {token["id"] for token in content.get("added_tokens", []) if byte_of or token["content"] not in in_model}
    prefix = content["model"].get("continuing_subword_prefix") or ""
    contents = {}
    for token, number in vocabulary.items():
        if number in added:
            contents[token] = token.encode()
        elif byte_of and byte_of.keys() >= set(token):
            contents[token] = bytes(map(byte_of.__getitem__, token))
        elif _BYTE_TOKEN.fullmatch(token):
            contents[token] = bytes([int(token[3:5], 16)])
        else:
            contents[token] = token.removeprefix(prefix).replace("▁", " ").encode()
    return contents


def _byte_of_sign() -> dict[str, int]:
    """The byte that each of byte-level's 256 signs stands for: the printable ones themselves, then the others."""
    signs = ByteLevel.alphabet()
    own = {sign for sign in signs if ord(sign) < 256}
    rest = [byte for byte in range(256) if chr(byte) not in own]
    return {sign: ord(sign) for sign in own} | {chr(256 + place): byte for place, byte in enumerate(rest)}


def open_folder(folder: Path, parse_special: bool) -> Opened:
    """A Hugging Face folder with a tokenizer.json. Raises BadInput for anything unusable."""
    text, content, backend = _read_backend(folder)
    # A folder may carry the truncation of its last use; it would cut documents in silence.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not parse_special
    unknown = unknown_token(content["model"])
    bos = _named_token(folder, backend, "bos")
    try:
        first = backend.encode("a", add_special_tokens=True).ids[:1]
    except Exception as error:
        raise _cannot_say(str(folder), error) from error
    size = _largest_id(content) + 1
    control = np.zeros(size, np.bool_)
    for token in content.get("added_tokens", []):
        control[token["id"]] = token["special"] and token["content"] != unknown
    return Opened(
        library=HuggingFace(backend, text),
        identity=_identity(content),
        vocabulary_size=size,
        bos=bos,
        eos=_named_token(folder, backend, "eos"),
        adds_bos=bos is not None and first == [bos],
        control=control,
        unknown=None if unknown is None else backend.token_to_id(unknown),
        says_all=_says_all(content, backend),
    )


def open_gpt2(vocabulary: Path, merges: Path, parse_special: bool) -> Opened:
    """GPT-2's two files: a byte-level BPE that ends documents with <|endoftext|>. BadInput: they are not that."""
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    # The library raises bare Exceptions for anything it cannot read.
    except Exception as error:
        rule = f"cannot be read as GPT-2's vocabulary ({error})."
        raise BadInput(Fault(f"{vocabulary} and {merges}", rule, "Give a vocab.json and its merges.txt.")) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    backend.encode_special_tokens = not parse_special
    end = backend.token_to_id(END_OF_TEXT)
    size = max(backend.get_vocab().values(), default=-1) + 1
    control = np.zeros(size, np.bool_)
    if end is not None:
        control[end] = True
    text = backend.to_str().encode()
    content = orjson.loads(text)
    return Opened(
        library=HuggingFace(backend, text),
        identity=_identity(content),
        vocabulary_size=size,
        bos=end,
        eos=end,
        adds_bos=False,
        control=control,
        unknown=None,
        says_all=_says_all(content, backend),
    )


def _says_all(content: dict[str, Any], backend: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer.json has a token for every byte, and changes no text before it looks for them."""
    if content.get("normalizer") and not _keeps_text(content["normalizer"]):
        return False
    if _uses_byte_level(content):
        return all(backend.token_to_id(sign) is not None for sign in ByteLevel.alphabet())
    by_byte = (backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    return bool(content["model"].get("byte_fallback")) and all(by_byte)


_HARMLESS = ("Prepend", "Replace", "NFC", "ByteLevel")
"""Normalizers that lose nothing: the first two put signs for blanks."""


def _keeps_text(normalizer: dict[str, Any]) -> bool:
    parts = normalizer.get("normalizers", [normalizer])
    return all(part.get("type") in _HARMLESS for part in parts)


def _read_backend(folder: Path) -> tuple[bytes, dict[str, Any], tokenizers.Tokenizer]:
    """A folder's tokenizer.json: as it stands there, parsed, and opened."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(
            Fault(
                str(folder),
                "is not a tokenizer folder (it has no tokenizer.json).",
                "Give the Hugging Face folder of the model, with its tokenizer.json.",
            )
        )
    try:
        text = path.read_bytes()
        backend = tokenizers.Tokenizer.from_buffer(text)
        content = orjson.loads(text)
    # The library raises bare Exceptions for anything it cannot read.
    except Exception as error:
        raise BadInput(
            Fault(str(path), f"cannot be read ({error}).", "Save the tokenizer again with save_pretrained.")
        ) from error
    return text, content, backend


def _named_token(folder: Path, backend: tokenizers.Tokenizer, role: Literal["bos", "eos"]) -> int | None:
    """The id that a folder's side files give to a role, or None."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = json_object(folder / file).get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        number = backend.token_to_id(content) if isinstance(content, str) else None
        if number is not None:
            return int(number)
    for file in ("generation_config.json", "config.json"):
        numbers = json_object(folder / file).get(f"{role}_token_id")
        first = numbers[0] if isinstance(numbers, list) and numbers else numbers
        if isinstance(first, int) and backend.id_to_token(first) is not None:
            return first
    return None


def _largest_id(content: dict[str, Any]) -> int:
    """Of a tokenizer.json; -1 where it has no token. A Unigram model numbers its tokens by their place."""
    vocabulary = content["model"]["vocab"]
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = (token["id"] for token in content.get("added_tokens", []))
    return max(max(numbers, default=-1), max(added, default=-1))


def unknown_token(model: dict[str, Any]) -> str | None:
    """The token that stands for what a model cannot say: a word model's or BPE's by name, Unigram's by id."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file, or another value in it. Raises BadInput."""
    if not path.is_file():
        return {}
    try:
        content = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(Fault(str(path), f"is not JSON ({error}).", "Mend or remove the file.")) from error
    return content if isinstance(content, dict) else {}


def _identity(content: dict[str, Any]) -> str:
    """Hash of model, normalizer, pre-tokenizer and added tokens, free of how the file spells them."""
    model = {name: value for name, value in content["model"].items() if value is not None}
    for name, default in _BPE_DEFAULTS.items():
        if model.get(name) == default:
            del model[name]
    if "merges" in model:
        model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    determining = {
        "model": model,
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": content.get("pre_tokenizer"),
        "added_tokens": sorted(content.get("added_tokens", []), key=lambda token: token["id"]),
    }
    return hashlib.sha256(orjson.dumps(determining, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _uses_byte_level(content: dict[str, Any]) -> bool:
    stages = [content.get("normalizer"), content.get("pre_tokenizer"), content.get("decoder")]
    return any(b'"ByteLevel"' in orjson.dumps(stage) for stage in stages)
