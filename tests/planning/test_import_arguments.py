"""Argument lists of Megatron-LM become the run that they mean, and no argument is lost without a word."""

import argparse
import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict, section_at
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.planning.import_arguments import import_arguments
from megatron_cpt.planning.megatron_lm_arguments import Given, by_flag, read_words, table, typed
from megatron_cpt.planning.megatron_lm_checkpoint import read_checkpoint
from megatron_cpt.planning.outcomes import Imported, ImportOptions
from megatron_cpt.planning.run_file import run_text
from tests.families.folders import MODELS, write_fields
from tests.planning.megatron_lm_lists import LISTS, write_config

SHORT = "--seq-length 64 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --train-iters 100 --data-path text"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("llama"), "llama-3-8b")


def imported(words: str, model: str, **options: Any) -> tuple[RunConfig, Imported]:
    """The run that a list becomes, read back from the text of its file, and what became of each argument."""
    found = import_arguments(read_words(words.split()), ImportOptions(model=model, **options))
    text = run_text(["head"], found.entries)
    assert max(len(line) for line in text.splitlines()) <= 120
    return config_from_dict(yaml.safe_load(text)), found


def result_of(found: Imported, flag: str) -> tuple[str, str]:
    """What became of an argument, and the words."""
    [outcome] = [one for one in found.outcomes if one.text.split()[0] == flag]
    return outcome.result, outcome.words


def test_a_list_for_llama_3_8b(tmp_path: Path) -> None:
    config, found = imported(LISTS["llama-3-8b"], write_config(tmp_path, "llama-3-8b"), replay=["general"])
    assert config_faults(config, world_size=8) == []
    assert (config.total_steps, config.tokens_per_step) == (3000, 192 * 8192)
    assert {name: (source.weight, source.role) for name, source in config.data.sources.items()} == {
        "medicine": (0.7, "domain"),
        "general": (0.3, "replay"),
    }
    assert (config.schedule.kind, config.schedule.peak_lr, config.schedule.final_lr) == ("cosine", 3e-5, 3e-6)
    assert config.schedule.warmup is not None and config.schedule.warmup.amount == 3000 * 192 * 8192 // 100
    assert (config.parallel.tensor, config.parallel.sequence, config.training.recompute) == (4, True, "selective")
    assert (config.run.folder, config.checkpoint.save_interval.steps(1)) == ("runs/llama-cpt", 500)  # type: ignore[union-attr]
    refused = {one.text.split()[0] for one in found.outcomes if one.result == "refused"}
    assert refused == {"--split", "--eval-iters", "--load"}
    assert "99.00%" in result_of(found, "--split")[1]
    assert "15728640" in result_of(found, "--eval-iters")[1]  # 10 x 192 x 8192
    assert "convert to-hf" in result_of(found, "--load")[1]


def test_a_list_for_mixtral(tmp_path: Path) -> None:
    config, found = imported(LISTS["mixtral-8x7b"], write_config(tmp_path, "mixtral-8x7b"))
    assert config_faults(config, world_size=64) == []
    assert (config.total_steps, config.parallel.expert, config.parallel.pipeline) == (5000, 8, 4)
    assert config.parallel.virtual_pipeline == 2
    assert config.megatron.transformer["moe_token_dispatcher_type"] == "alltoall"
    refused = {one.text.split()[0] for one in found.outcomes if one.result == "refused"}
    assert refused == {"--moe-aux-loss-coeff"}  # config.json says 0.02
    assert result_of(found, "--split")[0] == result_of(found, "--lr-decay-samples")[0] == "equal"


