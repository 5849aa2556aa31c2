import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.checks import best_warnings, config_faults
from megatron_cpt.config.errors import BadInput
from tests.config.examples import config_with

GENERAL = {"paths": ["data/general"], "role": "replay"}
CODE = {"paths": ["data/code"]}


def complaints(world_size: int | None = None, **changes: Any) -> list[str]:
    return [str(fault) for fault in config_faults(config_with(**changes), world_size)]


def test_a_right_configuration_has_no_fault() -> None:
    assert complaints() == complaints(world_size=4) == []
    assert complaints(world_size=8, parallel={"tensor": 2, "pipeline": 2}) == []
    assert complaints(world_size=4, parallel={"pipeline": 2, "virtual_pipeline": 2}) == []


def test_an_interleaved_pipeline_takes_whole_rounds_of_micro_batches() -> None:
    layout = {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "training__global_batch_size": 24}
    assert complaints(world_size=4, **layout) == [
        "3 micro batches in a step: an interleaved pipeline takes a multiple of parallel.pipeline = 2 of them."
        " Raise training.global_batch_size, lower training.micro_batch_size, or set parallel.virtual_pipeline to 1."
    ]
    assert complaints(schedule={"kind": "wsd", "peak_lr": 1e-3, "warmup": "10 steps", "decay": "240 steps"}) == []
    assert complaints(schedule={"kind": "constant", "peak_lr": 1e-3, "warmup": "250 steps"}) == []
    # A warm-up that is longer than the run, of a schedule that is longer too.
    assert complaints(schedule={"peak_lr": 1e-3, "warmup": "300 steps", "tokens": "400 steps"}) == []
    assert complaints(schedule={"peak_lr": 1e-3, "warmup": "300 steps", "consumed": "290 steps"}) == []
    assert complaints(checkpoint={"save_interval": "50 steps", "keep_every": "100 steps"}) == []
    # 100,000 tokens are 49 steps of 2,048, and 500,000 are 244: five saves are meant.
    assert complaints(checkpoint={"save_interval": "100K", "keep_every": "500K"}) == []
    assert complaints(data__replay_ratio=0, data__sources={"code": CODE, "general": {**GENERAL, "weight": 0}}) == []
    assert complaints(data__replay_ratio=1, data__sources={"general": GENERAL}) == []
    assert complaints(data__phases=[{"from_tokens": 0, "replay_ratio": 0.5}, {"from_tokens": "512K"}]) == []


