"""The schema for editors accepts what a run accepts, and refuses a misspelt key and a wrong choice."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.json_schema import meaning_of, run_schema
from megatron_cpt.config.load import config_from_dict, dump_config
from tests.config.examples import config_with, settings_with

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft202012Validator(run_schema())


def errors(settings: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(settings)]


def test_it_is_a_schema_and_tells_of_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(run_schema())
    for name, section in run_schema()["$defs"].items():
        assert section["additionalProperties"] is False, name
        assert all(value["description"] for value in section["properties"].values()), name


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in [*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "megatron_cpt/quickstart").glob("*.yaml")]
        if "sources:" in (text := path.read_text()) and not re.search("^(apiVersion|arms):", text, re.MULTILINE)
    ],
    ids=lambda path: path.name,
)
def test_examples_are_right_and_a_misspelt_key_is_found(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert errors(settings) == []
    settings["training"]["micro_batchsize"] = 2
    assert len(found := errors(settings)) == 1 and "micro_batchsize" in found[0]


def test_the_readmes_run_and_a_resolved_configuration_are_right() -> None:
    readme = (ROOT / "README.md").read_text()
    assert errors(yaml.safe_load(re.findall(r"```yaml\n(# run.yaml.*?)```", readme, re.DOTALL)[0])) == []
    assert errors(yaml.safe_load(dump_config(config_with()))) == []


def test_a_base_is_named_or_described() -> None:
    assert errors(settings_with(base_history="llama-2-7b")) == []
    assert errors(settings_with(base_history={"name": "pythia-410m", "tokens": "150B"})) == []
    assert errors(settings_with(base_history="lama-2-7b")) and errors(settings_with(base_history={"peak": 1e-3}))


AMOUNT = st.one_of(
    st.integers(1, 10**13),
    st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(["", "K", "M", "B", "T", "k", " M"])),
    st.sampled_from(["4.1B", "1_000", "2e9", "1e+3", "5B tokens", "100 steps", "1 step", "1.5 M tokens"]),
    st.sampled_from(["", "B", "five", "-1", "0x10", "3h", True, None, 1.5, [5]]),
)


@given(AMOUNT, st.sampled_from(["training__tokens", "training__global_batch_size", "checkpoint__save_interval"]))
def test_what_a_run_accepts_as_an_amount_the_schema_does(amount: Any, key: str) -> None:
    settings = settings_with(**{key: amount})
    try:
        config_from_dict(settings)
    except BadInput:
        return
    assert errors(settings) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training__tokens", "five"),
        ("training__global_batch_size", "100 steps"),
        ("data__replay_ratio", 1.5),
        ("data__replay_ratio", "a third"),
        ("schedule__kind", "cosinus"),
        ("schedule__peak_lr", -1),
        ("parallel__sequence", "perhaps"),
    ],
)
def test_a_wrong_value_is_found(key: str, value: Any) -> None:
    assert errors(settings_with(**{key: value}))
    with pytest.raises(BadInput):
        config_from_dict(settings_with(**{key: value}))


@pytest.mark.parametrize("value", ["30%", "3e-1", 0.3, 1])
def test_shares_are_numbers_and_percentages(value: Any) -> None:
    assert errors(settings_with(data__replay_ratio=value)) == []


def test_a_meaning_is_the_first_sentence() -> None:
    assert meaning_of("data.sequence_length") == "Tokens of a training sequence"
    assert meaning_of("data.sources.web.max_epochs").startswith("Most passes over the source")
    assert meaning_of("data.nothing") == meaning_of("nowhere.at.all") == ""