def test_a_list_for_qwen(tmp_path: Path) -> None:
    config, found = imported(LISTS["qwen2.5-7b"], write_config(tmp_path, "qwen2.5-7b"))
    assert config_faults(config, world_size=8) == []
    assert (config.schedule.kind, config.schedule.decay_shape) == ("wsd", "1-sqrt")
    assert config.schedule.decay is not None and config.schedule.decay.amount == 100 * 128 * 4096
    assert (config.data.attention, config.data.loss_mask.document_starts) == ("within_documents", False)
    assert config.data.sources["medicine"].paths == ["medicine_text_document", "general_text_document"]
    assert {name: one.tokens for name, one in config.validation.sets.items()} == dict.fromkeys(
        ("medicine-held-out", "general-held-out"), 8 * 128 * 4096
    )
    assert config.stop.after == "230m"
    assert not [one for one in found.outcomes if one.result in ("refused", "unknown")]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpt_neox", ""),
        ("nemotron", "--squared-relu --disable-bias-linear"),
        ("qwen2", "--disable-bias-linear --add-qkv-bias"),
        (
            "qwen2_moe",
            "--disable-bias-linear --add-qkv-bias --moe-shared-expert-gate --moe-shared-expert-intermediate-size 20",
        ),
    ],
)
def test_biases_activation_and_the_shared_expert_are_those_of_the_model(tmp_path: Path, kind: str, words: str) -> None:
    folder = str(write_fields(tmp_path, MODELS[kind]))
    _, found = imported(f"{SHORT} --num-layers 4 {words}", folder)
    named = {*words.split(), "--add-qkv-bias", "--disable-bias-linear", "--squared-relu", "--moe-shared-expert-gate"}
    assert not {one.text.split()[0] for one in found.outcomes if one.result in ("refused", "unknown")} & named
    if kind == "gpt_neox":
        _, found = imported(f"{SHORT} --num-layers 4 --disable-bias-linear", folder)
        assert result_of(found, "--disable-bias-linear")[0] == "refused"


def test_every_argument_of_the_release_has_a_treatment_that_holds() -> None:
    assert len(table()) == 651
    assert len(by_flag()) == sum(len(argument.flags) for argument in table())
    shapes = {field.name for field in dataclasses.fields(ModelShape)}
    shapes |= {name for name, value in vars(ModelShape).items() if isinstance(value, property)}
    for argument in table():
        assert argument.words and not argument.words.endswith("."), argument.flag
        match argument.treatment:
            case "key" | "steps":
                *place, key = argument.words.split(".")
                section = section_at(tuple(place))
                passed = argument.words.startswith("megatron.")
                assert passed or key in get_type_hints(section), argument.flag
            case "shape":
                assert argument.words.removeprefix("not ") in shapes, argument.flag
            case "refused":
                assert re.search(r"\. [A-Z]", argument.words), f"{argument.flag}: no remedy"


def test_fields_that_are_passed_on_are_megatron_cores_and_not_ours() -> None:
    known = {"transformer": TransformerConfig, "optimizer": OptimizerConfig, "ddp": DistributedDataParallelConfig}
    for argument in table():
        if argument.treatment == "key" and argument.words.startswith("megatron."):
            _, section, name = argument.words.split(".")
            assert name in {field.name for field in dataclasses.fields(known[section])}, argument.flag
            value = {"int": 1, "float": 1.0, "text": "x", "": True}[argument.type]
            passed = {"megatron": {section: {name: value}}}
            run = {"folder": "r"}
            base = {"run": run, "model": {"hf": "m"}, "schedule": {"peak_lr": 1}, "data": {"sequence_length": 8}}
            base["data"] |= {"sources": {"a": {"paths": ["a"]}}}  # type: ignore[dict-item]
            base["training"] = {"tokens": "2 steps", "global_batch_size": 2}
            assert not config_faults(config_from_dict(base | passed)), argument.flag


def test_each_argument_alone_with_a_value_of_its_type_is_told_of(llama: str) -> None:
    needed = {word for word in SHORT.split() if word.startswith("--")}
    for argument in table():
        if argument.flag not in needed | APART:
            _, found = imported(f"{SHORT} {with_value(argument.flag)}", llama)
            assert argument.flag in [one.text.split()[0] for one in found.outcomes]


