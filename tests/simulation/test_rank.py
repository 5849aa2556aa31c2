"""A simulated rank: what it shows, that it does not grow, and that the closed estimate of memory agrees with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.families.memory import stage_memories
from megatron_cpt.families.shape import read_shape
from megatron_cpt.planning.cards import CARDS
from megatron_cpt.planning.layout_search import closed_rank
from megatron_cpt.planning.simulated import SimulatedRank
from tests.families.folders import MODELS, of_sizes, write_fields
from tests.simulation.ranks import run_settings, simulate

# Small, but with the proportions of models that are trained: vocabulary apart, matrices decide.
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "intermediate_size_mlp": 1408,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 384,
    "sliding_window": 256,
    "attention_chunk_size": 256,
    "num_local_experts": 8,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 384,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
SIZES_OF: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "num_key_value_heads": 8,
        "q_lora_rank": 192,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 12,
        "num_experts_per_tok": 4,
    },
    "glm4_moe": {"n_routed_experts": 12, "partial_rotary_factor": 0.5},
}
"""Of families that differ in more than the sizes of all."""


@dataclass(frozen=True)
class Case:
    """A run of a small model, and one of its ranks."""

    kind: str
    parallel: dict[str, Any]
    world_size: int
    training: dict[str, Any]
    stage: int = 0

    @property
    def name(self) -> str:
        settings = {**self.parallel, **self.training}
        words = [f"{key}={value}" for key, value in settings.items() if value is not True]
        return "-".join([self.kind, *words, *([f"stage{self.stage}"] if self.stage else [])])

    @property
    def rank(self) -> int:
        return self.stage * self.world_size // self.parallel.get("pipeline", 1)


GUARD = Case(
    "llama",
    {
        "tensor": 2,
        "sequence": True,
        "distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    },
    4,
    {},
)
EXPERTS = Case("qwen3_moe", {"tensor": 2, "sequence": True, "expert": 2, "distributed_optimizer": True}, 4, {})
QUICK = (
    GUARD,
    EXPERTS,
    Case("gemma2", {}, 1, {}),
    Case("llama", {"pipeline": 2}, 2, {}, stage=1),
    Case("llama", {"pipeline": 2, "virtual_pipeline": 2}, 2, {}),
    Case("olmo2", {"context": 2}, 2, {"recompute": "full"}),
)
SLOW = (
    *(
        Case(kind, {}, 1, {})
        for kind in ("llama_tied", "gpt_neox", "qwen3", "olmo2", "gemma3", "mistral", "mixtral", "qwen3_moe")
    ),
    *(
        Case(kind, {}, 1, {})
        for kind in (
            "llama_biased",
            "phi3",
            "nemotron",
            "starcoder2",
            "qwen2_moe",
            "olmoe",
            "olmo3",
            "exaone4",
            "gemma",
            "granite",
            "apertus",
            "ministral3",
            "gpt_oss",
            "qwen3_next",
            "llama4_text",
        )
    ),
    Case("llama4_text", {"tensor": 2, "sequence": True, "expert": 2, "distributed_optimizer": True}, 4, {}),
    Case("llama4_text", {"context": 2}, 2, {"recompute": "full"}),
    Case("qwen3_next", {"tensor": 2, "sequence": True}, 2, {"recompute": "full"}),
    Case("llama", {"pipeline": 2}, 2, {}),
    Case("llama", {"pipeline": 2, "virtual_pipeline": 2}, 2, {}, stage=1),
    Case("llama", {"context": 2}, 2, {}),
    Case("llama", {}, 1, {"recompute": "full"}),
    Case("qwen3_moe", {"tensor": 2, "sequence": True}, 2, {"recompute": "full"}),
    Case("llama", {}, 1, {"recompute": "selective"}),
    Case("gpt_neox", {}, 1, {"recompute": "selective"}),
    Case("llama", {}, 1, {"precision": "fp32"}),
    Case("llama", {}, 1, {"z_loss": 1e-4}),
    Case("mixtral", {"expert": 4, "distributed_optimizer": True}, 4, {"recompute": "full"}),
    Case("deepseek_v3", {}, 1, {}),
    Case("deepseek_v3", {"tensor": 2, "sequence": True}, 2, {}),
    Case("deepseek_v3", {"tensor": 2, "sequence": True, "expert": 2}, 4, {"recompute": "full"}),
    Case("glm4_moe", {"tensor": 2, "sequence": True}, 2, {}),
)


def settings_of(case: Case, root: Path) -> dict[str, Any]:
    """Settings of its run, beside the folder of its model."""
    fields = of_sizes(MODELS[case.kind], SIZES | SIZES_OF.get(case.kind, {}))
    if case.parallel.get("virtual_pipeline", 1) > 1:
        fields["num_hidden_layers"] = 4
    if "layer_types" in fields:
        fields["layer_types"] = fields["layer_types"][: fields["num_hidden_layers"]]
    folder = write_fields(root / case.name, fields)
    return run_settings(folder, case.parallel, length=1024, training=case.training)


Simulated = Callable[[Case], tuple[dict[str, Any], SimulatedRank]]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """The settings of a case's run, and its rank; all quick ones, or all slow ones, are simulated by one process."""
    found: dict[str, tuple[dict[str, Any], SimulatedRank]] = {}
    root = tmp_path_factory.mktemp("models")

    def of(case: Case) -> tuple[dict[str, Any], SimulatedRank]:
        if case.name not in found:
            cases = QUICK if case in QUICK else SLOW
            settings = [settings_of(one, root) for one in cases]
            ranks = simulate([(run, one.rank, one.world_size) for run, one in zip(settings, cases, strict=True)])
            found.update({one.name: pair for one, *pair in zip(cases, settings, ranks, strict=True)})
        return found[case.name]

    return of