CASES: list[tuple[dict[str, Any], str]] = [
    ({"run__folder": " "}, "run.folder = ' ': a folder needs a name."),
    ({"model__hf": ""}, "model.hf = '': a folder needs a name."),
    ({"data__sources": {}}, "data.sources is empty: a run needs text."),
    ({"data__packing": "best_fit"}, "data.packing = best_fit: documents that are packed into a sequence would see"),
    ({"data__sources__code__paths": []}, "data.sources.code.paths is empty: there is nothing to read."),
    ({"data__sources__code__paths": ["a", ""]}, "data.sources.code.paths has an empty path"),
    ({"data__sources": {"a/b": CODE, "general": GENERAL}}, "data.sources: 'a/b': a name holds letters"),
    ({"validation__sets": {"..": CODE}}, "validation.sets: '..': a name holds letters"),
    ({"validation__sets": {"a": {"paths": []}}}, "validation.sets.a.paths is empty"),
    (
        {"validation__sets__general__tokens": 255},
        "validation.sets.general.tokens = 255: it holds no whole sequence of data.sequence_length = 256 tokens.",
    ),
    (
        {"data__sources": {"code": CODE}},
        "data.replay_ratio = 0.3: it gives 0.3 of the tokens to `replay` sources, and there are none.",
    ),
    (
        {"data__sources": {"general": GENERAL}},
        "data.replay_ratio = 0.3: it gives 0.7 of the tokens to `domain` sources, and there are none.",
    ),
    (
        {"data__sources__code__weight": 0},
        "data.replay_ratio = 0.3: it gives 0.7 of the tokens to `domain` sources, whose weights are all 0.",
    ),
    (
        {"data__replay_ratio": None, "data__sources": {"code": {**CODE, "weight": 0}}},
        "data.sources: all weights are 0: nothing would be read.",
    ),
    (
        {"data__phases": [{"from_tokens": "10 steps"}]},
        "data.phases.0.from_tokens = 10 steps: the first phase begins with the run.",
    ),
    (
        {"data__phases": [{"from_tokens": 0}, {"from_tokens": "20 steps"}, {"from_tokens": 81_000}]},
        "data.phases.2.from_tokens = 81000 tokens: it begins at step 20, and the phase before it at step 20",
    ),
    (
        {"data__phases": [{"from_tokens": 0, "weights": {"cod": 2}}]},
        "data.phases.0.weights.cod: there is no such source. The nearest is `code`.",
    ),
    (
        {"data__phases": [{"from_tokens": 0}, {"from_tokens": "20 steps", "weights": {"code": 0}}]},
        "data.phases.1.replay_ratio = 0.3: it gives 0.7 of the tokens to `domain` sources, whose weights are all 0.",
    ),
    (
        {"training__micro_batch_size": 3},
        "training.global_batch_size = 16: it should be a multiple of training.micro_batch_size = 3."
        " The nearest are 15 and 18.",
    ),
    (
        {"training__micro_batch_size": 32},
        "training.global_batch_size = 16: it should be a multiple of training.micro_batch_size = 32."
        " The nearest are 32 and 64.",
    ),
    ({"parallel__virtual_pipeline": 2}, "parallel.virtual_pipeline = 2: a pipeline of one stage has nothing to"),
    ({"parallel__sequence": True}, "parallel.sequence = true: it divides sequences over tensor-parallel ranks"),
    (
        {"parallel": {"tensor": 3, "sequence": True}},
        "data.sequence_length = 256: ranks that share sequences share them evenly: it should be a multiple of"
        " parallel.tensor = 3. The nearest are 255 and 258.",
    ),
    (
        {"parallel": {"context": 3}},
        "data.sequence_length = 256: ranks that share sequences share them evenly: it should be a multiple of"
        " 2 * parallel.context = 6. The nearest are 252 and 258.",
    ),
    (
        {"parallel__overlap_param_gather": True},
        "parallel.overlap_param_gather = true: parameters are gathered only where the distributed optimizer",
    ),
    (
        {"parallel": {"distributed_optimizer": True, "overlap_param_gather": True}},
        "parallel.overlap_param_gather = true: Megatron-Core overlaps the gathering of parameters only together",
    ),
    (
        {"checkpoint__keep_every": "120 steps"},
        "checkpoint.keep_every = 120 steps: 120 steps are not a multiple of checkpoint.save_interval, 50 steps."
        " The nearest are 100 and 150 steps.",
    ),
    (
        {"checkpoint": {"keep_every": "100 steps"}},
        "checkpoint.keep_every = 100 steps: there is one checkpoint, at the end",
    ),
    (
        {"schedule__warmup": "251 steps"},
        "schedule.warmup = 251 steps: it is longer than the run of 1024000 tokens (250 steps).",
    ),
    ({"schedule__warmup": "250 steps"}, "schedule.warmup = 250 steps: it takes the whole run"),
    ({"schedule__final_lr": 0.1}, "schedule.final_lr = 0.1: it should not be above schedule.peak_lr = 0.001."),
    ({"schedule__initial_lr": 1e-4, "schedule__warmup": None}, "schedule.initial_lr = 0.0001: there is no warm-up"),
    (
        {"schedule": {"kind": "infinite", "peak_lr": 1, "final_lr": 0.1}},
        "schedule.plateau_lr: `infinite` cools down to a rate",
    ),
    (
        {"schedule": {"kind": "infinite", "peak_lr": 1, "final_lr": 0.1, "plateau_lr": 2}},
        "schedule.plateau_lr = 2: it should lie between schedule.final_lr = 0.1 and schedule.peak_lr = 1.",
    ),
    (
        {"schedule": {"kind": "wsd", "peak_lr": 1, "decay_shape": "exponential"}},
        "schedule.final_lr = 0: an exponential decay never reaches 0.",
    ),
    ({"schedule": {"kind": "piecewise", "peak_lr": 1}}, "schedule.pieces is empty"),
    (
        {"schedule": {"kind": "piecewise", "peak_lr": 1, "pieces": [{"from_tokens": "250 steps", "lr": 0.1}]}},
        "schedule.pieces.0.from_tokens = 250 steps: it is not reached",
    ),
    (
        {"schedule__decay": "5M"},
        "schedule.decay = 5000000 tokens: it belongs to `wsd` or `infinite`, and schedule.kind is cosine.",
    ),
    (
        {"schedule": {"kind": "constant", "peak_lr": 1, "tokens": "300 steps"}},
        "schedule.tokens = 300 steps: it belongs to `linear` or `cosine` or `wsd` or `infinite`, and schedule.kind is",
    ),
    (
        {"schedule": {"peak_lr": 1, "warmup": "30 steps", "tokens": "30 steps"}},
        "schedule.warmup = 30 steps: it takes the whole schedule: nothing is left to bring the rate to 0.",
    ),
    (
        {"schedule": {"kind": "wsd", "peak_lr": 1, "warmup": "11 steps", "decay": "240 steps"}},
        "schedule.decay = 240 steps: warm-up and decay together (1028096 tokens) are longer than the run",
    ),
    (
        {"schedule": {"kind": "wsd", "peak_lr": 1, "warmup": "230 steps"}},
        "schedule.decay = a tenth of the run, 102400 tokens: warm-up and decay together (1044480 tokens)",
    ),
    ({"optimizer__beta2": 1}, "optimizer.beta2 = 1: it should be below 1."),
    (
        {"validation__eval_interval__log_spaced": "often"},
        "validation.eval_interval.log_spaced = 'often': it should read like `8 per decade",
    ),
    (
        {"validation__sets__general__eval_interval": {"log_spaced": "8 per decade to 10"}},
        "validation.sets.general.eval_interval.log_spaced = '8 per decade to 10': it should read like",
    ),
    (
        {"megatron__transformer": {"hidden_size": 8}},
        "megatron.transformer.hidden_size = 8: megatron-cpt sets this field itself."
        " Take it out and use the model's own config.json, in the folder `model.hf`.",
    ),
    (
        {"megatron__transformer": {"overlap_p2p_comm": False}},
        "megatron.transformer.overlap_p2p_comm = False: megatron-cpt sets this field itself."
        " Take it out and use `parallel.virtual_pipeline`.",
    ),
    (
        {"megatron__transformer": {"sequence_parallel": True}},
        "megatron.transformer.sequence_parallel = True: megatron-cpt sets this field itself."
        " Take it out and use `parallel.sequence`.",
    ),
    (
        {"megatron__transformer": {"tp_comm_overlap": True}},
        "megatron.transformer.tp_comm_overlap = true: Transformer Engine overlaps tensor-parallel communication in"
        " buffers of its own, which are not made here: the first layer would fail. Take it out.",
    ),
    ({"megatron__optimizer": {"lr": 1}}, "megatron.optimizer.lr = 1: megatron-cpt sets this field itself."),
    (
        {"megatron__ddp": {"use_distributed_optimizer": True}},
        "megatron.ddp.use_distributed_optimizer = True: megatron-cpt sets this field itself."
        " Take it out and use `parallel.distributed_optimizer`.",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_each_rule_names_value_rule_and_remedy(changes: dict[str, Any], expected: str) -> None:
    (complaint,) = complaints(**changes)
    assert complaint.startswith(expected)


def test_what_the_ranks_cannot_share_is_refused_once_their_number_is_known() -> None:
    layout = {"parallel": {"tensor": 2, "pipeline": 2}}
    assert complaints(**layout) == []
    assert complaints(world_size=6, **layout) == [
        "6 ranks: each copy of the model takes parallel.tensor * parallel.pipeline = 4 ranks."
        " Start a multiple of 4 ranks, or lower those sizes."
    ]
    assert complaints(world_size=12, **layout) == [
        "training.global_batch_size = 16: it should be a multiple of"
        " training.micro_batch_size * data-parallel ranks = 12. The nearest are 12 and 24."
    ]


def test_all_faults_come_at_once() -> None:
    found = complaints(
        run__folder="",
        training__micro_batch_size=3,
        schedule__final_lr=1,
        megatron={"ddp": {"average_in_collective": True}},
    )
    assert [complaint.split(" ")[0] for complaint in found] == [
        "run.folder",
        "training.global_batch_size",
        "schedule.final_lr",
        "megatron.ddp.average_in_collective",
    ]


SENT_TOO_LATE = {"megatron__transformer": {"deallocate_pipeline_outputs": True}}
OF_A_ROW = {
    "megatron__transformer": {"moe_router_load_balancing_type": "seq_aux_loss"},
    "data__attention": "within_documents",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (SENT_TOO_LATE | {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}, "deallocate_pipeline_outputs = true:"),
        (OF_A_ROW | {"training__micro_batch_size": 2}, "moe_router_load_balancing_type = seq_aux_loss: with"),
        ({"megatron__transformer": {"cp_comm_type": ["p2p", "a2a"]}}, "cp_comm_type = ['p2p', 'a2a']: Megatron-Core"),
        (
            {"megatron__transformer": {"fp32_residual_connection": True}},
            "fp32_residual_connection = True: megatron-cpt",
        ),
        ({"megatron__transformer": {"recompute_num_layers": 3}}, "recompute_num_layers = 3: megatron-cpt sets this"),
        ({"megatron__transformer": {"fp8_param": True}}, "fp8_param = True: megatron-cpt sets this field itself."),
    ],
)
def test_what_some_release_of_megatron_core_gets_wrong_is_refused(changes: dict[str, Any], expected: str) -> None:
    (complaint,) = complaints(**changes)
    assert complaint.startswith(f"megatron.transformer.{expected}")


@pytest.mark.parametrize(
    "name", ["num_distributed_optimizer_instances", "fp8_param_gather", "reuse_grad_buf_for_mxfp8_param_ag"]
)
def test_gradient_buffers_that_were_not_tried_are_refused(name: str) -> None:
    assert complaints(megatron__ddp={name: 2}) == [
        f"megatron.ddp.{name} = 2: megatron-cpt sets this field itself. Take it out; it cannot be chosen."
    ]


def test_the_same_fields_are_passed_where_they_are_right() -> None:
    assert complaints(**SENT_TOO_LATE, parallel={"pipeline": 2}) == []
    assert complaints(**OF_A_ROW, training__micro_batch_size=1) == []
    assert complaints(megatron__transformer={"cp_comm_type": "p2p", "fp8": "hybrid"}) == []


def test_traces_are_those_of_ranks_that_there_are() -> None:
    chosen = {"run__profile": "10", "run__profile_ranks": [0, 4]}
    assert complaints(world_size=4, **chosen) == [
        "run.profile_ranks = [0, 4]: the ranks are 0 to 3. Name some of them."
    ]
    assert complaints(world_size=4, **{**chosen, "run__profile_ranks": [0, 3]}) == complaints(**chosen) == []
    assert complaints(world_size=4, **{**chosen, "run__profile": None}) == []


def test_what_megatron_core_alone_decides_may_be_passed() -> None:
    assert complaints(megatron={"transformer": {"recompute_modules": ["core_attn"]}, "ddp": {"bucket_size": 10}}) == []


@pytest.mark.parametrize("ratio", [0, 1])
def test_a_sweep_may_switch_a_role_off_by_the_ratio_alone(ratio: int) -> None:
    assert config_faults(config_with(data__replay_ratio=ratio)) == []


LAW = {"paths": ["data/law"]}
QUALITY = {"score": "ngram", "buckets": [0, 0.5, 1]}
BLENDS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": "1B", "epochs": 2}, "data.sources.law: tokens = 1000000000, epochs = 2.0: are targets, and a source"),
    ({"epochs": 2}, "data.sources: code without a target: other sources of role `domain` have targets"),
    (
        {"sample_per_epoch": {"tokens": 10}},
        "data.sources.law.sample_per_epoch.tokens = 10: a draw holds at least one sequence of 256 tokens.",
    ),
    (
        {"sample_per_epoch": {"tokens": "1M"}, "quality": {**QUALITY, "shares": [1, 2]}},
        "data.sources.law.sample_per_epoch.tokens = 1000000: buckets of a source are read in epochs of their own, "
        "not in draws.",
    ),
    ({"quality": QUALITY}, "data.sources.law.quality: no curve: one of `epochs`, `shares` and `temperature` says"),
    (
        {"quality": {**QUALITY, "shares": [1, 2], "temperature": 1}},
        "data.sources.law.quality: shares, temperature: one of `epochs`, `shares` and `temperature` says",
    ),
    ({"quality": {**QUALITY, "shares": [1]}}, "data.sources.law.quality.shares = [1.0]: there are 2 buckets and 1"),
    ({"quality": {**QUALITY, "shares": [0, 0]}}, "data.sources.law.quality.shares = [0.0, 0.0]: every bucket is"),
    (
        {"quality": {"score": "ngram", "buckets": [0, 0.7, 0.5], "temperature": 1}},
        "data.sources.law.quality.buckets = [0.0, 0.7, 0.5]: bounds rise from 0 to 1.",
    ),
]
PHASES: list[tuple[list[dict[str, Any]], str]] = [
    ([{}], "data.phases.0: a phase begins at one of `from_tokens`, `from_lr` and `from_epoch`."),
    ([{"from_lr": "0.5 of peak"}], "data.phases.0.from_lr = 0.5 of peak: the first phase begins with the run."),
    (
        [{"from_tokens": 0}, {"from_tokens": "9 steps", "from_epoch": "1 of code"}],
        "data.phases.1.from_tokens = 9 steps, from_epoch = 1 of code: a phase begins at one of",
    ),
    (
        [{"from_tokens": 0}, {"from_epoch": "1 of coed"}],
        "data.phases.1.from_epoch = 1 of coed: there is no such",
    ),
    ([{"from_tokens": 0, "ramp": "9 steps"}], "data.phases.0.ramp = 9 steps: there is no phase before the first."),
]