def with_value(flag: str) -> str:
    """An argument with its default, or a value of its type that Megatron-LM may not know."""
    argument = by_flag()[flag]
    count = {"-": 0, "1": 1, "+": 1, "*": 1, "3": 3}[argument.values]
    return " ".join([flag, *([{"int": "1", "float": "0.5", "text": "x"}.get(argument.type, "")] * count)])


@given(st.lists(st.sampled_from([argument.flag for argument in table()]), max_size=30, unique=True))
def test_no_argument_is_lost(llama: str, flags: list[str]) -> None:
    """Any flags with their defaults (or a small number) beside a short list: each is told of exactly once."""
    needed = {word for word in SHORT.split() if word.startswith("--")}
    words = " ".join([SHORT, *map(with_value, sorted(set(flags) - needed - APART))])
    _, found = imported(words, llama)
    told = [one.text.split()[0] for one in found.outcomes]
    assert len(told) == len(set(told))
    assert set(flags) - APART - needed <= set(told)


# Files that are not there, lengths of another kind, sizes of 0 layers.
APART = {
    "--data-args-path",
    "--per-split-data-args-path",
    "--train-data-path",
    "--train-samples",
    "--rampup-batch-size",
    "--num-layers-per-virtual-pipeline-stage",
    "--split",
}


def megatron_rate(step: int, peak: float, low: float, warmup: int, decay: int, style: str) -> float:
    """The rate of Megatron-LM's scheduler after `step` samples (optimizer_param_scheduler.py, core 0.16.1)."""
    if warmup and step <= warmup:
        return peak * step / warmup
    if style == "constant" or step > decay:
        return peak if style == "constant" else low
    share = (step - warmup) / (decay - warmup)
    left = {"linear": 1 - share, "cosine": 0.5 * (math.cos(math.pi * share) + 1)}[style]
    return low + left * (peak - low)


@given(
    st.sampled_from(["linear", "cosine", "constant"]),
    st.integers(20, 400),
    st.integers(0, 15),
    st.sampled_from([0.8, 1, 1.5, 3]),
)
def test_rates_are_megatron_lms_one_step_later(llama: str, style: str, steps: int, warmup: int, longer: float) -> None:
    """Also where the decay is longer than the run, or ends before it."""
    decay = int(steps * longer)
    words = (
        f"--seq-length 64 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --min-lr 1e-5 --data-path text "
        f"--train-iters {steps} --lr-warmup-iters {warmup} --lr-decay-iters {decay} --lr-decay-style {style}"
    )
    config, found = imported(words, llama)
    assert config.total_steps == steps
    for step in range(1, steps + 1):
        ours = learning_rate(config.schedule, config.tokens_at(step), config.total_tokens, config.tokens_per_step)
        theirs = megatron_rate(8 * step, 1e-3, 1e-5, 8 * warmup, 8 * decay, style)
        assert ours == pytest.approx(theirs, rel=1e-9), (step, found.outcomes)
    assert result_of(found, "--lr-decay-iters")[0] == ("taken" if longer != 1 and style != "constant" else "equal")


