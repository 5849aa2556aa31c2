"""plan.py: counts, steps, cost and warnings of a small run, by literal numbers."""

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.packing import PackedStream
from megatron_cpt.planning.cost import cost_estimate
from megatron_cpt.planning.plan import RunPlan, make_plan
from tests.planning.small_run import settings, write_dataset


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    return settings(tmp_path)


def plan_of(sections: dict[str, Any], world_size: int = 1) -> RunPlan:
    return make_plan(config_from_dict(sections), world_size)


def test_steps_tokens_and_blend(sections: dict[str, Any]) -> None:
    plan = plan_of(sections)
    assert (plan.steps, plan.tokens_per_step, plan.tokens) == (100, 256, 25_600)
    assert plan.blend.sources == ("law", "web")
    assert plan.blend.counts == (600, 200)
    assert plan.blend.epochs == (1.92, 0.128)
    assert plan.blend.source_sequences(8) == {"law": 6, "web": 2}
    assert plan.blend.source_epochs(800) == {"law": 1.92, "web": 0.128}


def test_marks_and_what_they_cost(sections: dict[str, Any]) -> None:
    sections["validation"]["sets"]["law"]["eval_interval"] = {"start": True, "end": True}
    plan = plan_of(sections)
    assert plan.evaluation_steps == {"law": (0, 100), "web": (0, 1, 3, 10, 32, 50, 100)}
    law, web = plan.evaluations
    assert (law.tokens, web.tokens) == (1024, 640)
    assert law.compute_share == pytest.approx(2 * 1024 / (3 * 25_600))
    assert web.compute_share == pytest.approx(7 * 640 / (3 * 25_600))


def test_batches_that_grow_are_told_and_counted(sections: dict[str, Any]) -> None:
    sections["training"]["batch_size_rampup"] = {"start": 2, "increment": 2, "tokens": 24 * 32}
    plan = plan_of(sections)
    # 4 steps of 2 sequences, 2 of 4, 2 of 6 (28 sequences), then 92 of 8.
    assert (plan.steps, plan.tokens_per_step, plan.tokens) == (100, 256, 764 * 32)
    assert plan.blend.total_sequences == sum(plan.blend.counts) == 764
    assert plan.model.training_flops == plan.model.flops_per_token * 764 * 32
    web = plan.evaluations[1]
    assert web.compute_share == pytest.approx(len(web.steps) * 640 / (3 * 764 * 32))
    assert "100 steps of at most 8 x 32 = 256 tokens" in plan.table()
    assert "Batches  from 2 sequences in 3 sizes: 8 after 8 steps, 896 tokens" in plan.table()
    assert plan.to_dict()["batch_size_rampup"] == [
        {"steps": 4, "size": 2},
        {"steps": 2, "size": 4},
        {"steps": 2, "size": 6},
    ]
    del sections["training"]["batch_size_rampup"]
    assert "Batches" not in plan_of(sections).table()
    assert "batch_size_rampup" not in plan_of(sections).to_dict()


def test_size_of_the_model(sections: dict[str, Any]) -> None:
    model = plan_of(sections).model
    assert model.parameters == 6736
    assert model.non_embedding_parameters == 4688
    assert model.training_flops == model.flops_per_token * 25_600
    sections["parallel"] = {"tensor": 2}
    assert plan_of(sections, world_size=2).model.memory.parameters < model.memory.parameters