@pytest.mark.parametrize(("source", "expected"), BLENDS)
def test_sources_at_odds_with_themselves(source: dict[str, Any], expected: str) -> None:
    faults = config_faults(config_with(data__sources__law={**LAW, **source}))
    assert str(faults[0]).startswith(expected)


@pytest.mark.parametrize(("phases", "expected"), PHASES)
def test_phases_that_begin_nowhere(phases: list[dict[str, Any]], expected: str) -> None:
    [fault] = config_faults(config_with(data__phases=phases))
    assert str(fault).startswith(expected)


def test_a_rate_that_is_never_reached_or_depends_on_the_end() -> None:
    phases = [{"from_tokens": 0}, {"from_lr": "0.2 of peak"}]
    constant = config_with(data__phases=phases, schedule={"kind": "constant", "peak_lr": 1e-3})
    [fault] = config_faults(constant)
    assert str(fault).startswith("data.phases.1.from_lr = 0.2 of peak: the learning rate never falls to it (schedule.")
    [fault] = config_faults(config_with(data__phases=phases, data__when_exhausted="stop"))
    assert "would depend on each other" in str(fault)
    with pytest.raises(BadInput, match="is no share of the peak learning rate"):
        config_with(data__phases=[{"from_tokens": 0}, {"from_lr": "20 %"}])
    with pytest.raises(BadInput, match="is no epoch of a source"):
        config_with(data__phases=[{"from_tokens": 0}, {"from_epoch": 2}])


