import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict, dump_config, load_config
from megatron_cpt.config.schema import EvalIntervalSettings
from megatron_cpt.config.units import Duration
from tests.config.examples import SETTINGS, settings_with


def written(folder: Path, content: dict[str, Any] | str) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def complaints(folder: Path, content: dict[str, Any] | str, *overrides: str) -> list[str]:
    with pytest.raises(BadInput) as raised:
        load_config(written(folder, content), overrides)
    return [str(fault) for fault in raised.value.faults]


def test_a_file_becomes_a_config(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SETTINGS))
    assert config.training.tokens == Duration(1_024_000)
    assert config.schedule.warmup == Duration(10, "steps")
    assert config.data.sources["general"].role == "replay"
    assert config.validation.eval_interval == EvalIntervalSettings(start=True, end=True)
    assert (config.tokens_per_step, config.total_steps, config.total_tokens) == (4096, 250, 1_024_000)


def test_yaml_reads_1e_minus_3_as_text_and_we_as_a_number(tmp_path: Path) -> None:
    text = yaml.safe_dump(settings_with()).replace("peak_lr: 0.001", "peak_lr: 1e-3")
    assert "peak_lr: 1e-3" in text
    assert load_config(written(tmp_path, text)).schedule.peak_lr == 0.001


def test_the_command_line_wins_and_its_values_are_yaml(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, SETTINGS),
        [
            "schedule.peak_lr=1e-4",
            "schedule.warmup=null",
            "training.tokens=5B",
            "data.sources.general.weight=2",
            "data.sources.books={paths: [data/books], role: replay}",
            "data.sources.books.weight=0.5",
            "data.replay_ratio=5%",
            "validation.sets.code.paths=[data/code.validation]",
            "validation.eval_interval.at=[5 steps, 100K]",
            "checkpoint.export_hf.dtype=bfloat16",
            "megatron.transformer.recompute_granularity=full",
            "run.folder=runs/a=b",
        ],
    )
    assert config.schedule.peak_lr == 1e-4
    assert config.schedule.warmup is None
    assert config.training.tokens == Duration(5_000_000_000)
    assert config.data.sources["general"].weight == 2
    assert config.data.sources["books"].weight == 0.5
    assert config.data.replay_ratio == 0.05
    assert config.validation.sets["code"].paths == ["data/code.validation"]
    assert config.validation.eval_interval.at == [Duration(5, "steps"), Duration(100_000)]
    assert config.checkpoint.export_hf is not None
    assert config.checkpoint.export_hf.dtype == "bfloat16"
    assert config.megatron.transformer == {"recompute_granularity": "full"}
    assert config.run.folder == "runs/a=b"


def test_a_setting_does_not_reach_an_aliased_section(tmp_path: Path) -> None:
    text = yaml.safe_dump(settings_with(data__sources=None)).replace(
        "sources: null", "sources:\n    one: &one {paths: [a]}\n    two: *one"
    )
    config = load_config(written(tmp_path, text), ["data.sources.two.weight=3", "data.replay_ratio=null"])
    assert (config.data.sources["one"].weight, config.data.sources["two"].weight) == (1, 3)


def test_every_fault_is_listed_in_plain_words(tmp_path: Path) -> None:
    wrong = settings_with(
        schedule__peak_lr=True,
        schedule__final_lr=-1,
        training__global_batch_size=0,
        training__micro_batch_size="3.5",
        data__sources__code__paths="data/code",
        data__sources__code__role="expert",
        run__folder=3,
        checkpoint__async_save="maybe",
        checkpoint__save_interval="9 epochs",
        optimizer__epsilon=float("inf"),
        optimizer__beta1=1.5,
        validation__sets=["general"],
    )
    del wrong["model"]
    found = complaints(tmp_path, wrong, "schedule.peek_lr=1", "nonsense", "training.tokens.x=1")
    assert sorted(found) == sorted(
        [
            "nonsense: a setting on the command line is `section.key=value`."
            " Write it as, for example, `schedule.peak_lr=1e-4`.",
            "training.tokens.x=1: `training.tokens` is a value, not a section."
            " Set it as a whole: `training.tokens=...`.",
            "run.folder = 3: should be a text. Put quotes around it.",
            "model: is required and was not given. Add the section."
            " Its keys: hf, weights, dropout, initial_loss_check, frozen, rope.",
            "data.sources.code.paths = data/code: should be a list. Write `paths: [data/code]`.",
            "data.sources.code.role = expert: should be one of 'domain', 'replay'. Write one of them.",
            "training.global_batch_size = 0: should be greater than 0. Raise it.",
            "training.micro_batch_size = 3.5: '3.5' is not a whole number. Round it.",
            "schedule.peak_lr = true: True is not a number. Write one such as 0.1 or 1e-4.",
            "schedule.final_lr = -1: should be at least 0. Raise it.",
            "schedule.peek_lr: is not a setting. The nearest is `schedule.peak_lr`.",
            "optimizer.beta1 = 1.5: should be at most 1. Lower it.",
            "optimizer.epsilon = inf: should be a finite number. Write a number such as 0.1 or 1e-4.",
            "validation.sets = ['general']: should be a section with keys of its own."
            " Write `name: value` lines under it, or take it out.",
            "checkpoint.async_save = maybe: should be true or false. Write one of the two.",
            "checkpoint.save_interval = 9 epochs: '9 epochs' is not a duration."
            " Write tokens, as 300M or 5B, or steps, as 100 steps.",
        ]
    )


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trainign.tokens=1", "The nearest is `training`."),
        ("training.tokns=1", "The nearest is `training.tokens`."),
        ("data.sources.general.wieght=1", "The nearest is `data.sources.general.weight`."),
        (
            "validation.sets.general.eval_interval.evry=1",
            "The nearest is `validation.sets.general.eval_interval.every`.",
        ),
        ("checkpoint.export_hf.dtpe=float32", "The nearest is `checkpoint.export_hf.dtype`."),
        ("training.seed=1", "The nearest is `run.seed`."),
        ("sequence_length=8", "The nearest is `data.sequence_length`."),
        ("optimizer.peak_lr=1", "The nearest is `schedule.peak_lr`."),
        ("data.max_epochs=1", "The nearest is `data.sources.NAME.max_epochs`."),
        (
            "parallel.zzz=1",
            "Known here: tensor, sequence, pipeline, virtual_pipeline, context, expert, "
            "distributed_optimizer, overlap_grad_reduce, overlap_param_gather.",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, override: str, nearest: str) -> None:
    (complaint,) = complaints(tmp_path, SETTINGS, override)
    assert complaint.endswith(f"is not a setting. {nearest}")


