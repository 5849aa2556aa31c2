"""What a folder of weights may not be; every fault is one clear error."""

from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE, open_hf_tensors
from megatron_cpt.config.errors import BadInput, IntegrityFault
from tests.checkpoint.hf_models import all_tensors, write_llama


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several files, not to be changed."""
    return write_llama(tmp_path_factory.mktemp("sharded") / "hf", shards="50KB")


def copy_of(folder: Path, target: Path) -> Path:
    """A copy that may be changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def rewrite_index(folder: Path, **changes: str | None) -> None:
    """Changes entries of a weight_map; None removes one."""
    index = orjson.loads((folder / INDEX).read_bytes())
    places = index["weight_map"] | changes
    index["weight_map"] = {name: file for name, file in places.items() if file is not None}
    (folder / INDEX).write_bytes(orjson.dumps(index))


def test_slices_are_read_from_several_files(sharded: Path) -> None:
    tensors = all_tensors(sharded)
    with open_hf_tensors(sharded) as opened:
        assert opened.names == set(tensors)
        name = "model.layers.3.mlp.down_proj.weight"
        assert opened.size(name) == (32, 44)
        assert opened.dtype(name) == "F32"
        assert (opened.read(name, 0, 3, 4) == tensors[name][3:7]).all()
        assert (opened.read(name, 1, 40, 4) == tensors[name][:, 40:]).all()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(BadInput, match="save_pretrained"), open_hf_tensors(tmp_path):
        pass


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no weights"), open_hf_tensors(tmp_path):
        pass


@pytest.mark.parametrize(
    "file",
    ["../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "absent.safetensors", "", ".."],
)
def test_an_index_that_leaves_the_folder_is_refused(sharded: Path, tmp_path: Path, file: str) -> None:
    folder = copy_of(sharded, tmp_path / "hf")
    (tmp_path / "elsewhere.safetensors").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "sub" / SINGLE).write_bytes(b"")
    rewrite_index(folder, **{"model.norm.weight": file})
    with pytest.raises(BadInput, match=r"model\.norm\.weight in"), open_hf_tensors(folder):
        pass


def test_an_index_that_forgets_or_misplaces_a_tensor_is_refused(sharded: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded, tmp_path / "forgets")
    rewrite_index(folder, **{"model.norm.weight": None})
    with pytest.raises(BadInput, match=r"model\.norm\.weight: index and files disagree"), open_hf_tensors(folder):
        pass
    folder = copy_of(sharded, tmp_path / "misplaces")
    other = orjson.loads((folder / INDEX).read_bytes())["weight_map"]["model.embed_tokens.weight"]
    rewrite_index(folder, **{"lm_head.weight": other} if other.startswith("model-00001") else {"x": other})
    with pytest.raises(BadInput, match="index and files disagree"), open_hf_tensors(folder):
        pass


@pytest.mark.parametrize("weight_map", ["", "{", "[]", "{}", "3", '{"a": 1}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, weight_map: str) -> None:
    (tmp_path / INDEX).write_text(f'{{"weight_map": {weight_map}}}')
    with pytest.raises(IntegrityFault, match="index"), open_hf_tensors(tmp_path):
        pass


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    whole = (folder / SINGLE).read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (folder / SINGLE).write_bytes(whole[:length])
        with pytest.raises(IntegrityFault, match="not a whole safetensors file"), open_hf_tensors(folder):
            pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(place=st.integers(0, 600), byte=st.integers(0, 255))
def test_a_changed_header_is_refused_or_harmless(tmp_path: Path, place: int, byte: int) -> None:
    folder = tmp_path / "hf"
    if not folder.exists():
        write_llama(folder)
        (folder / "whole").write_bytes((folder / SINGLE).read_bytes())
    content = bytearray((folder / "whole").read_bytes())
    content[place] = byte
    (folder / SINGLE).write_bytes(content)
    try:
        with open_hf_tensors(folder) as opened:
            for name in opened.names:
                opened.size(name)
    except (BadInput, IntegrityFault) as error:
        assert str(folder) in str(error)
