import bz2
import gzip
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.preparation.input_kinds import Input
from megatron_cpt.preparation.inputs import input_files
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare

LINE = b'{"text": "x"}\n'


def test_inputs_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "notes.md"):
        (tmp_path / name).write_text("x")
    names = [source.path.name for source in input_files([str(tmp_path / "*.txt"), str(tmp_path / "*.jsonl")])]
    assert names == ["c.txt", "a.jsonl", "b.jsonl"]
    assert [source.path.name for source in input_files([str(tmp_path)])] == ["a.jsonl", "b.jsonl", "c.txt"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "compression"),
    [
        ("a.jsonl", LINE, "json_lines", None),
        ("a.json", LINE, "json_lines", None),
        ("a.ndjson", LINE, "json_lines", None),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0), "json_lines", "gzip"),
        ("a.jsonl.zst", zstandard.compress(LINE), "json_lines", "Zstandard"),
        # A wrong name does no harm where the content tells.
        ("a.jsonl", zstandard.compress(LINE), "json_lines", "Zstandard"),
        ("a.jsonl.gz", LINE, "json_lines", None),
        ("part-00000", LINE, "json_lines", None),
        ("part-00000", gzip.compress(LINE, mtime=0), "json_lines", "gzip"),
        ("a.txt", b"x", "text", None),
        ("a.txt.gz", gzip.compress(b"x", mtime=0), "text", "gzip"),
        ("part-00000", b"PAR1....", "parquet", None),
    ],
)
def test_what_a_file_is_is_told_by_its_content(
    tmp_path: Path, name: str, content: bytes, kind: str, compression: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert input_files([str(path)]) == [Input(path, kind, compression)]  # type: ignore[arg-type]


def test_lines_of_a_text_file_are_documents_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_bytes(LINE)
    assert [source.kind for source in input_files([str(tmp_path)], document_per_line=True)] == [
        "text_lines",
        "json_lines",
    ]


def test_every_wrong_input_is_listed_at_once(tmp_path: Path) -> None:
    contents = {
        "a.jsonl": LINE,
        "b.pdf": b"x",
        "c.json": b'[{"text": "x"}]',
        "d.parquet": b"x",
        "e.jsonl.gz": gzip.compress(LINE, mtime=0)[2:],
        "f.jsonl.zst": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        input_files([str(tmp_path / name) for name in ("missing", *contents, "a.jsonl")])
    assert [fault.rule for fault in caught.value.faults] == [
        "is not there, or holds no file.",
        "is not a kind of file that is read.",
        "is one JSON array, not JSON lines.",
        "is not a parquet file.",
        "is not a whole compressed file.",
        "is not a whole compressed file.",
        "is named twice.",
    ]


def compressed(content: bytes, ending: str) -> bytes:
    makers = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return makers[ending](content) if ending else content


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_every_compression_is_read(tmp_path: Path, tokenizer_folder: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    # Two members, one behind the other, as `cat` makes them.
    path.write_bytes(compressed(LINE, ending) + compressed(b'{"text": "y"}\n', ending))
    assert prepare([str(path)], tokenizer_folder, tmp_path / "out").training.documents == 2
    if ending:
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(IntegrityFault, match=f"a.jsonl{ending}: is not a whole"):
            prepare([str(path)], tokenizer_folder, tmp_path / "other")


def test_zstandard_with_a_far_window_and_frames_to_skip(tmp_path: Path, tokenizer_folder: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = writer.compress(LINE) + writer.flush()
    with pytest.raises(zstandard.ZstdError):
        zstandard.ZstdDecompressor().decompressobj().decompress(content)
    (tmp_path / "far.jsonl.zst").write_bytes(content)
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<II", 4, 77)
    (tmp_path / "pzstd.jsonl.zst").write_bytes(skipped + zstandard.compress(LINE) + skipped)
    settings = PrepareSettings(keep_duplicates=True)
    assert prepare([str(tmp_path / "*.zst")], tokenizer_folder, tmp_path / "out", settings).training.documents == 2


def test_a_folder_gives_every_file_of_a_corpus_and_names_the_others(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "corpus"
    contents = {
        "a.jsonl": b"",
        "nested/deeper/b.jsonlines": b"",
        "nested/c.JSONL.GZ": b".gz",
        "d.json.bz2": b".bz2",
        "e.ndjson.xz": b".xz",
        "f.jsonl.zstd": b".zst",
        "part-00000": b"",
        "part-00001": b".zst",
    }
    for number, (name, ending) in enumerate(contents.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compressed(b'{"text": "document %d"}\n' % number, ending.decode()))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "g.jsonl").write_text('{"text": "behind a link"}\n')
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "nested" / "loop").symlink_to(folder)
    not_read = {"LICENSE.txt": "free", "README.md": '{"text": "example"}', "state.json": '{\n "a": 1}', "t.py": "x = 1"}
    for name, content in not_read.items():
        (folder / name).write_text(content)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "old.jsonl").write_text('{"text": "hidden"}\n')
    with pytest.warns(
        UserWarning, match=r"4 files of the folders are not of a corpus and are not read: .*LICENSE\.txt"
    ):
        manifest = prepare([str(folder)], tokenizer_folder, tmp_path / "out").training
    assert manifest.documents == len(contents) + 1
    assert manifest.not_read == sorted(str(folder / name) for name in not_read)
    with pytest.warns(UserWarning, match="not of a corpus"):
        assert len(input_files([str(tmp_path / "corp*")])) == len(contents) + 1


def test_a_broken_link_and_a_folder_without_a_corpus_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    (folder / "data.npy").write_bytes(b"\x93NUMPY")
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "pretty").mkdir()
    (tmp_path / "pretty" / "a.json").write_text('{\n  "text": "x"\n}\n')
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(BadInput) as caught:
        input_files([str(tmp_path / name) for name in ("arrays", "pretty", "links")])
    said = [str(fault) for fault in caught.value.faults]
    assert "such as data.npy" in said[0]
    assert "a.json: has JSON objects over several lines." in said[1] and "jq -c" in said[1]
    assert "a.jsonl: is a link to nothing." in said[2]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ('{"text": "x"}\n'.encode("utf-16"), "UTF-16"),
        ('{"text": "x"}\n'.encode("utf-16-le"), "UTF-16"),
        (b'{"text": "x"}\r{"text": "y"}\r', "carriage return"),
        (b'{\n  "text": "x"\n}\n', "over several lines"),
        (b'\xef\xbb\xbf [\n{"text": "x"}]', "one JSON array"),
    ],
)
def test_what_is_common_to_all_lines_is_told_at_once(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match=rule):
        input_files([str(tmp_path / "a.jsonl")])


