"""Real text that every machine has, tokenizers trained on it, and the way to shared data."""

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import tokenizers
import zstandard
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SHARED = Path(os.environ.get("MEGATRON_CPT_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
"""Real corpora and models, where a machine has them. They are no part of the project."""


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """About eighty different documents of English, with a few characters from elsewhere."""
    return [
        *sorted({text[:1500] for text in topics.values()}),
        "Füße, señor, 漢字, 😀 und so weiter.",
        "tabs\tand\u2028separators\x00",
    ]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A byte-level BPE with 600 entries whose only special token is <|endoftext|>."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts[:40], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, backend, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    return folder


def save_tokenizer(folder: Path, backend: tokenizers.Tokenizer, config: dict[str, object]) -> None:
    """Writes a tokenizer folder."""
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def unigram(pieces: Sequence[str], special: Sequence[str]) -> tokenizers.Tokenizer:
    """A Unigram model whose special tokens are pieces of its vocabulary, as sentencepiece makes them."""
    scored = [*((piece, 0.0) for piece in special), *((piece, -5.0) for piece in pieces)]
    backend = tokenizers.Tokenizer(models.Unigram(scored, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(list(special))
    return backend


def with_template(backend: tokenizers.Tokenizer, template: str, token: str) -> tokenizers.Tokenizer:
    """The tokenizer with a post-processor that puts a token where the template says."""
    number = backend.token_to_id(token)
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(token, number)])
    return backend


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes texts as JSON lines, gzipped if the name says so."""

    def write(name: str, documents: Sequence[str]) -> Path:
        path = tmp_path / name
        content = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file of shared/data; skips where the data are absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).is_file():
            pytest.skip(f"shared data {name} is not on this machine")
        return SHARED / name

    return find


@pytest.fixture
def unpack(tmp_path: Path, shared: Callable[[str], Path]) -> Callable[[str], Path]:
    """Decompresses a .zst file of shared/data."""

    def decompress(name: str) -> Path:
        source = shared(name)
        target = tmp_path / source.name.removesuffix(".zst")
        with source.open("rb") as compressed, target.open("wb") as plain:
            zstandard.ZstdDecompressor().copy_stream(compressed, plain)
        return target

    return decompress
