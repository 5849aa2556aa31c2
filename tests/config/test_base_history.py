"""Histories of public bases by name, with values of one's own, and the areas that follow from a schedule."""

from pathlib import Path

import pytest
import yaml

from megatron_cpt.config.base_history import public_base_of, public_bases
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict, dump_config, load_config
from megatron_cpt.config.schedule import known_history
from megatron_cpt.config.schema import BaseHistorySettings
from megatron_cpt.config.units import Duration
from tests.config.examples import config_with, settings_with

IN_PART = {"open-llama-3b", "open-llama-3b-v2", "olmo-2-1124-7b", "llama-3-8b", "llama-3-70b", "qwen2.5", "qwen3"}
"""Bases whose areas do not follow from what was published."""


def history(value: object) -> BaseHistorySettings:
    found = config_with(base_history=value).base_history
    assert found is not None
    return found


def test_areas_in_literal_numbers() -> None:
    # Steps of 10 tokens: 1, 2 (warm-up), then a line from 2 to 0 in 4 steps: 1.5, 1, 0.5, 0. S2 counts from the peak.
    line = history({"tokens": 60, "tokens_per_step": 10, "kind": "linear", "peak_lr": 2.0, "final_lr": 0.0,
                    "warmup": "2 steps"})  # fmt: skip
    known = known_history(line)
    assert known["forward_area"] == 1 + 2 + 1.5 + 1 + 0.5 + 0
    momenta = [0.5, 0.5 + 0.5 * 0.999, 0.5 * (1 + 0.999 + 0.999**2), 0.5 * (1 + 0.999 + 0.999**2 + 0.999**3)]
    assert known["annealing_area"] == pytest.approx(sum(momenta), rel=1e-12)
    assert (known["peak_learning_rate"], known["final_learning_rate"], known["tokens"]) == (2.0, 0.0, 60)
    constant = history({"tokens": 60, "tokens_per_step": 10, "kind": "constant", "peak_lr": 2.0})
    assert known_history(constant) == {
        "forward_area": 12.0, "annealing_area": 0.0, "peak_learning_rate": 2.0, "final_learning_rate": 2.0,
        "tokens": 60,
    }  # fmt: skip


def test_published_bases_in_literal_numbers() -> None:
    llama = known_history(history("llama-2-7b"))
    # 2T / 4M = 500,000 updates; the mean of a cosine from 3e-4 to 3e-5 is 1.65e-4, that of the warm-up 1.5e-4.
    assert llama["forward_area"] == pytest.approx(498_000 * 1.65e-4 + 2000 * 1.5e-4, rel=1e-5)
    # Fully annealed: (3e-4 - 3e-5) / (1 - 0.999).
    assert llama["annealing_area"] == pytest.approx(0.27, rel=1e-3)
    assert llama["final_learning_rate"] == 3e-5 and llama["tokens"] == 2e12
    pythia = known_history(history("pythia-410m"))
    assert pythia["tokens"] == 143_000 * 1024 * 2048
    assert pythia["forward_area"] == pytest.approx(141_570 * 1.65e-4 + 1430 * 1.5e-4, rel=1e-5)


def test_a_checkpoint_from_the_middle_of_a_schedule_is_not_annealed() -> None:
    olmo = known_history(history("olmo-2-1124-7b-stage-1"))
    # Stage 2 of OLMo 2 goes on from this checkpoint at 6.1499e-5.
    assert olmo["final_learning_rate"] == pytest.approx(6.1499e-5, rel=3e-3)
    half = known_history(history({"name": "pythia-410m", "tokens": 71_500 * 2**21, "schedule_tokens": 143_000 * 2**21}))
    whole = known_history(history("pythia-410m"))
    # Half of the run is a little less than half of the cosine, as the warm-up is before it.
    assert half["final_learning_rate"] == pytest.approx(1.6714e-4, rel=1e-4)
    assert half["forward_area"] > 0.7 * whole["forward_area"] and half["annealing_area"] < whole["annealing_area"]


def test_what_is_not_published_is_not_known() -> None:
    unknown = dict.fromkeys(known_history(history("qwen3")))
    assert known_history(history("qwen3")) == unknown | {"tokens": 36e12}
    assert known_history(history("llama-3-8b")) == unknown | {"tokens": 15e12, "peak_learning_rate": 3e-4}
    assert known_history(history("open-llama-3b-v2")) == unknown | {"tokens": 1e12}
    # Where the rate stood in its schedule is not known either, without the whole of it.
    part = {"tokens": 50, "schedule_tokens": 100, "kind": "cosine", "peak_lr": 1e-3, "final_lr": 1e-4}
    assert known_history(history(part))["final_learning_rate"] is None


