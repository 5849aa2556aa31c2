"""A vocabulary that two ranks cannot share evenly gives the loss that one rank gives."""

from pathlib import Path

import numpy as np
import pytest

from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import VOCABULARY, Workshop, write_model, write_tokenizer_of


@pytest.fixture
def odd_model(workshop: Workshop, tmp_path: Path) -> Path:
    """The workshop's tokenizer with a model of an odd vocabulary."""
    write_model(tmp_path / "odd", vocab_size=VOCABULARY + 3)
    write_tokenizer_of(workshop, tmp_path / "odd")
    return tmp_path / "odd"


def test_padding_takes_no_part_in_the_loss(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, odd_model: Path, tmp_path: Path
) -> None:
    for ranks, name, tensor in ((one_rank, "one", 1), (two_ranks, "two", 2)):
        path = workshop.write_config(tmp_path / name, model={"hf": str(odd_model)})
        ranks.call(train, path=path, overrides=("training.tokens=4 steps", f"parallel.tensor={tensor}"))
    for kind in ("train", "validation"):
        one, two = records_of(tmp_path / "one", kind), records_of(tmp_path / "two", kind)
        np.testing.assert_allclose(column(two, "loss"), column(one, "loss"), rtol=0, atol=2e-6)
