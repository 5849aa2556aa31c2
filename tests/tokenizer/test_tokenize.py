import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.texts import SHARED, save_tokenizer, unigram, with_template
from tests.tokenizer.kinds import KINDS, write_kind

STORIES = SHARED / "model_stories260K" / "hf"


def backend_of(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_ids_are_the_texts_alone(tokenizer_folder: Path, tmp_path: Path) -> None:
    plain = Tokenizer.load(tokenizer_folder)
    for template in ("<|endoftext|> $A", "$A <|endoftext|>", "<|endoftext|> $A <|endoftext|>"):
        backend = with_template(backend_of(tokenizer_folder), template, "<|endoftext|>")
        save_tokenizer(tmp_path, backend, {"eos_token": "<|endoftext|>"})
        ids = Tokenizer.load(tmp_path).encode_batch(["several words"])[0]
        assert ids.tolist() == plain.encode_batch(["several words"])[0].tolist()
        assert plain.eod not in ids


def test_control_tokens_in_the_text_stay_plain_text(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    text = "before <|endoftext|> after"
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.eod not in ids
    assert tokenizer.control_tokens(tokenizer.encode_flat([text])) == {}
    assert tokenizer.decode(ids) == text


def test_a_model_that_finds_control_tokens_in_plain_text_tells(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, unigram("▁ab</s>", ["<unk>", "</s>"]), {"eos_token": "</s>"})
    tokenizer = Tokenizer.load(tmp_path)
    encoded = tokenizer.encode_flat(["aXb", "a</s>b</s>", "", "ab", "</s>"])
    assert tokenizer.control_tokens(encoded) == {1: "</s>", 4: "</s>"}


def test_truncation_of_the_last_use_does_not_cut_documents(tokenizer_folder: Path, tmp_path: Path) -> None:
    backend = backend_of(tokenizer_folder)
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    save_tokenizer(tmp_path, backend, {"eos_token": "<|endoftext|>"})
    text = "a text of more than four tokens"
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode_batch([text])[0]) == text


def test_identity_is_of_what_determines_ids(tokenizer_folder: Path, tmp_path: Path) -> None:
    identity = Tokenizer.load(tokenizer_folder).identity
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["ignore_merges"]
    content["truncation"] = content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=7, sort_keys=True))
    same = Tokenizer.load(tmp_path, eod="<|endoftext|>")
    assert same.identity == identity

    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path, eod="<|endoftext|>").identity != identity


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_token_bytes_of_a_byte_level_tokenizer_sum_to_the_text(tokenizer_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    lengths = tokenizer.token_bytes()
    assert lengths[tokenizer.encode_batch([text])[0]].sum() == len(text.encode())
    assert lengths[tokenizer.eod] == 0
    assert lengths.shape == (tokenizer.vocabulary_size,)


def test_token_bytes_with_byte_fallback_and_metaspace() -> None:
    if not STORIES.is_dir():
        pytest.skip("shared data model_stories260K is not on this machine")
    tokenizer = Tokenizer.load(STORIES)
    text = "Once upon a time, é and 😀."
    ids = tokenizer.encode_batch([text])[0]
    # One byte more than the text: the blank that the tokenizer puts before it.
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) + 1
    assert tokenizer.token_bytes()[[0, 1, 2]].tolist() == [0, 0, 0]


def test_bos_policy_follows_the_post_processor() -> None:
    if not STORIES.is_dir():
        pytest.skip("shared data model_stories260K is not on this machine")
    tokenizer = Tokenizer.load(STORIES)
    assert (tokenizer.bos, tokenizer.eod, tokenizer.vocabulary_size) == (1, 2, 512)
    assert [tokenizer.bos_for(policy) for policy in ("auto", "always", "never")] == [1, 1, None]


def test_without_a_post_processor_bos_is_put_only_when_asked(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert [tokenizer.bos_for(policy) for policy in ("auto", "always", "never")] == [None, 0, None]


def test_eod_and_bos_from_each_side_file(tokenizer_folder: Path, tmp_path: Path) -> None:
    backend_of(tokenizer_folder).save(str(tmp_path / "tokenizer.json"))
    nameless = Tokenizer.load(tmp_path)
    assert nameless.decode(nameless.encode_batch(["words"])[0]) == "words"
    with pytest.raises(BadInput, match="names no eos_token"):
        _ = nameless.eod
    assert Tokenizer.load(tmp_path, eod="a").eod == backend_of(tokenizer_folder).token_to_id("a")
    with pytest.raises(BadInput, match="--eod <none>"):
        Tokenizer.load(tmp_path, eod="<none>")

    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.load(tmp_path).eod == 7
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert Tokenizer.load(tmp_path).eod == 8
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert Tokenizer.load(tmp_path).eod == 0


def test_always_without_a_bos_token_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, backend_of(tokenizer_folder), {"eos_token": "<|endoftext|>"})
    with pytest.raises(BadInput, match="--bos always"):
        Tokenizer.load(tmp_path).bos_for("always")


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 1}', "not JSON"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_gpt2_round_trips_real_text(unpack: Callable[[str], Path], tmp_path: Path) -> None:
    unpack("tokenizers/gpt2_tokenizer.json.zst").rename(tmp_path / "tokenizer.json")
    corpus = unpack("general_wikitext2_test_raw/general_wikitext2_test_raw.jsonl.zst")
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()[:5]]
    tokenizer = Tokenizer.load(tmp_path, eod="<|endoftext|>")
    lengths = tokenizer.token_bytes()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert lengths[ids].sum() == len(text.encode())
        assert ids.dtype == np.int32


@pytest.fixture(scope="module", params=sorted(KINDS))
def of_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("kind")
    write_kind(request.param, folder)
    return Tokenizer.load(folder)


@given(ids=st.lists(st.integers(0, 59), max_size=40))
def test_many_ids_decode_as_few(of_kind: Tokenizer, ids: list[int]) -> None:
    """Any ids, also halves of characters and control tokens."""
    ids = [number * (of_kind.vocabulary_size // 60) for number in ids]
    assert of_kind.decode_all(np.array(ids, np.int32)) == of_kind.decode(ids)