@pytest.mark.parametrize("name", public_bases())
def test_every_base_of_the_table_is_right_and_has_a_source(name: str) -> None:
    config = config_with(base_history=name)
    assert config_faults(config) == []
    found = history(name)
    assert found.source and ("arXiv:" in found.source or "https://" in found.source)
    complete = found.schedule is not None and found.tokens is not None and found.tokens_per_step is not None
    assert complete == (name not in IN_PART)


def test_a_name_is_resolved_and_given_values_win(tmp_path: Path) -> None:
    config = config_with(base_history={"name": "llama-2-7b", "tokens": "1T", "schedule_tokens": "2T"})
    assert (
        config.base_history is not None
        and config.base_history.tokens == 10**12
        and config.base_history.warmup == Duration(2000, "steps")
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    text = tmp_path / "run.yaml"
    text.write_text(dump_config(config_with()))
    assert load_config(text, ["base_history=pythia-1.4b"]).base_history == history("pythia-1.4b")
    assert load_config(text, ["base_history.name=pythia-1.4b"]).base_history == history("pythia-1.4b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lama-2-7b", "did you mean llama-2-7b"),
        ({"name": "gpt-5"}, "is not a base whose history is known"),
        (7, "base_history = 7: should be a section with keys of its own"),
        ({"peak_rate": 3e-4}, "base_history.peak_rate: is not a setting"),
        ({"peak_lr": 0}, "base_history.peak_lr = 0: should be greater than 0"),
        ({"tokens": "many"}, "base_history.tokens"),
    ],
)
def test_a_wrong_history_is_refused(value: object, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        config_from_dict(settings_with(base_history=value))
    assert message.lower() in str(refused.value).lower()


WSD = {"kind": "wsd", "tokens": "1B", "tokens_per_step": "4M", "peak_lr": 1e-3, "final_lr": 1e-5}


@pytest.mark.parametrize(
    ("value", "faults"),
    [
        ({"peak_lr": 1e-4, "final_lr": 3e-4}, ["base_history.final_lr = 0.0003"]),
        ({"kind": "cosine", "decay": "1B"}, ["base_history.decay = 1000000000 tokens"]),
        ({"kind": "wsd", "decay_shape": "exponential", "final_lr": 0}, ["base_history.final_lr = 0.0"]),
        ({"tokens": "2T", "schedule_tokens": "1T"}, ["base_history.schedule_tokens = 1000000000000"]),
        ({"tokens": "2M", "tokens_per_step": "4M"}, ["base_history.tokens_per_step = 4000000"]),
        ({**WSD, "warmup": "2B"}, ["base_history.warmup = 2000000000 tokens"]),
        ({**WSD, "decay": "2B"}, ["base_history.decay = 2000000000 tokens"]),
        ({**WSD, "warmup": "600M", "decay": "600M"}, ["base_history.decay = 600000000 tokens"]),
        ({**WSD, "kind": "cosine", "warmup": "250 steps"}, ["base_history.warmup = 250 steps"]),
        ({**WSD, "warmup": "2B", "schedule_tokens": "3B"}, []),
        ({"name": "pythia-410m", "tokens_per_step": "200B"}, ["base_history.warmup = 1430 steps"]),
    ],
)
def test_a_history_that_cannot_have_been(value: dict[str, object], faults: list[str]) -> None:
    assert [fault.value for fault in config_faults(config_with(base_history=value))] == faults


def test_a_value_beside_a_name_is_written_as_a_section(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings_with(base_history="pythia-410m")))
    with pytest.raises(BadInput) as refused:
        load_config(path, ["base_history.peak_lr=9"])
    written = "base_history={name: pythia-410m, peak_lr: 9}"
    assert f"Set it as a whole: `{written}`." in str(refused.value)
    assert load_config(path, [written]).base_history == history({"name": "pythia-410m", "peak_lr": 9})


def test_random_weights_have_no_history() -> None:
    faults = config_faults(config_with(base_history="llama-2-7b", model__weights="random"))
    assert [fault.value for fault in faults] == ["base_history"]


@pytest.mark.parametrize(
    ("folder", "base"),
    [
        ("models/Meta-Llama-3-8B/", "llama-3-8b"),
        ("Llama-2-7b-hf", "llama-2-7b"),
        ("/share/open_llama_7b_v2", "open-llama-7b-v2"),
        (
            "hub/models--EleutherAI--pythia-410m-deduped/snapshots/9879c9b5f8bea9051dcb0e68dff21493d67e9d4f",
            "pythia-410m",
        ),
        ("Meta-Llama-3-8B-Instruct", None),
        ("Llama-3.1-8B", None),
        ("Llama-2-7b-hf/sft-v2", None),
        ("base", None),
    ],
)
def test_the_name_of_a_folder_tells_the_base(folder: str, base: str | None) -> None:
    assert public_base_of(folder) == base
