"""The text of a run.yaml is read as the values that it was made of."""

import pytest
import yaml

from megatron_cpt.planning.run_file import Entry, run_text


@pytest.mark.parametrize("length", [1, 44, 45, 46, 47, 60, 90, 100, 200])
def test_a_comment_never_becomes_a_part_of_a_value(length: int) -> None:
    folder = "x" * length
    text = run_text([], [Entry("run.folder", folder), Entry("run.seed", 5)])
    assert yaml.safe_load(text) == {"run": {"folder": folder, "seed": 5}}
    assert "# The run folder" in text
