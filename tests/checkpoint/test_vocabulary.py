"""More tokens, or other tokens: which rows they get, and that nothing else of the model changes."""

from pathlib import Path

import orjson
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_cpt.checkpoint.vocabulary import RowSource, extend_vocabulary, new_matrix, row_sources
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from tests.checkpoint.hf_models import all_tensors
from tests.workshop import VOCABULARY, Workshop, write_model, write_tokenizer, write_tokenizer_of


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, workshop: Workshop, tmp_path: Path) -> Path:
    """A model with a tokenizer."""
    write_model(tmp_path / "hf", tie_word_embeddings=request.param)
    write_tokenizer_of(workshop, tmp_path / "hf")
    return tmp_path / "hf"


def test_a_new_word_begins_as_the_mean_of_its_pieces(folder: Path, tmp_path: Path) -> None:
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = old.encode("myocarditis").ids
    assert len(pieces) > 2
    words = ["convert", "extend", str(folder), str(tmp_path / "out"), "--new-tokens", "myocarditis", "<|mark|>"]
    assert main(words) == 0

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("myocarditis").input_ids == [VOCABULARY]
    text = "the river ran over old stones"
    assert tokenizer(text).input_ids == old.encode(text).ids
    before, after = all_tensors(folder), all_tensors(tmp_path / "out")
    matrices = {"model.embed_tokens.weight", "lm_head.weight"} & set(before)
    for name, tensor in before.items():
        if name not in matrices:
            assert torch.equal(after[name], tensor)
            continue
        assert after[name].shape == (VOCABULARY + 2, 32)
        assert torch.equal(after[name][:VOCABULARY], tensor)
        torch.testing.assert_close(after[name][VOCABULARY], tensor[pieces].mean(dim=0))
        assert after[name].any(dim=1).all()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == VOCABULARY + 2
    reference = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([old.encode(text).ids])
    torch.testing.assert_close(model(tokens).logits[..., :VOCABULARY], reference(tokens).logits)


def test_another_tokenizer_keeps_the_words_that_both_have(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tokenizer(other, ["tensor matrix gradient tensor matrix gradient"] * 50 + ["the long road home"] * 50)
    shape = extend_vocabulary(folder, tmp_path / "out", tokenizer=other)
    old, new = (Tokenizer.from_file(str(place / "tokenizer.json")) for place in (folder, tmp_path / "out"))
    before, after = all_tensors(folder)["model.embed_tokens.weight"], all_tensors(tmp_path / "out")
    rows = after["model.embed_tokens.weight"]
    assert len(rows) == shape.vocabulary == max(new.get_vocab().values()) + 1
    shared = set(old.get_vocab()) & set(new.get_vocab())
    assert len(shared) > 256
    for token in shared:
        assert torch.equal(rows[new.token_to_id(token)], before[old.token_to_id(token)])
    assert rows.any(dim=1).all()
    config = orjson.loads((tmp_path / "out/config.json").read_bytes())
    assert config["eos_token_id"] == new.token_to_id("<|endoftext|>")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(rows)


def test_random_rows_have_the_statistics_of_the_old_ones() -> None:
    old = torch.randn(4000, 6, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 7) + 5
    matrix = new_matrix(old, [RowSource(())] * 4000, seed=1)
    torch.testing.assert_close(matrix.mean(dim=0), old.mean(dim=0), rtol=0, atol=0.4)
    torch.testing.assert_close(matrix.std(dim=0), old.std(dim=0), rtol=0.1, atol=0)
    assert torch.equal(matrix, new_matrix(old, [RowSource(())] * 4000, seed=1))


def test_pieces_that_were_never_trained_give_no_zero_row() -> None:
    old = torch.zeros(3, 4)
    old[2] = 1.0
    matrix = new_matrix(old, [RowSource((0,), kept=True), RowSource((0, 1)), RowSource((2,))], seed=1)
    assert not matrix[0].any()
    assert matrix[1].all()
    assert torch.equal(matrix[2], old[2])


def test_rows_beyond_the_words_of_the_tokenizer_are_used_first() -> None:
    old = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    new = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    sources = row_sources(old, new, "random", rows=5)
    assert sources[:3] == [RowSource((0,), kept=True), RowSource((1,), kept=True), RowSource(())]
    assert len(sources) == 5


@pytest.mark.parametrize("words", [[], ["<|endoftext|>"], ["new", "new"], [""]])
def test_words_that_cannot_be_added(folder: Path, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(BadInput, match="new token"):
        extend_vocabulary(folder, tmp_path / "out", words)
    assert not (tmp_path / "out").exists()