def slowly(content: list[bytes], words: list[str], pause: float = 0.2) -> "subprocess.CompletedProcess[str]":
    """`prepare -` with standard input that comes in parts, with pauses."""
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "prepare", "-", "--quiet", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        for part in content:
            process.stdin.write(part)
            process.stdin.flush()
            time.sleep(pause)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out.decode(), err.decode())


LINES = [b'{"text": "document %d"}\n' % number for number in range(200)]


@pytest.mark.parametrize(
    ("parts", "documents", "rejected"),
    [
        ([b"\xef\xbb\xbf" + b"".join(LINES)], 200, 0),
        ([b"\n", b"\n", b"".join(LINES)], 200, 0),
        ([b"Loading the dataset\n", b"".join(LINES)], 200, 1),
        ([gzip.compress(b"".join(LINES), mtime=0)[:1], gzip.compress(b"".join(LINES), mtime=0)[1:]], 200, 0),
        ([zstandard.compress(b"".join(LINES))[:9], zstandard.compress(b"".join(LINES))[9:]], 200, 0),
        ([b"A text\n", b"of two lines\n"], 1, 0),
    ],
)
def test_standard_input_is_read_until_it_is_known(
    tmp_path: Path, tokenizer_folder: Path, parts: list[bytes], documents: int, rejected: int
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")]
    done = slowly(parts, words)
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.documents, manifest.rejected) == (documents, rejected)


