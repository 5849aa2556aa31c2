"""A tokenizer.json, or GPT-2's vocab.json and merges.txt, read by the `tokenizers` library."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.tokenizer.encoded import Encoded, Opened

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
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return Encoded.of([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=False))

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
    first = backend.encode("a", add_special_tokens=True).ids[:1]
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
    content = backend.to_str().encode()
    return Opened(HuggingFace(backend, content), _identity(orjson.loads(content)), size, end, end, False, control)


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
        token = _read_json(folder / file).get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        number = backend.token_to_id(content) if isinstance(content, str) else None
        if number is not None:
            return int(number)
    for file in ("generation_config.json", "config.json"):
        numbers = _read_json(folder / file).get(f"{role}_token_id")
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


def _read_json(path: Path) -> dict[str, Any]:
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
