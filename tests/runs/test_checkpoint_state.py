"""position.json, as it is written now and as version 0.1 wrote it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.runs.checkpoint_state import FREQUENT, CheckpointState, Layout, find_state, read_state
from megatron_cpt.runs.folder import write_json

STATE = CheckpointState(
    step=9,
    tokens=900,
    sequences=90,
    order={},
    order_fingerprint="",
    source_sequences={"law": 90},
    layout=Layout(2, 1, 1, True),
    sharding=FREQUENT,
    skipped_ranges=[[10, 20]],
    skipped_in_a_row=1,
    parts={
        "model.frozen": {"bottom": 1},
        "optimizer.lr_multipliers": {"embedding": 0.5, "layers": [{"first": 0, "last": 1, "multiplier": 0.1}]},
        "optimizer.no_weight_decay": ["embedding"],
    },
    first_own_step=4,
)


def position_of_0_1() -> dict[str, Any]:
    """The same state under the names of version 0.1."""
    values = asdict(STATE)
    for name in ("batches", "measures"):
        del values[name]
    for new, old in (("first_own_step", "begun_at"), ("skipped_ranges", "left_out")):
        values[old] = values.pop(new)
    values["left_out_in_a_row"] = values.pop("skipped_in_a_row")
    values["parts"] = {
        "model.frozen": {"bottom": 1},
        "optimizer.rates": {"embedding": 0.5, "layers": [{"first": 0, "last": 1, "rate": 0.1}]},
        "optimizer.undecayed": ["embedding"],
    }
    return values


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert find_state(tmp_path) is None
    write_json(tmp_path / "position.json", asdict(STATE))
    assert read_state(tmp_path) == find_state(tmp_path) == STATE


def test_a_state_of_version_0_1_is_read_under_the_present_names(tmp_path: Path) -> None:
    write_json(tmp_path / "position.json", position_of_0_1())
    assert read_state(tmp_path) == STATE


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layout": 3}'])
def test_what_is_no_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "position.json").write_text(content)
    with pytest.raises(IntegrityFault, match="not a readable position"):
        find_state(tmp_path)