def best_of_general(save: str, evaluate: str | None) -> list[str]:
    """What is said of the checkpoints that may be kept as the best, in a run of 250 steps of 4,096 tokens."""
    interval = {"every": evaluate} if evaluate is not None else {}
    checkpoint = {"save_interval": save, "keep_best": "general"}
    return [*best_warnings(config_with(checkpoint=checkpoint, validation__eval_interval=interval))]


def test_saves_and_evaluations_that_seldom_meet_are_told() -> None:
    """60K tokens are 15 steps and 30K are 7."""
    [told] = best_of_general("60K", "30K")
    assert told.startswith(
        "checkpoint.keep_best = general: 17 saves (every 15 steps) and 36 evaluations (every 7 steps) have 3 steps in"
    )
    assert told.endswith("The nearest multiples of 7 are 14 and 21.")
    [told] = best_of_general("50 steps", None)
    assert "5 saves (every 50 steps) and 1 evaluation have 1 step in common; only there" in told
    assert best_of_general("50 steps", "10 steps") == best_of_general("10 steps", "50 steps") == []


@given(st.integers(4_096, 400_000), st.integers(4_096, 400_000))
def test_the_advice_on_the_best_checkpoint_helps(save: int, evaluate: int) -> None:
    for told in best_of_general(f"{save} tokens", f"{evaluate} tokens"):
        first, *others = map(int, re.findall(r"\d+", told.rpartition("multiples of")[2]))
        assert best_of_general(f"{others[0]} steps", f"{first} steps") == []
        assert best_of_general(f"{first} steps", f"{others[-1]} steps") == []
