"""The script against Megatron-Core's own tokenizer class and writer."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import tokenizers
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SCRIPT = Path(__file__).parents[2] / "tools/preprocess_data.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that puts BOS before a text when asked for special tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(list(topics.values())[:20], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def theirs(prefix: Path, texts: list[str], folder: Path, append_eod: bool) -> None:
    tokenizer = HuggingFaceTokenizer(str(folder))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    for text in texts:
        ids = tokenizer.text_to_ids(text) + ([tokenizer.eod] if append_eod else [])
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("append_eod", [True, False])
def test_the_same_bytes_for_every_key(tmp_path: Path, folder: Path, append_eod: bool) -> None:
    texts = {"title": list(topics), "body": [text[:2000] for text in topics.values()]}
    corpus = tmp_path / "corpus.jsonl"
    pairs = zip(*texts.values(), strict=True)
    corpus.write_text("".join(json.dumps({"title": title, "body": body}) + "\n" for title, body in pairs))
    words = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder, "--workers", "2"]
    flags = ["--append-eod"] if append_eod else []
    done = call("--input", corpus, "--output-prefix", tmp_path / "ours", "--json-keys", "title", "body", *words, *flags)
    assert done.returncode == 0, done.stderr
    for key, documents in texts.items():
        theirs(tmp_path / key, documents, folder, append_eod)
        for ending in ("bin", "idx"):
            ours = (tmp_path / f"ours_{key}_document.{ending}").read_bytes()
            assert ours == (tmp_path / f"{key}.{ending}").read_bytes(), (key, ending)


def test_another_tokenizer_type_is_refused(tmp_path: Path, folder: Path) -> None:
    words = ["--tokenizer-type", "NullTokenizer", "--tokenizer-model", folder, "--workers", "1"]
    done = call("--input", tmp_path / "x.jsonl", "--output-prefix", tmp_path / "out", *words)
    assert done.returncode == 2
    assert "--tokenizer-type NullTokenizer: is not read here." in done.stderr