def test_a_ramp_has_megatron_lms_batches(llama: str) -> None:
    words = SHORT.replace(
        "--train-iters 100", "--train-samples 2000 --rampup-batch-size 2 2 300 --lr-warmup-samples 80"
    )
    config, _ = imported(words, llama)
    sizes = [config.batches.of_step(step) for step in range(1, config.total_steps + 1)]
    consumed, expected = 0, []
    while consumed + (size := min(8, 2 + 2 * (consumed // 100))) <= 2000:
        expected.append(size)
        consumed += size
    assert sizes == expected
    assert config.schedule.warmup is not None and config.schedule.warmup.amount == 80 * 64
    assert config_faults(config, 1) == []


def test_defaults_that_differ_are_written(llama: str) -> None:
    config, found = imported(SHORT, llama)
    assert (config.optimizer.weight_decay, config.optimizer.beta2, config.model.dropout) == (0.01, 0.999, 0.1)
    assert (config.schedule.kind, config.training.precision) == ("linear", "fp32")
    assert result_of(found, "--adam-beta2") == ("taken", "optimizer.beta2: 0.999")
    assert result_of(found, "--split")[0] == "refused"  # 969, 30, 1 is its default


@pytest.mark.parametrize(
    ("words", "flag", "said"),
    [
        ("--num-layers 30", "--num-layers", "layers 32"),
        ("--num-layers 32", "--normalization", "normalization RMSNorm"),
        ("--num-layers 32 --rotary-base 1000000", "--rotary-base", "rope_base 500000"),
        ("--num-layers 32 --softmax-type learnable", "--softmax-type", "softmax_type vanilla"),
        ("--num-layers 32 --attention-output-gate", "--attention-output-gate", "attention_gate false"),
        ("--fp8-format hybrid", "--fp8-format", "megatron.transformer.fp8"),
        ("--fp16", "--fp16", "bf16"),
        ("--optimizer muon", "--optimizer", "AdamW"),
        ("--weight-decay-incr-style cosine", "--weight-decay-incr-style", "optimizer.weight_decay"),
        ("--lr-decay-style inverse-square-root", "--lr-decay-style", "docs/schedules.md"),
        ("--lr-decay-style WSD --lr-wsd-decay-iters 10", "--lr-wsd-decay-style", "0.086"),
        ("--decoupled-lr 5e-3 --min-lr 1e-5 --decoupled-min-lr 1e-4", "--decoupled-lr", "lr_multipliers"),
        ("--hidden-dropout 0.1 --attention-dropout 0", "--hidden-dropout", "model.dropout"),
        ("--expert-tensor-parallel-size 2", "--expert-tensor-parallel-size", "parallel.expert"),
        ("--use-megatron-fsdp", "--use-megatron-fsdp", "distributed_optimizer"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(llama: str, words: str, flag: str, said: str) -> None:
    _, found = imported(f"{SHORT} {words}", llama)
    result, told = result_of(found, flag)
    assert result == "refused" and said in told


@pytest.mark.parametrize("words", ["--global-batch-size 0", "--train-iters 0", "--seq-length -1", "--split a,b"])
def test_sizes_and_shares_that_are_none_are_faults(llama: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        imported(f"{SHORT} {words}", llama)


def test_the_wsd_that_is_not_there_is_nowhere_farther_than_said() -> None:
    shares = [number / 10_000 for number in range(10_001)]
    assert max(abs((1 - share) - (2 * 0.5**share - 1)) for share in shares) == pytest.approx(0.0861, abs=1e-4)


def test_a_factor_on_embeddings_and_output(llama: str) -> None:
    config, _ = imported(f"{SHORT} --min-lr 1e-5 --decoupled-lr 5e-3 --decoupled-min-lr 5e-5", llama)
    assert (config.optimizer.lr_multipliers.embedding, config.optimizer.lr_multipliers.output) == (5.0, 5.0)


def test_an_unknown_argument_is_told(llama: str) -> None:
    _, found = imported(f"{SHORT} --my-fork-only 3", llama)
    assert result_of(found, "--my-fork-only")[0] == "unknown"


def test_blends_in_files(llama: str, tmp_path: Path) -> None:
    (tmp_path / "blend.txt").write_text("0.2 a/one\n0.8 b/one\n")
    short = SHORT.replace(" --data-path text", "")
    config, _ = imported(f"{short} --data-args-path {tmp_path}/blend.txt", llama)
    assert {name: source.weight for name, source in config.data.sources.items()} == {"one": 0.2, "one-2": 0.8}
    (tmp_path / "parts.json").write_text('{"train": ["1", "a", "3", "b"], "valid": "c d", "test": null}')
    config, _ = imported(f"{short} --per-split-data-args-path {tmp_path}/parts.json --eval-iters 2", llama)
    assert list(config.data.sources) == ["a", "b"] and list(config.validation.sets) == ["c", "d"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr", "--lr: takes 1 value"),
        ("--lr fast", "'fast' is not a number"),
        ("--train-iters 1.5", "'1.5' is not a whole number"),
        ("--rampup-batch-size 1 2", "takes 3 values"),
        ("stray --lr 1", "stray: belongs to no flag"),
        ("--lr 1e-3 --train-iters 5", "--seq-length"),
        (SHORT.replace("--train-iters 100", ""), "--train-iters, --train-samples"),
        (SHORT.replace("--global-batch-size 8", ""), "--nproc"),
        (SHORT.replace("--data-path text", ""), "--data-path"),
        (SHORT.replace("--data-path text", "--data-path 0.3 a b"), "WEIGHT PREFIX"),
    ],
)
def test_lists_that_make_no_run_are_refused(llama: str, words: str, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        imported(words, llama)


def test_the_batch_follows_from_the_ranks(llama: str) -> None:
    words = SHORT.replace("--global-batch-size 8", "--tensor-model-parallel-size 2")
    config, _ = imported(words, llama, ranks=8)
    assert config.training.global_batch_size == 2 * 4


# --- checkpoints


class Backend:
    """Stands for an object of a class that this machine may not have."""


class Malicious:
    """What must not be run: it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def write_common(folder: Path, **values: Any) -> Path:
    """A torch_dist checkpoint's common state, as Megatron-LM writes it."""
    beside = {name: values.pop(name) for name in ("iteration", "opt_param_scheduler") if name in values}
    args = argparse.Namespace(**({argument.dest: None for argument in table()} | values))
    state = {"args": args, "iteration": 100, "checkpoint_version": 3.0, "optimizer": {"param_groups": [{"lr": 1e-3}]}}
    torch.save(state | beside, folder / "common.pt")
    return folder


def test_the_args_of_a_checkpoint(llama: str, tmp_path: Path) -> None:
    write_common(
        tmp_path,
        seq_length=64,
        micro_batch_size=2,
        global_batch_size=8,
        lr=1e-3,
        train_iters=100,
        data_path=["0.5", "a", "0.5", "b"],
        bf16=True,
        add_bias_linear=False,
        adam_beta2=0.95,
        params_dtype=torch.bfloat16,
        attention_backend=Backend(),
        rank=0,
    )
    given_words = read_checkpoint(tmp_path).arguments
    assert {"--disable-bias-linear", "--bf16", "--data-path"} <= {each.flag for each in given_words}
    found = import_arguments(given_words, ImportOptions(model=llama))
    config = config_from_dict(yaml.safe_load(run_text([], found.entries)))
    assert (config.training.precision, config.optimizer.beta2, list(config.data.sources)) == ("bf16", 0.95, ["a", "b"])


def test_nothing_of_a_checkpoint_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    write_common(tmp_path, seq_length=64, extra=Malicious(marker))
    assert [each.flag for each in read_checkpoint(tmp_path).arguments][:1] == ["--seq-length"]
    assert not marker.exists()
    torch.load(tmp_path / "common.pt", weights_only=False)  # a full unpickler does
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_common_state_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "common.pt").write_bytes(content)
    with pytest.raises(BadInput, match=r"common\.pt"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_without_args_is_one_message(tmp_path: Path) -> None:
    torch.save({"iteration": 1}, tmp_path / "common.pt")
    with pytest.raises(BadInput, match="holds no `args`"):
        read_checkpoint(tmp_path)


# --- a run that is underway

STYLES = {
    "cosine": "--lr-decay-style cosine",
    "linear": "--lr-decay-style linear",
    "constant": "--lr-decay-style constant",
    "wsd, linear": "--lr-decay-style WSD --lr-wsd-decay-style linear --lr-wsd-decay-iters 30",
    "wsd, cosine": "--lr-decay-style WSD --lr-wsd-decay-style cosine --lr-wsd-decay-iters 30",
    "wsd, minus_sqrt": "--lr-decay-style WSD --lr-wsd-decay-style minus_sqrt --lr-wsd-decay-iters 30",
}
LENGTHS = {
    "steps": "--train-iters 100 --lr-warmup-iters 12",
    "a share as warm-up": "--train-iters 100 --lr-warmup-fraction 0.13125",
    "a longer decay": "--train-iters 100 --lr-decay-iters 170 --lr-warmup-iters 12 --lr-warmup-init 1e-4",
    "an earlier end": "--train-iters 100 --lr-decay-iters 80 --lr-warmup-iters 12",
    "samples": "--train-samples 803 --lr-warmup-samples 91",
    "samples, no warm-up": "--train-samples 803 --lr-decay-samples 790",
}


class NoOptimizer:
    """What a scheduler needs of an optimizer."""

    param_groups: ClassVar[list[dict[str, Any]]] = [{}]


def scheduler_of(words: str) -> OptimizerParamScheduler:
    """Megatron-Core's scheduler, made as Megatron-LM's training.py makes it of these arguments."""
    values = {each.argument.flag: each.values for each in read_words(words.split()) if each.argument}

    def number(flag: str) -> float | None:
        return float(values[flag][0]) if flag in values else None

    iterations = number("--train-iters")
    decay = number("--lr-decay-iters") or iterations
    size, unit = (8, "iters") if iterations else (1, "samples")
    decay = (decay or number("--lr-decay-samples") or number("--train-samples") or 0) * size
    stable = number("--lr-wsd-decay-iters")
    return OptimizerParamScheduler(
        NoOptimizer(),  # type: ignore[arg-type]
        init_lr=number("--lr-warmup-init") or 0.0,
        max_lr=1e-3,
        min_lr=1e-5,
        lr_warmup_steps=number("--lr-warmup-fraction") * decay  # type: ignore[operator, arg-type]
        if "--lr-warmup-fraction" in values
        else (number(f"--lr-warmup-{unit}") or 0) * size,
        lr_decay_steps=decay,  # type: ignore[arg-type]
        lr_decay_style=values["--lr-decay-style"][0],
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=1,
        wd_incr_style="constant",
        wsd_decay_steps=None if stable is None else int(stable * 8),
        lr_wsd_decay_style=values.get("--lr-wsd-decay-style", (None,))[0],
    )


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("done", [1, 5, 40, 77, 99])
def test_a_run_underway_goes_on_with_megatron_cores_own_rates(
    llama: str, tmp_path: Path, style: str, length: str, done: int
) -> None:
    """The rate of our step k is that of the scheduler at iteration `done` + k, to the end of the run."""
    if "samples" in length:
        style = style.replace("--lr-wsd-decay-iters 30", "--lr-wsd-decay-samples 240")
    words = f"--seq-length 64 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --min-lr 1e-5 {style} {length}"
    scheduler = scheduler_of(words.replace("--lr-wsd-decay-samples 240", "--lr-wsd-decay-iters 30"))
    for _ in range(done):
        scheduler.step(8)
    values = {each.argument.dest: value_of(each) for each in read_words(words.split()) if each.argument}
    write_common(
        tmp_path,
        iteration=done,
        opt_param_scheduler=scheduler.state_dict(),
        consumed_train_samples=8 * done,
        data_path=["text"],
        **values,
    )
    checkpoint = read_checkpoint(tmp_path)
    found = import_arguments(checkpoint.arguments, ImportOptions(model=llama), progress=checkpoint.progress)
    config = config_from_dict(yaml.safe_load(run_text([], found.entries)))
    assert config_faults(config, 1) == []
    assert config.total_steps == 100 - done
    for step in range(1, config.total_steps + 1):
        ours = learning_rate(config.schedule, config.tokens_at(step), config.total_tokens, config.tokens_per_step)
        assert ours == pytest.approx(scheduler.get_lr({}), rel=1e-9, abs=0), step
        scheduler.step(8)
    refused = {one.text for one in found.outcomes if one.result == "refused"}
    assert not any("schedul" in one or "lr" in one for one in refused), refused


def value_of(each: Given) -> Any:
    """The value of an argument of one value, as Megatron-LM's parser stores it."""
    assert each.argument is not None
    return typed(each.argument, each.values[0])
