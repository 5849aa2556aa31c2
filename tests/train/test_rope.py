"""A run on longer sequences than its model was made for: other rotary positions, the same for transformers."""

from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.checkpoint_state import complete_checkpoints
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import records_of, refusal, train
from tests.workshop import Workshop, write_model, write_tokenizer_of

LENGTH = 96  # the workshop's model was made for 64
RUN = (
    f"data.sequence_length={LENGTH}",
    "training.tokens=2 steps",
    "schedule.warmup=null",
    "validation.eval_interval.at=[]",
    "checkpoint.export_hf.end=true",
)
ROPES = {
    "base": "{max_position_embeddings: 96, rope_theta: 40000}",
    "linear": "{max_position_embeddings: 96, scaling: linear}",
    "llama3": "{max_position_embeddings: 128, scaling: llama3, original_positions: 32}",
    "yarn": "{max_position_embeddings: 128, scaling: yarn}",
}


def transformers_nats(folder: Path, tokens: torch.Tensor) -> float:
    """Summed loss of one sequence by transformers' own reading of a folder: int64 [s + 1]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model(tokens[None, :-1]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum"))


@pytest.fixture
def model(workshop: Workshop, tmp_path: Path) -> Path:
    """The workshop's model with weights so large that its losses depend on positions."""
    write_model(tmp_path / "hf", initializer_range=0.3)
    write_tokenizer_of(workshop, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("kind", quick_among(ROPES, ["yarn", "llama3"]))
def test_transformers_reads_the_same_model(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, model: Path, tmp_path: Path, kind: str
) -> None:
    """Before the first update (the initial loss check) and after the last (the export), on one process and on two."""
    run = tmp_path / "run"
    ranks, layout = (one_rank, ()) if kind in ("base", "llama3") else (two_ranks, ("parallel.tensor=2",))
    path = workshop.write_config(run, model={"hf": str(model)})
    ranks.call(train, path=path, overrides=(*RUN, f"model.rope={ROPES[kind]}", *layout))
    checked = orjson.loads((run / "initial_loss_check.json").read_bytes())
    assert checked["ours"] == pytest.approx(checked["losses"], abs=1e-4)
    last = [record for record in records_of(run, "validation") if record["step"] == 2 and record["set"] == "domain"]
    tokens = TokenStream([f"{workshop.prefix('domain')}.validation"]).read(0, LENGTH + 1)
    assert transformers_nats(run / "hf", torch.from_numpy(tokens)) == pytest.approx(
        last[0]["sequence_nats"][0], abs=1e-2
    )
    of_base = transformers_nats(model, torch.from_numpy(tokens))
    first = [record for record in records_of(run, "validation") if record["step"] == 0 and record["set"] == "domain"]
    assert abs(first[0]["sequence_nats"][0] - of_base) > 0.1  # it is another model than the folder's
    [checkpoint] = complete_checkpoints(run / "checkpoints")
    stated = [orjson.loads((folder / "config.json").read_bytes()) for folder in (checkpoint / "hf", run / "hf")]
    assert [fields["max_position_embeddings"] for fields in stated] == [128 if "128" in ROPES[kind] else 96] * 2
    assert stated[0]["rope_parameters"] == stated[1]["rope_parameters"]


def test_longer_sequences_need_positions_and_the_plan_names_them(workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    with pytest.raises(BadInput, match=r"give it positions for more with `model\.rope`"):
        make_plan(load_config(path, RUN), 1)
    plan = make_plan(load_config(path, (*RUN, f"model.rope={ROPES['base']}")), 1)
    assert "Rope     for 96 tokens: base 40,000, scaling as the folder's (model.rope)" in plan.table()
    with pytest.raises(BadInput, match=r"model\.rope\.factor = 2\.0: is a number of a scaling"):
        make_plan(load_config(path, (*RUN, "model.rope={max_position_embeddings: 96, factor: 2}")), 1)


def test_a_run_does_not_go_on_with_other_positions(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", "validation.sets={}"))
    [said] = one_rank.call(
        refusal, path=path, overrides=("model.rope={max_position_embeddings: 64, rope_theta: 40000}",)
    )
    assert "rotary positions of base 10000, not scaled before, 40000, not scaled now" in said