@pytest.mark.ci
def test_a_step_does_not_grow(simulated: Simulated) -> None:
    """The rehearsal: what a step waits for, sends and holds. A number that falls may be lowered here."""
    rank = simulated(GUARD)[1]
    assert rank.syncs <= 3, rank.step.syncs
    calls = {(one.operation, one.group): one.calls for one in rank.step.transfers}
    micro_batches, layers = 8, 2
    assert rank.micro_batches == micro_batches
    # Both matrices of a layer that read whole sequences gather them, and once more backward their gradients and inputs.
    assert calls["all_gather", "tensor"] == micro_batches * (6 * layers + 3)
    assert calls["reduce_scatter", "tensor"] == micro_batches * (4 * layers + 2)
    assert calls["all_gather", "data and context"] == calls["reduce_scatter", "data and context"]
    assert rank.peak <= 126 * 2**20
    assert rank.memory["optimizer"] == pytest.approx(12 * rank.parameters / 2, rel=0.01)


def test_activations_are_told_by_line(simulated: Simulated) -> None:
    rank = simulated(GUARD)[1]
    assert sum(line.count for line in rank.lines) == rank.memory["activations"]
    places = [line.place.partition(":")[0] for line in rank.lines]
    assert places[0] == "megatron/core/fusions/fused_cross_entropy.py"
    assert {"megatron/core/tensor_parallel/layers.py", "megatron_cpt/model/attention.py"} <= set(places)


@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=lambda case: case.name
)
def test_the_closed_estimate_agrees(case: Case, simulated: Simulated) -> None:
    settings, rank = simulated(case)
    estimated = stage_memories(read_shape(settings["model"]["hf"]), config_from_dict(settings), case.world_size)
    memory = estimated[case.stage]
    assert memory.parameters == pytest.approx(rank.memory["parameters"], rel=0.01)
    assert memory.gradients == pytest.approx(rank.memory["gradients"], rel=0.01)
    assert memory.optimizer == pytest.approx(rank.memory["optimizer"], rel=0.01)
    assert memory.activations == pytest.approx(rank.memory["activations"], rel=0.08)
    assert memory.total == pytest.approx(rank.peak, rel=0.05)


def bytes_of(rank: SimulatedRank) -> dict[tuple[str, str], float]:
    """Of collectives by operation and group, those of small tensors and of one rank apart."""
    found: dict[tuple[str, str], float] = {}
    for one in rank.step.transfers:
        if one.ranks > 1 and one.bytes / one.calls > 2**14 and one.operation not in ("send", "broadcast"):
            found[one.operation, one.group] = found.get((one.operation, one.group), 0) + one.bytes
    return found


@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=lambda case: case.name
)
def test_a_search_counts_as_a_simulation_does(case: Case, simulated: Simulated) -> None:
    settings, rank = simulated(case)
    shape, config = read_shape(settings["model"]["hf"]), config_from_dict(settings)
    closed = closed_rank(config, shape, CARDS["H100-80GB"], case.world_size)
    if case.stage == config.parallel.pipeline - 1:
        assert closed.step.flops == pytest.approx(rank.step.flops, rel=0.2)
        assert bytes_of(closed) == pytest.approx(bytes_of(rank), rel=0.15)


def test_tokens_go_to_experts_evenly(simulated: Simulated) -> None:
    rank = simulated(EXPERTS)[1]
    layers, tokens, chosen, hidden = 2, 1024 // 2, 2, 512
    exchanged = next(one for one in rank.step.transfers if (one.operation, one.group) == ("all_to_all", "expert"))
    # There and back, forward and backward, in bf16; the shares of the experts, in fp32, go there and come back.
    of_tokens, of_shares = 4 * tokens * chosen * hidden * 2, 2 * tokens * chosen * 4
    assert exchanged.bytes == rank.micro_batches * layers * (of_tokens + of_shares)