def test_standard_input_that_is_no_json_lines_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")]
    done = slowly([b"[", b'{"text": "x"}, {"text": "y"}]'], words)
    assert done.returncode == 2 and "-: is one JSON array, not JSON lines." in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,text\n1,one\n2,two\n", []),
        (b"id\ttext\n1\tone, two\n", []),
        (b'id,body\n1,"one, two"\n2,three\n', []),
        (gzip.compress(b"text\none\ntwo\n", mtime=0), []),
        (b"id,body\n1\n", ["--text-key", "body"]),
    ],
)
def test_a_table_on_standard_input_is_refused(
    tmp_path: Path, tokenizer_folder: Path, content: bytes, words: list[str]
) -> None:
    done = slowly([content], [*words, "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")])
    assert done.returncode == 2 and "-: is a table (CSV)" in done.stderr and ".csv" in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("content", "words", "documents"),
    [
        (b"Roses are red, violets\nare blue, sugar\n", [], 1),
        (b"In the end, text, and more\nof it\n", [], 1),
        (b"text", [], 1),
        (b"cat,dog\nbird,fish\n", ["--document-per-line"], 2),
    ],
)
def test_a_text_with_commas_on_standard_input_is_no_table(
    tmp_path: Path, tokenizer_folder: Path, content: bytes, words: list[str], documents: int
) -> None:
    done = slowly([content], [*words, "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "out").documents == documents


SUPERUSER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
"""Drops what lets a superuser read whatever its mode says."""


def by_modes(words: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """`prepare` as a user whom the modes of files bind; skips where there is none to be had."""
    before = [*SUPERUSER] if os.geteuid() == 0 else []
    if before and shutil.which(before[0]) is None:
        pytest.skip("setpriv is not installed, and modes do not bind the superuser")
    closed = folder / "closed"
    closed.mkdir(mode=0)
    listed = subprocess.run([*before, "ls", str(closed)], capture_output=True, text=True, check=False)
    closed.rmdir()
    if "Permission denied" not in listed.stderr:
        pytest.skip(f"modes do not bind this user: {listed.stderr}")
    command = [*before, sys.executable, "-m", "megatron_cpt.commands.dispatch", "prepare", *words, "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("named", "mode"),
    [
        ("mixd", 0o000),
        ("mixd", 0o311),
        ("mixd/*", 0o000),
        ("mixd/*/*.jsonl", 0o000),
        ("mixd/*/*.jsonl", 0o311),
        ("mixd/*/a.jsonl", 0o000),
        ("mixd/**", 0o311),
        ("mixd/**/*.jsonl", 0o000),
        ("mixd/[n]o/*.jsonl", 0o000),
        ("mixd/*/*.jsonl", 0o444),
    ],
)
def test_a_folder_that_may_not_be_read_is_refused_by_name(
    tmp_path: Path, tokenizer_folder: Path, named: str, mode: int
) -> None:
    for name in ("ok", "no"):
        (tmp_path / "mixd" / name).mkdir(parents=True)
        (tmp_path / "mixd" / name / "a.jsonl").write_text(json.dumps({"text": name}) + "\n")
    words = [str(tmp_path / named), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")]
    closed = tmp_path / "mixd" / "no"
    closed.chmod(mode)
    try:
        done = by_modes(words, tmp_path)
    finally:
        closed.chmod(0o755)
    assert done.returncode == 2, done.stdout
    assert f"{closed}: is a folder that cannot be read: Permission denied. Allow reading it" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_only_passes_and_lost_and_found_are_no_reason_to_refuse(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    """A folder is listed only where a wildcard stands in it; `lost+found` is no user's."""
    folder = tmp_path / "passes" / "all"
    (folder / "lost+found").mkdir(parents=True)
    (folder / "some").mkdir()
    (folder / "some" / "a.jsonl").write_bytes(LINE)
    words = ["--tokenizer", str(tokenizer_folder), "--output"]
    (folder / "lost+found").chmod(0)
    folder.parent.chmod(0o311)
    try:
        for number, named in enumerate((folder, folder / "*" / "*.jsonl")):
            done = by_modes([str(named), *words, str(tmp_path / f"out-{number}")], tmp_path)
            assert done.returncode == 0, done.stderr
    finally:
        folder.parent.chmod(0o755)


@pytest.mark.parametrize(("closed", "named"), [("a.jsonl", "a.jsonl"), ("a.jsonl", ""), (".", "*.jsonl")])
def test_a_file_that_may_not_be_read_is_refused_by_name(
    tmp_path: Path, tokenizer_folder: Path, closed: str, named: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINE)
    (folder / closed).chmod(0)
    words = [str(folder / named), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")]
    try:
        done = by_modes(words, tmp_path)
    finally:
        (folder if closed == "." else folder / closed).chmod(0o755)
    assert done.returncode == 2
    assert (
        f"{folder / (named or closed)}: cannot be read: Permission denied. Allow reading it, or leave it out."
        in done.stderr
    )
