"""`megatron-cpt init`: what it writes passes `plan`, and it says what it cannot know."""

import itertools
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.json_schema import run_schema
from tests.planning.small_run import LLAMA, SIZES_OF_70M, write_dataset, write_model
from tests.preparation.chats import TEMPLATES, said, write_chat_tokenizer, write_conversations


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and two datasets with validation parts, in the working folder."""
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "base")
    for name, tokens in (("law", 40_000), ("law.validation", 900), ("web", 90_000), ("web.validation", 900)):
        write_dataset(tmp_path / name, tokens, model)
    return tmp_path


def init(*words: str) -> dict[str, Any]:
    """Writes run.yaml and returns its content."""
    assert main(["init", "run.yaml", *words]) == 0
    content: dict[str, Any] = yaml.safe_load(Path("run.yaml").read_text())
    return content


@pytest.mark.parametrize("gpus", [1, 2, 6, 8, 64])
@pytest.mark.parametrize("replay", [[], ["--replay", "web"], ["--replay", "old=web", "--replay-ratio", "5%"]])
@pytest.mark.parametrize("tokens", [[], ["--tokens", "60K"], ["--tokens", "1"]])
def test_what_it_writes_passes_plan(here: Path, gpus: int, replay: list[str], tokens: list[str]) -> None:
    content = init("--model", "base", "--domain", "law", *replay, *tokens, "--gpus", str(gpus))
    assert not list(jsonschema.Draft202012Validator(run_schema()).iter_errors(content))
    assert main(["plan", "run.yaml", "--nproc", str(gpus)]) == 0


def test_values_follow_from_model_and_data(here: Path) -> None:
    content = init("--model", "base", "--domain", "law", "--replay", "web")
    assert content["data"]["sequence_length"] == LLAMA["max_position_embeddings"]
    assert content["training"]["tokens"] == "50K"  # the new text once
    assert content["run"]["folder"] == "runs/law"
    assert set(content["validation"]["sets"]) == {"law", "web"}
    assert content["validation"]["sets"]["web"]["role"] == "general"


def test_evaluations_of_a_short_run_are_short(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole sets at every evaluation would cost several times what training does."""
    model = here / "base"
    for name in ("law.validation", "web.validation"):
        write_dataset(here / name, 40_000, model)
    sets = init("--model", "base", "--domain", "law", "--replay", "web")["validation"]["sets"]
    assert {part["tokens"] for part in sets.values()} == {16 * 128}  # sequences at least
    assert main(["plan", "run.yaml", "--nproc", "8"]) == 0
    assert "evaluations cost" not in capsys.readouterr().out
    assert main(["plan", "run.yaml", "validation.sets.law.tokens=40K", "--nproc", "8"]) == 0
    assert "of the training compute. Give the sets a smaller budget" in capsys.readouterr().out


