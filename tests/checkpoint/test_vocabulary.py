"""More tokens, or other tokens: which rows they get, and that nothing else of the model changes."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE
from megatron_cpt.checkpoint.hf_weights import vocabulary_tensors
from megatron_cpt.checkpoint.new_tokenizer import token_id_changes
from megatron_cpt.checkpoint.vocabulary import RowSource, extend_vocabulary, new_matrix, row_sources
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.shape import read_shape
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.tokenizer.tokenizer import Tokenizer as PreparingTokenizer
from tests.checkpoint import hf_models
from tests.checkpoint.hf_models import all_tensors
from tests.families.folders import MODELS
from tests.tokenizer.kinds import KINDS, write_kind
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
    made = extend_vocabulary(folder, tmp_path / "out", tokenizer=other)
    old, new = (Tokenizer.from_file(str(place / "tokenizer.json")) for place in (folder, tmp_path / "out"))
    before, after = all_tensors(folder)["model.embed_tokens.weight"], all_tensors(tmp_path / "out")
    rows = after["model.embed_tokens.weight"]
    assert len(rows) == made.rows == max(new.get_vocab().values()) + 1
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
    matrix, drawn = new_matrix(old, [RowSource(())] * 4000, seed=1)
    assert drawn == 4000
    torch.testing.assert_close(matrix.mean(dim=0), old.mean(dim=0), rtol=0, atol=0.4)
    torch.testing.assert_close(matrix.std(dim=0), old.std(dim=0), rtol=0.1, atol=0)
    assert torch.equal(matrix, new_matrix(old, [RowSource(())] * 4000, seed=1)[0])


def test_pieces_that_were_never_trained_give_no_zero_row() -> None:
    old = torch.zeros(3, 4)
    old[2] = 1.0
    matrix, drawn = new_matrix(old, [RowSource((0,), kept=True), RowSource((0, 1)), RowSource((2,))], seed=1)
    assert drawn == 1
    assert not matrix[0].any()
    assert matrix[1].all()
    assert torch.equal(matrix[2], old[2])


def test_rows_beyond_the_words_of_the_tokenizer_are_used_first() -> None:
    old = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    new = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    sources = row_sources(old, new, "random", rows=5)
    assert sources[:3] == [RowSource((0,), kept=True), RowSource((1,), kept=True), RowSource(())]
    assert len(sources) == 5


def model_of(kind: str, folder: Path, **changes: Any) -> Tokenizer:
    """Writes a model with a tokenizer of one kind, by which its special ids are; returns the tokenizer."""
    tokenizer = write_kind(kind, folder)
    rows = max(tokenizer.get_vocab().values()) + 1
    write_model(folder, **{"vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2, **changes})
    return tokenizer


WORDS = {
    "plain": "myocarditis",
    "two words": "heart failure",
    "diaeresis": "naïve",
    "acute": "étude",
    "sharp s": "Straße",
    "Polish": "łódź",
    "Greek": "γάτα",
    "Cyrillic": "кардио",
    "Chinese": "心肌炎",
    "Korean": "심근염",
    "Arabic": "قلب",
    "emoji": "❤️‍🔥",
}


@pytest.mark.parametrize("kind", KINDS)
def test_new_words_of_every_script_come_back_whole_or_are_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = model_of(kind, tmp_path / "hf")
    before = all_tensors(tmp_path / "hf")["model.embed_tokens.weight"]
    command = ["convert", "extend", str(tmp_path / "hf"), str(tmp_path / "out"), "--new-tokens"]
    refused = {"naïve", "étude", "Straße"} if kind == "byte_level" else set()
    if refused:
        assert main([*command, *WORDS.values()]) == ExitCode.BAD_INPUT
        message = capsys.readouterr().err
        assert {word for word in WORDS.values() if f"new token {word!r}" in message} == refused
        assert "would decode it as 'na\ufffdve'" in message
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    words = [word for word in WORDS.values() if word not in refused]
    assert main([*command, *words]) == 0

    rows = all_tensors(tmp_path / "out")["model.embed_tokens.weight"]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = PreparingTokenizer.load(tmp_path / "out")
    drawn = 0
    for place, word in enumerate(words, start=len(before)):
        assert theirs(word, add_special_tokens=False).input_ids == [place]
        assert theirs.decode([place]) == word
        assert ours.encode_batch([word])[0].tolist() == [place]
        assert ours.decode([place]) == word
        pieces = [piece for piece in old.encode(word).ids if piece != old.token_to_id("<unk>")]
        if not pieces or [old.id_to_token(piece) for piece in pieces] == ["▁"]:
            drawn += 1
            assert not torch.isin(rows[place], before).any()
        else:
            torch.testing.assert_close(rows[place], before[pieces].mean(dim=0))
    # A vocabulary without bytes has no letter of other scripts.
    assert (drawn > 0) == (kind in ("unigram", "word_pieces"))
    counts = f"{len(before)} kept, {len(words) - drawn} averaged from old pieces, {drawn} random"
    assert f"{len(rows)} rows, of which {counts}" in capsys.readouterr().out


def test_a_name_is_not_a_text(tmp_path: Path) -> None:
    # "é" is the byte 0xE9 in a byte-level vocabulary, and the letter in others.
    model_of("byte_level", tmp_path / "hf")
    with pytest.raises(BadInput, match="'é': the vocabulary has an entry of this name, though it stands for other"):
        extend_vocabulary(tmp_path / "hf", tmp_path / "out", ["é"])
    pieces = WordLevel({"<unk>": 0, "é": 1, "▁the": 2, "▁heart": 3}, unk_token="<unk>")
    old, new = Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json")), Tokenizer(pieces)
    letter, the, heart = row_sources(old, new, "mean", rows=old.get_vocab_size())[1:]
    assert letter == RowSource(tuple(old.encode("é").ids))
    assert len(letter.pieces) == 2
    assert the == RowSource(tuple(old.encode(" the").ids), kept=len(old.encode(" the").ids) == 1)
    assert heart == RowSource((old.token_to_id("Ġheart"),), kept=True)


@pytest.mark.parametrize("words", [["myocarditis"], []], ids=["new words", "rows alone"])
def test_tokens_without_a_row_get_one(tmp_path: Path, words: list[str]) -> None:
    """As Gemma 3 1B and CodeLlama 34B are published: the tokenizer has control tokens beyond the embedding."""
    folder = tmp_path / "hf"
    tokenizer = model_of("byte_level", folder)
    rows = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<image_soft_token>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = ["--new-tokens", *words] if words else ["--tokenizer", str(folder)]
    assert main(["convert", "extend", str(folder), str(tmp_path / "out"), *added]) == 0
    before, after = (all_tensors(place)["model.embed_tokens.weight"] for place in (folder, tmp_path / "out"))
    assert len(after) == rows + 1 + len(words)
    assert torch.equal(after[:rows], before)
    tokenizer.encode_special_tokens = True
    torch.testing.assert_close(after[rows], before[tokenizer.encode("<image_soft_token>").ids].mean(dim=0))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(after)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(after)


def test_nothing_of_the_old_vocabulary_stays_behind(tmp_path: Path) -> None:
    folder, other, out = tmp_path / "hf", tmp_path / "other", tmp_path / "out"
    old = model_of("byte_fallback", folder, pad_token_id=319)
    write_kind("unigram", other)
    generation = {"eos_token_id": [2, 319], "pad_token_id": 319, "suppress_tokens": [300], "temperature": 0.6}
    (folder / "generation_config.json").write_bytes(orjson.dumps(generation))
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).write_text("{}")
    save_file({"tok_embeddings.weight": torch.zeros(320, 32)}, folder / "consolidated.safetensors")

    assert main(["convert", "extend", str(folder), str(out), "--tokenizer", str(other)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "sha256.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    rows = model.get_input_embeddings().num_embeddings
    assert rows == len(tokenizer) < len(old.get_vocab())
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, None)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ([2], None)
    assert (model.generation_config.suppress_tokens, model.generation_config.temperature) == (None, 0.6)
    model(torch.tensor([tokenizer("the heart of the brain").input_ids]))

    assert main(["convert", "extend", str(folder), str(tmp_path / "words"), "--new-tokens", "myocarditis"]) == 0
    left = {"tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "consolidated.safetensors"}
    assert not left & {path.name for path in (tmp_path / "words").iterdir()}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "words").generation_config.eos_token_id == [2, 319]


def test_special_ids_are_those_of_the_new_tokenizer(tmp_path: Path) -> None:
    old, new = model_of("byte_level", tmp_path / "hf"), write_kind("byte_fallback", tmp_path / "other")
    described = orjson.loads((tmp_path / "other/tokenizer_config.json").read_bytes()) | {"pad_token": "</s>"}
    (tmp_path / "other/tokenizer_config.json").write_bytes(orjson.dumps(described))
    letter = old.token_to_id("s")

    def changed(**fields: Any) -> dict[str, Any]:
        (tmp_path / "hf/config.json").write_bytes(orjson.dumps(fields))
        return token_id_changes(tmp_path / "hf", tmp_path / "other", old, new)["config.json"]

    # What config.json does not state, transformers would take from the family's first tokenizer.
    assert changed() == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    assert changed(pad_token_id=7)["pad_token_id"] == 2
    assert changed(eos_token_id=[letter, 2])["eos_token_id"] == [2, new.token_to_id("s")]
    assert changed(image_token_id=letter)["image_token_id"] == new.token_to_id("s")
    assert changed(image_token_id=old.token_to_id("Ġheart"))["image_token_id"] is None
    assert changed(pad_token_id=-1)["pad_token_id"] is None


def test_a_token_that_transformers_adds_on_its_own_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    model_of("byte_level", folder)
    described = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(described | {"pad_token": "[PAD]"}))
    with pytest.raises(BadInput, match=r"adds 1 tokens for which the model, of 300 rows, has none: '\[PAD\]' \(300\)"):
        extend_vocabulary(folder, tmp_path / "out", ["myocarditis"])
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_tokenizer_that_decodes_its_added_words_wrongly_is_refused(tmp_path: Path) -> None:
    model_of("byte_fallback", tmp_path / "hf")
    other = write_kind("byte_level", tmp_path / "other")
    other.add_tokens(["naïve", "myocarditis"])
    other.save(str(tmp_path / "other/tokenizer.json"))
    with pytest.raises(BadInput, match="new token 'naïve': the tokenizer would decode it as 'na\ufffdve'"):
        extend_vocabulary(tmp_path / "hf", tmp_path / "out", tokenizer=tmp_path / "other")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shards", ["5GB", "30KB"])
@pytest.mark.parametrize("family", ["llama_tied", "gpt_neox_serial", "gemma3_tied"])
def test_a_tied_model_may_store_its_output_layer_too(family: str, shards: str, tmp_path: Path) -> None:
    """As granite 4.1 and re-saved Qwen folders do; what is written again stores it once."""
    folder = hf_models.write_model(tmp_path / "hf", MODELS[family], shards=shards)
    sound = all_tensors(folder)
    embedding, output = vocabulary_tensors(read_shape(folder))
    assert output not in sound
    save_file({output: sound[embedding]}, folder / "output.safetensors", metadata={"format": "pt"})
    places = {name: path.name for path in folder.glob("*.safetensors") for name in load_file(path)}
    if shards == "5GB":
        (folder / "output.safetensors").unlink()
        save_file(sound | {output: sound[embedding].clone()}, folder / SINGLE, metadata={"format": "pt"})
    else:
        (folder / INDEX).write_bytes(orjson.dumps({"metadata": {}, "weight_map": places}))
    write_kind("byte_level", folder)
    assert main(["convert", "verify", str(folder), str(folder)]) == 0
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "again")]) == 0
    assert set(all_tensors(tmp_path / "again")) == set(sound)
    assert main(["convert", "extend", str(folder), str(tmp_path / "out"), "--new-tokens", "myocarditis"]) == 0
    assert set(all_tensors(tmp_path / "out")) == set(sound)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("words", [[], ["<|endoftext|>"], ["new", "new"], [""]])
def test_words_that_cannot_be_added(folder: Path, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(BadInput, match="new token"):
        extend_vocabulary(folder, tmp_path / "out", words)
    assert not (tmp_path / "out").exists()