def test_a_plan_needs_no_run_folder_and_opens_no_bin(sections: dict[str, Any], tmp_path: Path) -> None:
    """Counts come from indices and manifests: other bytes of the same length change nothing."""
    planned = plan_of(sections).to_dict()
    files = set(tmp_path.rglob("*"))
    for path in tmp_path.glob("*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    assert plan_of(sections).to_dict() == planned
    assert set(tmp_path.rglob("*")) == files


def test_the_fingerprint_follows_the_text(sections: dict[str, Any], tmp_path: Path) -> None:
    first = plan_of(sections).blend
    sections["training"]["tokens"] = "200 steps"
    assert plan_of(sections).blend.fingerprint(800) == first.fingerprint(800)
    sections["data"]["sources"]["law"]["paths"] = [
        write_dataset(tmp_path / "law_again", 10_000, Path(sections["model"]["hf"]))
    ]
    assert plan_of(sections).blend.fingerprint(800) != first.fingerprint(800)


def test_phases_are_shown_and_those_not_reached_are_named(sections: dict[str, Any]) -> None:
    sections["data"]["phases"] = [{"from_tokens": 0}, {"from_tokens": "40 steps", "replay_ratio": 0.5}]
    plan = plan_of(sections)
    lines = plan.table().splitlines()
    start = lines.index("Phases")
    assert lines[start + 1 : start + 4] == [
        "  from tokens      law      web  at max_epochs",
        "            0  75.00 %  25.00 %",
        "        10.2K  50.00 %  50.00 %",
    ]
    assert plan.blend.counts == (480, 320)
    shares = [phase["shares"] for phase in plan.to_dict()["blend"]["phases"]]
    assert shares == [{"law": 0.75, "web": 0.25}, {"law": 0.5, "web": 0.5}]
    sections["training"]["tokens"] = "40 steps"
    assert plan_of(sections).warnings == ("phase 1, from_tokens = 40 steps, is not reached: the run has 40 steps.",)


def test_a_run_that_an_exhausted_source_ends(sections: dict[str, Any]) -> None:
    sections["data"]["when_exhausted"] = "stop"
    sections["data"]["sources"]["law"]["max_epochs"] = 1.5
    plan = plan_of(sections)
    assert (plan.steps, plan.tokens) == (78, 78 * 256)
    assert plan.evaluation_steps["web"] == (0, 1, 3, 10, 32, 50, 78)
    assert plan.model.training_flops == plan.model.flops_per_token * 78 * 256
    [warning] = plan.warnings
    assert warning.startswith("the run stops after 78 of 100 steps")
    assert warning.endswith("schedule and evaluations end there too.")


def test_the_schedule_of_a_run_that_an_exhausted_source_ends_comes_to_its_end(sections: dict[str, Any]) -> None:
    sections["data"]["when_exhausted"] = "stop"
    sections["data"]["sources"]["law"]["max_epochs"] = 1.5
    sections["schedule"] = {"peak_lr": 1e-3, "final_lr": 1e-5, "kind": "linear", "warmup": "10 steps"}
    config = plan_of(sections).config
    assert (config.total_steps, config.total_tokens) == (78, 78 * 256)
    assert learning_rate(config.schedule, config.total_tokens, config.total_tokens, config.tokens_per_step) == 1e-5
    sections["training"]["tokens"] = config.total_tokens
    assert plan_of(sections).config == config
    sections["training"]["tokens"] = "100 steps"
    sections["schedule"]["warmup"] = "79 steps"
    with pytest.raises(BadInput, match="longer than the run of 19968 tokens"):
        plan_of(sections)


def test_padding_of_packed_sequences_is_told_and_packing_needs_documents_apart(sections: dict[str, Any]) -> None:
    sections["data"]["packing"] = "best_fit"
    with pytest.raises(
        BadInput, match=r"data\.packing = best_fit: documents that are packed into a sequence would see"
    ):
        plan_of(sections)
    sections["data"]["attention"] = "within_documents"
    plan = plan_of(sections)
    for name, stream in plan.inputs.sources.items():
        assert isinstance(stream, PackedStream)
        told = [warning for warning in plan.warnings if f"source {name} is packed into {stream.sequences:,}" in warning]
        assert len(told) == (stream.padding_share > 0.05)


def test_a_sound_run_has_no_warnings(sections: dict[str, Any]) -> None:
    assert plan_of(sections).warnings == ()


def test_what_looks_unwise_is_said(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["data"] = {
        "sequence_length": 32,
        "sources": {"law": {"paths": [write_dataset(tmp_path / "f", 5000, None)]}},
    }
    sections["validation"]["eval_interval"] = {"start": False, "every": "50 steps"}
    del sections["validation"]["sets"]["web"]
    warnings = plan_of(sections).warnings
    assert [warning.split(":")[0] for warning in warnings] == [
        "source law is read 5.1 times",
        "no source of role `replay` gives tokens",
        "no validation set has the role `general`",
        "no evaluation before the first update of law",
        "no dense early evaluations for law",
        "data.sources.law",
    ]
    sections["validation"] = {"sets": {}}
    assert any("there are no validation sets" in warning for warning in plan_of(sections).warnings)


def test_pretraining_from_scratch_needs_no_replay(sections: dict[str, Any]) -> None:
    sections["model"]["weights"] = "random"
    del sections["data"]["sources"]["web"], sections["data"]["replay_ratio"]
    del sections["validation"]["sets"]["web"]
    assert plan_of(sections).warnings == ()


def test_faults_refuse_the_plan(sections: dict[str, Any]) -> None:
    sections["data"]["sequence_length"] = 256
    sections["training"]["micro_batch_size"] = 3
    with pytest.raises(BadInput) as refusal:
        plan_of(sections)
    assert len(refusal.value.faults) == 2


def test_plan_json(sections: dict[str, Any]) -> None:
    content = json.loads(orjson.dumps(plan_of(sections).to_dict()))
    assert content["tokens"] == 25_600
    assert [source["sequences"] for source in content["blend"]["sources"]] == [600, 200]
    assert content["blend"]["order"]["phases"] == [{"first_sequence": 0, "weights": {"law": 3, "web": 1}}]
    assert content["evaluations"][0]["steps"] == [0, 1, 3, 10, 32, 50, 100]
    memory = content["model"]["memory"]
    assert content["model"]["memory_per_rank"] == sum(memory.values())


def test_the_table(sections: dict[str, Any], tmp_path: Path) -> None:
    lines = plan_of(sections).table().splitlines()
    assert lines[0] == f"Run      {tmp_path}/run: 100 steps of 8 x 32 = 256 tokens, 25.6K tokens in all"
    assert lines[1] == "Rate     0.001 at the first step, 0.001 at the highest, 0 at the last"
    assert lines[2] == "Model    llama, 6.74K parameters (4.69K without embeddings)"
    start = lines.index("Blend")
    assert lines[start + 1 : start + 4] == [
        "  source  role    tokens read    share     of  epochs  effective unique",
        "  law     domain        19.2K  75.00 %  10.0K    1.92             18.9K",
        "  web     replay        6.40K  25.00 %  50.0K    0.13             6.40K",
    ]
    start = lines.index("Evaluation")
    assert lines[start + 2].split()[-7:] == ["0,", "1,", "3,", "10,", "32,", "50,", "100"]


def test_what_counts_of_conversations_is_told(sections: dict[str, Any]) -> None:
    source = sections["data"]["sources"]["law"]
    assert "Counted in the loss" not in plan_of(sections).table()
    np.save(f"{source['paths'][0]}.loss_spans.npy", np.array([(0, 2_500)], LOSS_SPAN))
    Path(f"{source['paths'][0]}.manifest.json").unlink()
    lines = plan_of(sections).table().splitlines()
    assert lines[lines.index("Counted in the loss") + 1] == "  law  25.00 % of the tokens of its datasets"
    np.save(f"{source['paths'][0]}.mine.npy", np.array([(0, 10)], LOSS_SPAN))
    source["loss_mask_column"] = "mine"
    assert "Counted in the loss" not in plan_of(sections).table()
    source["loss_weight"] = 0.5
    lines = plan_of(sections).table().splitlines()
    assert lines[lines.index("Counted in the loss") + 1] == "  law  losses times 0.5 in training"


def test_weights_by_losses_are_told_and_that_they_never_begin(sections: dict[str, Any]) -> None:
    sections["training"]["loss_reweighting"] = {"start": "60 steps", "temperature": 0.4}
    plan = plan_of(sections)
    words = "  all sources  sequences weighted by their losses from step 61 on, temperature 0.4"
    assert words in plan.table().splitlines()
    early, late = (cost_estimate(one, "H100-80GB", 0.4) for one in (plan, plan_with_start(sections, "1000 steps")))
    assert late.tokens_per_second / early.tokens_per_second == pytest.approx(1 + 0.4 / 3)
    [warning] = plan_with_start(sections, "1000 steps").warnings
    assert warning.startswith("training.loss_reweighting begins after step 1,000, and the run has 100 steps")


def plan_with_start(sections: dict[str, Any], start: str) -> RunPlan:
    sections["training"]["loss_reweighting"]["start"] = start
    return plan_of(sections)


def test_a_loss_weight_that_overflows_is_refused(sections: dict[str, Any]) -> None:
    sections["data"]["sources"]["law"]["loss_weight"] = 1e30
    with pytest.raises(BadInput, match=r"law\.loss_weight = 1e\+30: is a factor of losses, at most 1,000,000"):
        plan_of(sections)


def test_conversations_that_are_cut_and_exports_without_their_template_are_told(sections: dict[str, Any]) -> None:
    sections["data"] |= {"packing": "best_fit", "attention": "within_documents"}
    [path] = sections["data"]["sources"]["law"]["paths"]
    np.save(f"{path}.loss_spans.npy", np.array([(0, 2_500)], LOSS_SPAN))
    Path(f"{path}.manifest.json").unlink()
    cut = "1 of the conversations of source law are longer than a sequence of 32 tokens and are cut"
    without = f"source law holds conversations, and {sections['model']['hf']} has no chat template"
    warnings = plan_of(sections).warnings
    assert [sum(one.startswith(start) for one in warnings) for start in (cut, without)] == [1, 1]
    config = Path(sections["model"]["hf"]) / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": None}))
    assert any(warning.startswith(without) for warning in plan_of(sections).warnings)
    (Path(sections["model"]["hf"]) / "chat_template.jinja").write_text("{{ messages }}")
    assert not any("chat template" in warning for warning in plan_of(sections).warnings)


def test_what_is_read_must_count_in_the_loss(sections: dict[str, Any]) -> None:
    sources = sections["data"]["sources"]
    first, *others = sources.values()
    first["loss_weight"] = 0
    plan_of(sections)
    for other in others:
        other["weight"] = 0
    sections["data"].pop("replay_ratio", None)
    with pytest.raises(BadInput, match="nothing would be trained on in the run: all that is read there has weight 0"):
        plan_of(sections)
    weights = dict.fromkeys(sources, 1)
    sections["data"]["phases"] = [{"from_tokens": 0, "weights": weights}, {"from_tokens": "50 steps"}]
    with pytest.raises(BadInput, match="nothing would be trained on in phase 2"):
        plan_of(sections)


def test_a_limit_thins_evaluations_and_says_so(sections: dict[str, Any]) -> None:
    free = plan_of(sections)
    cost = sum(evaluation.compute_share for evaluation in free.evaluations)
    sections["validation"]["max_overhead"] = cost
    assert plan_of(sections).evaluation_steps == free.evaluation_steps and plan_of(sections).warnings == ()
    sections["validation"]["max_overhead"] = 0.1
    plan = plan_of(sections)
    assert sum(evaluation.compute_share for evaluation in plan.evaluations) <= 0.1
    assert all(steps[0] == 0 and steps[-1] == 100 and 2 < len(steps) < 7 for steps in plan.evaluation_steps.values())
    (warning,) = plan.warnings
    left_out = 7 - len(plan.evaluation_steps["law"])
    assert warning.startswith(f"validation.max_overhead leaves out {left_out} of 7 evaluations of law, ")
    assert f"{7 - left_out} of 7" in plan.table()
    sections["validation"]["max_overhead"] = 0.01
    plan = plan_of(sections)
    assert plan.evaluation_steps == {"law": (0, 100), "web": (0, 100)}
    assert plan.warnings[-1].startswith("the first and the last evaluations alone cost 4.33 %")


def test_the_cost_of_harness_tasks_is_not_known(sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval", module_from_spec(spec))
    sections["tasks"] = {"lm_eval": {"exams": {"tasks": ["arc_easy"], "eval_interval": {"every": "10 steps"}}}}
    sections["validation"]["max_overhead"] = 0.1
    plan = plan_of(sections)
    assert plan.lm_eval_steps == {"exams": tuple(range(0, 101, 10))} and plan.task_steps == {}
    assert len(plan.evaluation_steps["law"]) < 7
    lines = plan.table().splitlines()
    assert next(line for line in lines if "(lm_eval)" in line).split()[:9] == [
        "exams", "(lm_eval)", "general", "not", "known", "11", "not", "known", "0,"
    ]  # fmt: skip
    assert next(line for line in lines if "together" in line).endswith("% and more")
    assert "max_overhead does not count the harness's tasks of exams" in plan.warnings[-1]


def test_tasks_and_the_gradient_conflict_have_their_cost(sections: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "w2"}\n{"text": "w3"}')
    sections["tasks"] = {"files": {"texts": {"path": str(tmp_path / "texts.jsonl")}}}
    sections["validation"]["gradient_conflict"] = ["web"]
    _, web, texts = plan_of(sections).evaluations
    assert (texts.kind, texts.tokens, texts.steps) == ("tasks", 2, (0, 100))
    assert texts.compute_share == pytest.approx(2 * 2 / (3 * 25_600))
    assert web.compute_share == pytest.approx(7 * (640 / 3 + 4 / 3 * 256) / 25_600)
    assert plan_of(sections).table().splitlines()[-1].split()[:2] == ["together", "16"]
    assert plan_of(sections).evaluation_steps.keys() == {"law", "web"} and plan_of(sections).task_steps == {
        "texts": (0, 100)
    }


def test_a_source_whose_share_is_less_than_a_sequence_is_named(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    sections["data"]["sources"]["tiny"] = {
        "paths": [write_dataset(tmp_path / "tiny", 900, tmp_path / "model")],
        "weight": 1e-4,
    }
    (said,) = [line for line in make_plan(config_from_dict(sections)).warnings if "gives no sequence" in line]
    assert said.startswith("source tiny has a share of 0.01 % and gives no sequence: 0.06 of a sequence")
    assert "gives no sequence" not in str(make_plan(config_from_dict(settings(tmp_path / "other"))).warnings)


def test_what_several_gpus_would_want_is_named_once_where_it_is_off(tmp_path: Path) -> None:
    sections = settings(tmp_path)

    def off(ranks: int, **others: dict[str, Any]) -> list[str]:
        plan = make_plan(config_from_dict({**sections, **others}), ranks)
        return [line for line in plan.warnings if line.startswith("off, ")]

    sharded = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
    (said,) = off(4, parallel={"tensor": 2, "distributed_optimizer": True})
    assert "parallel.sequence, parallel.overlap_grad_reduce, parallel.overlap_param_gather (" in said
    assert off(4, parallel={"tensor": 2, "sequence": True, **sharded}) == off(1) == []
    assert off(2, training=sections["training"] | {"precision": "fp32"}) == []  # as on processors


def test_a_budget_that_a_validation_set_does_not_hold_and_a_high_rate_are_named(sections: dict[str, Any]) -> None:
    before = plan_of(sections).warnings
    sections["validation"]["sets"]["law"]["tokens"] = 10**6
    sections["schedule"]["peak_lr"] = 0.1
    new = [line for line in plan_of(sections).warnings if line not in before]
    assert len(new) == 2
    assert any(line.startswith("validation set law has ") and "1.00M tokens of its budget" in line for line in new)
    assert any(line.startswith("schedule.peak_lr = 0.1 is far above") for line in new)