def test_a_public_base_brings_its_history(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_model(here / "pythia-70m", **SIZES_OF_70M)
    words = ("--domain", "law", "--replay", "web", "--model")
    assert init(*words, "pythia-70m")["base_history"] == "pythia-70m"
    assert main(["plan", "run.yaml", "--nproc", "8"]) == 0
    assert "Base     pythia-70m: 300B tokens" in capsys.readouterr().out
    Path("run.yaml").unlink()
    (base / "lineage.json").write_text("{}")  # our own export, which tells more
    assert "base_history" not in init(*words, "pythia-70m")
    Path("run.yaml").unlink()
    (here / "base").rename(here / "Llama-2-7b-hf")  # a thousandth of its size
    assert "base_history" not in init(*words, "Llama-2-7b-hf")


def test_a_dataset_in_parts_is_named_by_its_prefix(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        for ending, tokens in (("", 30_000), (".validation", 900)):
            write_dataset(here / f"med-0000{number}-of-00002{ending}", tokens + number, here / "base")
    content = init("--model", "base", "--domain", "med", "--replay", "web")
    assert content["data"]["sources"]["med"]["paths"] == ["med"]
    assert content["validation"]["sets"]["med"]["paths"] == ["med.validation"]
    assert content["training"]["tokens"] == int(60_003 / 0.8)
    assert main(["plan", "run.yaml", "--nproc", "1"]) == 0
    Path("med-00002-of-00002.idx").unlink()
    capsys.readouterr()
    assert main(["init", "other.yaml", "--model", "base", "--domain", "med"]) != 0
    assert "med: is in 2 parts, and part 2 is not there" in capsys.readouterr().err


def test_every_line_of_the_file_has_a_comment_or_opens_a_section(here: Path) -> None:
    init("--model", "base", "--domain", "law", "--replay", "web")
    lines = Path("run.yaml").read_text().splitlines()
    told = [line for line in lines if ": " in line.split("#")[0]]
    uncommented = [line for before, line in itertools.pairwise(lines) if line in told and "#" not in line + before]
    assert all(re.search("validation|role", line) for line in uncommented), uncommented
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("sizes", "gpu", "expected"),
    [
        # Llama-3-8B with its optimizer in eight shards.
        ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, "H200-141GB", (1, 1)),
        ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, "H100-80GB", (2, 1)),
    ],
)
def test_the_layout_fits_the_gpus_by_the_estimate(
    here: Path, sizes: dict[str, int], gpu: str, expected: tuple[int, int]
) -> None:
    large = sizes | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    write_model(here / "large", max_position_embeddings=8192, **large)
    content = init("--model", "large", "--domain", "law", "--gpu", gpu)
    parallel = content["parallel"]
    assert (parallel["tensor"], parallel.get("pipeline", 1)) == expected
    assert main(["plan", "run.yaml", "--nproc", "8", "--json", "training.tokens=300K"]) in (0, 2)


def test_a_model_that_fits_nowhere_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 128, "num_attention_heads": 128}
    write_model(here / "huge", num_key_value_heads=8, **huge)
    init("--model", "huge", "--domain", "law")
    assert "do not fit 8 GPUs H100-80GB by the estimate" in capsys.readouterr().out


def test_datasets_that_are_not_there_yet(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = init("--model", "base", "--domain", "data/medicine", "--replay", "data/general")
    assert content["training"]["tokens"] == "5B"
    assert content["validation"]["sets"]["medicine"] == {
        "paths": ["data/medicine.validation"],
        "role": "domain",
        "tokens": "2M",
    }
    told = capsys.readouterr().out
    assert "not there yet: data/medicine, data/general" in told and "training.tokens is a guess, 5B" in told


def test_a_dataset_without_a_validation_part_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("web.validation.idx").unlink()
    content = init("--model", "base", "--domain", "law", "--replay", "web")
    assert set(content["validation"]["sets"]) == {"law"}
    assert "web has no validation part" in capsys.readouterr().out
    assert main(["plan", "run.yaml", "--nproc", "8"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["--model: was not given.", "--domain: was not given."]),
        (["--model", "nowhere", "--domain", "law"], ["--model nowhere: is no Hugging Face folder", "hf download"]),
        (["--model", "base", "--domain", "law", "a/law=web"], ["a/law", "a name holds letters"]),
        (["--model", "base", "--domain", "law", "law=web"], ["law=web: another source has this name."]),
        (["--model", "base", "--domain", "law", "--tokens", "many"], ["'many' is not a count"]),
        (["--model", "base", "--domain", "law", "--replay-ratio", "2"], ["'2' is not a share"]),
        (["--model", "base", "--domain", "law", "--replay", "web", "--replay-ratio", "1"], ["leaves nothing"]),
        (["--model", "base", "--domain", "law", "--gpus", "0"], ["--gpus 0"]),
        (["--model", "base", "--domain", "law", "other.yaml"], ["--domain other.yaml: is no dataset.", "first"]),
        (["--model", "base", "--domain", "law", "--gpu", "H1000"], ["--gpu H1000", "H100-80GB"]),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    here: Path, words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "run.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert not Path("run.yaml").exists()


def test_a_file_that_is_there_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text("mine")
    assert main(["init", "--model", "base", "--domain", "law"]) == 2
    assert Path("run.yaml").read_text() == "mine"


def test_two_datasets_of_one_name_get_two_names(here: Path) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        write_dataset(here / folder / "law_text_document", 20_000 if folder == "a" else 20_100, here / "base")
    content = init("--model", "base", "--domain", "a/law_text_document", "b/law_text_document")
    assert set(content["data"]["sources"]) == {"law", "law-2"}
    assert main(["plan", "run.yaml", "--nproc", "8"]) == 0


def test_three_questions_on_a_terminal(here: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "init"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=follower, stdout=subprocess.PIPE, env=environment, text=True) as asking:
        os.write(leader, b"base\nlaw\nweb\n")
        told, _ = asking.communicate(timeout=60)
    assert asking.returncode == 0
    assert [word in told for word in ("Model (", "Datasets of new text", "for replay")] == [True] * 3
    assert yaml.safe_load(Path("run.yaml").read_text())["data"]["sources"]["web"]["role"] == "replay"


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--schema"]) == 0
    assert orjson.loads(capsys.readouterr().out) == run_schema()


def test_a_dataset_is_named_by_its_prefix_or_by_a_file_of_it(here: Path) -> None:
    content = init("--model", "base", "--domain", "law.bin", "--replay", "old=web.idx")
    assert {name: source["paths"] for name, source in content["data"]["sources"].items()} == {
        "law": ["law"],
        "old": ["web"],
    }
    assert set(content["validation"]["sets"]) == {"law", "old"}


def test_a_dataset_named_twice_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "run.yaml", "--model", "base", "--domain", "law", "--replay", "other=law"]) == 2
    assert "law: is named twice." in capsys.readouterr().err