def test_a_source_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, settings_with(data__sources={2024: {"paths": ["a"]}}))
    assert complaint == 'data.sources: 2024: a name is a text. Put quotes around it: "2024".'


def test_an_empty_section_is_told_apart_from_a_missing_one(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, settings_with(optimizer=None))
    assert complaint.startswith("optimizer = (nothing): should be a section with keys of its own. Its keys: beta1")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("", "this one is empty"),
        ("- a\n- b\n", "this one is a list"),
        ("run: {folder: [}", "line 1, column 16: expected the node content"),
        ("run:\n  folder: a\n  folder: b\n", "line 3, column 3: the key `folder` is given twice"),
        ("run: {folder: 2024-13-01}", "month must be in 1..12"),
        ("run: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("? [1]\n: 2\n", "unhashable key"),
    ],
)
def test_a_file_that_is_not_a_configuration(tmp_path: Path, content: str, rule: str) -> None:
    (complaint,) = complaints(tmp_path, content)
    assert rule in complaint
    assert complaint.startswith(str(tmp_path / "run.yaml"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(BadInput, match="the configuration cannot be read"):
            load_config(path)
    (tmp_path / "binary.yaml").write_bytes(b"run: \xff\xfe")
    with pytest.raises(BadInput, match="the configuration cannot be read"):
        load_config(tmp_path / "binary.yaml")


def test_an_override_that_is_not_yaml_or_gives_a_key_twice(tmp_path: Path) -> None:
    found = complaints(tmp_path, SETTINGS, "run.folder=[", "megatron.ddp={a: 1, a: 2}", "=3", "run..seed=3")
    assert "the value cannot be read: line 1, column 2" in found[0]
    assert "the key `a` is given twice" in found[1]
    assert all("a setting on the command line is" in complaint for complaint in found[2:])


def test_a_dump_spells_out_durations_as_users_type_them() -> None:
    dumped = yaml.safe_load(dump_config(config_from_dict(SETTINGS)))
    assert dumped["training"]["tokens"] == 1_024_000
    assert dumped["schedule"]["warmup"] == "10 steps"
    assert dumped["run"]["log_interval"] == "10 steps"
    assert list(dumped)[:3] == ["run", "model", "data"]


spans = st.builds(Duration, st.integers(1, 10**13), st.sampled_from(["steps", "tokens"]))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\x85\u2028\u2029"), max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(
    tokens=spans,
    warmup=st.none() | spans,
    at=st.lists(spans, max_size=3),
    peak=st.floats(1e-300, 1e300),
    name=texts,
    paths=st.lists(texts, max_size=3),
    passed=st.dictionaries(texts, plain, max_size=3),
)
def test_a_dump_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: Duration,
    warmup: Duration | None,
    at: list[Duration],
    peak: float,
    name: str,
    paths: list[str],
    passed: dict[str, Any],
) -> None:
    config = config_from_dict(SETTINGS)
    source = dataclasses.replace(config.data.sources["code"], paths=paths)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, sources={name: source}),
        training=dataclasses.replace(config.training, tokens=tokens),
        schedule=dataclasses.replace(config.schedule, warmup=warmup, peak_lr=peak),
        validation=dataclasses.replace(config.validation, eval_interval=EvalIntervalSettings(at=at)),
        megatron=dataclasses.replace(config.megatron, transformer=passed),
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("schedule.peak=1e-4", "schedule.peak: is not a setting. It is called `schedule.peak_lr` since version 0.2."),
        ("start.checkpoint=x", "It is called `init_from` since version 0.2. Its keys: checkpoint, load_optimizer,"),
        ("validation.eval_interval.log=1 per decade to 9 steps", "`validation.eval_interval.log_spaced` since version"),
        ("validation.sets.general.marks={end: true}", "`validation.sets.general.eval_interval` since version 0.2."),
        ("data.sources.code.draw={tokens: 5}", "`data.sources.code.sample_per_epoch` since version 0.2."),
        ("validation.sets.general.role=replay", "it is called `general` since version 0.2. Write `role: general`."),
        ("schedule.kind=stairs", "Write `kind: piecewise`."),
    ],
)
def test_a_key_or_value_of_the_version_before_is_told_its_present_name(word: str, told: str, tmp_path: Path) -> None:
    assert told in "\n".join(complaints(tmp_path, SETTINGS, word))
