"""`prepare --filter`: what datatrove's own pipeline would keep stays, in its text and in its place."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.preparation import text_filters
from megatron_cpt.preparation.text_filters import FILTERS, TextFilters

WriteJsonl = Callable[..., Path]
REPEATED = "The same line of words, again and again, as on a page of a shop.\n" * 30
LIST = "\n".join(f"- point {number} of a list of what is there to be had of the shop" for number in range(60))
BRACKETS = "The page shows { and } as code does, and it has more than five sentences. " * 2 + "One. Two. Three. Four."


def test_what_the_library_keeps_stays(
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    texts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    pytest.importorskip("spacy")
    document = importlib.import_module("datatrove.data").Document
    found = [*texts[:30], REPEATED, LIST, BRACKETS, "..."]
    corpus = write_jsonl("a.jsonl", found)
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--max-rejected", "0%"]
    counted = {}
    for name, rules in FILTERS.items():
        documents = [document(text=text, id=str(number)) for number, text in enumerate(found)]
        kept = [found[int(one.id)] for one in getattr(filters, rules)().run(documents)]
        assert 0 < len(kept) < len(found), name
        out = tmp_path / name
        assert main(["prepare", str(corpus), *words, "--filter", name, "--output", str(out)]) == 0
        expected = write_jsonl(f"{name}.jsonl", kept)
        assert main(["prepare", str(expected), *words, "--output", f"{out}-expected"]) == 0
        assert Path(f"{out}.bin").read_bytes() == Path(f"{out}-expected.bin").read_bytes()
        manifest = load_manifest(out)
        assert manifest.filtered == len(found) - len(kept) == sum((manifest.filtered_by or {}).values())
        assert manifest.settings is not None and "datatrove" in manifest.settings["filter_libraries"]
        counted |= manifest.filtered_by or {}
    assert {"--filter gopher-quality: gopher_short_doc", "--filter c4: curly_bracket"} <= counted.keys()
    assert "--filter gopher-repetition: dup_line_frac" in counted
    # The first of several that leaves a document out is its reason.
    reason = TextFilters([*FILTERS]).reason(BRACKETS)
    assert reason == "--filter gopher-quality: gopher_short_doc"
    capsys.readouterr()
    sentences = ["--split-sentences", "--filter", "gopher-quality", "--limit", "99"]
    short = write_jsonl("short.jsonl", ["One. Two.", "Three."])
    assert main(["prepare", str(short), *words, *sentences, "--output", f"{tmp_path}/b"]) == 0
    looking = ["--filter", *FILTERS, "--output", f"{tmp_path}/b", "--limit", "99"]
    assert main(["prepare", str(corpus), *words, *looking]) == 0
    assert "documents by --filter gopher-quality: gopher_short_doc" in capsys.readouterr().out


def test_filters_without_their_library_and_of_conversations_are_refused(
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = write_jsonl("a.jsonl", ["one"])
    call = ["prepare", str(corpus), "--tokenizer", str(tokenizer_folder), "--quiet", "--output", f"{tmp_path}/out"]
    assert main([*call, "--filter", "c4", "--chat"]) == 2
    assert "the filters are for texts of the web" in capsys.readouterr().err
    monkeypatch.setattr(text_filters, "_LIBRARIES", ("no_such_library",))
    assert main([*call, "--filter", "c4"]) == 2
    assert "pip install 'megatron-cpt[filters]'" in capsys.readouterr().err