def test_a_run_that_is_in_its_folder_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/law").mkdir(parents=True)
    Path("runs/law/config.yaml").touch()
    init("--model", "base", "--domain", "law")
    assert "note: runs/law holds a run already" in capsys.readouterr().out


def test_globs_selections_and_shared_documents_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "law", "--documents", "1", "--keep", "random", "--output", "best"]) == 0
    for word, told in (
        ("best", "--domain best: is no dataset, and best.selection.json is a selection. Name it: best.selection.json."),
        ("b*st", "It would match best.selection.json: a glob of selections ends in `.selection.json`."),
    ):
        assert main(["init", "run.yaml", "--model", "base", "--domain", word]) == 2
        assert told in capsys.readouterr().err and not Path("run.yaml").exists()
    init("--model", "base", "--domain", "new=*", "--replay", "web")
    told = capsys.readouterr().out
    assert "note: * is law, web." in told
    assert re.search(r"note: data.sources.new and data.sources.web share [\d,]+ documents, which `plan` refuses", told)
    assert main(["plan", "run.yaml", "--nproc", "8"]) == 2
    error = capsys.readouterr().err
    assert "share" in error and "or let the two give tokens in different phases" in error


def test_a_place_that_is_not_there_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "absent/run.yaml", "--model", "base", "--domain", "law"]) == 2
    assert "absent/run.yaml: there is no folder absent." in capsys.readouterr().err


def test_a_selection_is_evaluated_on_the_validation_part_of_its_datasets(here: Path) -> None:
    assert main(["select", "law", "--documents", "1", "--keep", "random", "--output", "best"]) == 0
    content = init("--model", "base", "--domain", "law=best.selection.json")
    assert content["validation"]["sets"]["law"]["paths"] == ["law.validation"]
    assert main(["plan", "run.yaml"]) == 0


def test_conversations_are_packed_and_kept_apart(
    here: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_chat_tokenizer(here / "base", texts, TEMPLATES["headers"])
    (folder / "config.json").write_text(orjson.dumps(LLAMA | {"vocab_size": 640}).decode())
    conversations = [said(f"Question {number}?", f"Answer {number}.") for number in range(400)]
    corpus = str(write_conversations(here / "chat.jsonl", conversations))
    words = ["--tokenizer", str(folder), "--output", "chat", "--chat", "--quiet"]
    assert main(["prepare", corpus, *words]) == 0
    content = init("--model", "base", "--domain", "chat", "--gpus", "1")
    assert (content["data"]["attention"], content["data"]["packing"]) == ("within_documents", "best_fit")
    capsys.readouterr()
    warning = "source chat holds conversations, and a sequence holds several"
    assert main(["plan", "run.yaml"]) == 0
    assert warning not in " ".join(capsys.readouterr().out.split())
    assert main(["plan", "run.yaml", "data.attention=across_documents", "data.packing=null"]) == 0
    assert warning in " ".join(capsys.readouterr().out.split())
