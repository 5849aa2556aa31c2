from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, NumericsFault
from megatron_cpt.runs.folder import ExitCode, Status, exit_code_of, read_status, write_status


def test_exit_codes_are_an_api() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 75]
    assert exit_code_of(BadInput(Fault("a", "b.", "c."))) == 2
    assert exit_code_of(IntegrityFault("torn")) == 3
    assert exit_code_of(NumericsFault("nan")) == 4
    assert exit_code_of(KeyError("ours")) == 1


def test_a_status_is_read_as_written(tmp_path: Path) -> None:
    status = Status(state="failed", exit_code=4, message="loss is nan", step=7, tokens=700)
    write_status(tmp_path / "status.json", status)
    assert read_status(tmp_path / "status.json") == status


def test_what_is_no_status_reads_as_none(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    for content in (b"", b"{", b"[]", b'{"state":"done","colour":1}', b"3"):
        path.write_bytes(content)
        assert read_status(path) is None
