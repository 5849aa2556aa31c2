"""The quickstart's runs, and its Hugging Face folder, read back by the library it is written for."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from megatron_cpt.config.load import load_config
from megatron_cpt.quickstart import base_folder
from megatron_cpt.quickstart.base_folder import END_OF_TEXT, VOCABULARY, write_base_folder

SENTENCES = [f"Sentence {i} says that {i * i} is the square of {i}, and naïveté is spelt so." for i in range(3000)]
FUNCTIONS = [f"def function_{i}(value_{i * 7 % 97}):\n    return value_{i * 7 % 97} ** {i}" for i in range(3000)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small JSONL corpora."""
    folder = tmp_path_factory.mktemp("corpora")
    paths = [folder / "general.jsonl", folder / "domain.jsonl"]
    for path, texts in zip(paths, (SENTENCES, FUNCTIONS), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return paths


def test_transformers_reads_the_folder(corpora: list[Path], tmp_path: Path) -> None:
    folder = write_base_folder(corpora, tmp_path / "base-config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token) == (END_OF_TEXT, 0, None)
    text = "  two  spaces\n\ttab, naïveté, 漢字 and 🙂 come back"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.vocab_size, config.hidden_size) == ("llama", VOCABULARY, 128)
    assert config.hidden_size == config.num_attention_heads * config.head_dim
    assert not config.tie_word_embeddings


def test_the_same_corpora_give_the_same_tokenizer(corpora: list[Path], tmp_path: Path) -> None:
    first = write_base_folder(corpora, tmp_path / "first") / "tokenizer.json"
    second = write_base_folder(corpora, tmp_path / "second") / "tokenizer.json"
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["base", "naive", "mitigated"])
def test_the_runs_are_configurations(name: str) -> None:
    path = Path(base_folder.__file__).with_name(f"{name}.yaml")
    assert load_config(path).run.folder == f"quickstart/{name}"
