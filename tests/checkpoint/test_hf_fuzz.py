"""Whatever is done to headers, index and config: a folder reads as what it is, or is refused with one clear error."""

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_cpt.checkpoint.hf_folder import INDEX, open_hf_tensors
from megatron_cpt.checkpoint.hf_weights import check_tensors, hf_sizes
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.families.shape import read_shape
from tests.checkpoint.hf_models import all_tensors, write_llama

SETTINGS = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD_NAMES = ["", ".", "..", "../model.safetensors", "/etc/passwd", "a\0b", "x" * 5000 + ".safetensors", "model.bin"]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=9),
    st.just([]),
    st.just({}),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several files, not to be changed."""
    return write_llama(tmp_path_factory.mktemp("fuzz") / "hf", shards="50KB", num_hidden_layers=2)


@pytest.fixture(scope="module")
def whole(original: Path) -> dict[str, torch.Tensor]:
    """Its tensors."""
    return all_tensors(original)


def folder_with(original: Path, target: Path, name: str, content: bytes) -> Path:
    """Links to the original's files, and one file with other content."""
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        path.unlink()
    for path in original.iterdir():
        if path.name != name:
            (target / path.name).symlink_to(path)
    (target / name).write_bytes(content)
    return target


def read_all(folder: Path, whole: dict[str, torch.Tensor]) -> bool:
    """Reads every tensor as loading does. True: as it was. False: refused with an error meant for users."""
    try:
        shape = read_shape(folder)
        with open_hf_tensors(folder) as tensors:
            check_tensors(tensors, shape)
            for name, size in hf_sizes(shape).items():
                read = tensors.read(name, 0, 0, size[0])
                assert read.shape == whole[name].shape
        return True
    except (BadInput, IntegrityFault) as error:
        assert str(folder) in str(error)
        return False


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON object with one entry, at some depth, removed, added or replaced."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        kind = draw(st.sampled_from(["remove", "replace", "name", "swap"]))
        if kind == "remove":
            del place[key]
        elif kind == "replace":
            place[key] = draw(JUNK)
        elif kind == "name":
            place[key] = draw(st.sampled_from(ODD_NAMES))
        else:
            other = draw(st.sampled_from(keys))
            place[key], place[other] = place[other], place[key]
        return value


@SETTINGS
@given(data=st.data())
def test_an_index_of_any_content(
    original: Path, whole: dict[str, torch.Tensor], tmp_path: Path, data: st.DataObject
) -> None:
    index = orjson.loads((original / INDEX).read_bytes())
    content = orjson.dumps(data.draw(changed(index)))
    read_all(folder_with(original, tmp_path / "hf", INDEX, content), whole)


@SETTINGS
@given(data=st.data())
def test_a_header_of_any_content(
    original: Path, whole: dict[str, torch.Tensor], tmp_path: Path, data: st.DataObject
) -> None:
    path = sorted(original.glob("*.safetensors"))[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = orjson.dumps(data.draw(changed(orjson.loads(content[8 : 8 + length]))))
    stated = data.draw(st.sampled_from([len(header)] * 8 + [0, len(header) - 1, len(header) + 1, 2**40, 2**64 - 1]))
    spoiled = stated.to_bytes(8, "little") + header + content[8 + length :]
    read_all(folder_with(original, tmp_path / "hf", path.name, spoiled), whole)


@SETTINGS
@given(data=st.data())
def test_a_config_of_any_content(
    original: Path, whole: dict[str, torch.Tensor], tmp_path: Path, data: st.DataObject
) -> None:
    config = orjson.loads((original / "config.json").read_bytes())
    content = orjson.dumps(data.draw(changed(config)))
    read_all(folder_with(original, tmp_path / "hf", "config.json", content), whole)


def test_the_untouched_folder_reads(original: Path, whole: dict[str, torch.Tensor]) -> None:
    assert read_all(original, whole)


def test_a_number_of_layers_that_would_fill_the_memory(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", num_hidden_layers=1)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps(config | {"num_hidden_layers": 10**12}))
    with pytest.raises(BadInput, match="no model has more than 10,000"):
        read_shape(folder)
