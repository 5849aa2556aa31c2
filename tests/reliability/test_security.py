"""S: hostile configurations, sockets, secrets."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from tests.reliability.running import DISPATCH, FAILPOINTS, command, ended, started
from tests.workshop import Workshop

Record = Callable[[str, object], None]


SECRETS = {
    "HF_TOKEN": "hf_plantedtoken",
    "AWS_SECRET_ACCESS_KEY": "plantedawssecret",
    "WANDB_API_KEY": "plantedwandbkey",
    "HTTPS_PROXY": "http://user:plantedpassword@127.0.0.1:9",
}
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost"}


@dataclass(frozen=True)
class Watched:
    """A run of two ranks and its report, made while secrets were in the environment."""

    folder: Path
    told: str
    """All that the commands printed."""
    called: set[str]
    """Addresses that processes were connected to, or asked for."""
    listening: set[str]
    """Addresses that they listened on."""


@pytest.fixture(scope="module")
def watched(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Trains, and runs the other commands, with every socket looked at."""
    folder = tmp_path_factory.mktemp("watched")
    log = folder / "sockets"
    environment = {**SECRETS, "SOCKETS": str(log), "PYTHONPATH": str(FAILPOINTS)}
    config = workshop.write_config(folder / "run", training={"tokens": "4 steps"}, checkpoint={"export_hf": {}})
    process = started([*DISPATCH, "train", config, "--nproc", "2"], environment=environment)
    called, listening = set(), set()
    while process.poll() is None:
        with suppress(psutil.Error):
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                for opened in one.net_connections("inet"):
                    if opened.status == psutil.CONN_LISTEN:
                        listening.add(opened.laddr[0])
                    elif opened.raddr:
                        called.add(opened.raddr[0])
        time.sleep(0.05)
    done = ended(process)
    told = done.out + done.err
    assert done.code == 0, told
    domain, step = workshop.prefix("domain"), folder / "run/checkpoints/step-00000004"
    for words in (
        ["prepare", f"{domain}.jsonl", "--tokenizer", workshop.hf, "--output", folder / "x", "--quiet"],
        ["select", domain, "--keep", "random", "--tokens", "500", "--output", folder / "s"],
        ["inspect", domain, "--verify"],
        ["plan", config],
        ["convert", "to-hf", step, folder / "hf"],
        ["convert", "verify", step, folder / "hf"],
        ["report", folder / "run"],
        ["doctor"],
    ):
        done = command(*words, environment=environment)
        assert done.code == 0, done.err
        told += done.out + done.err
    asked = {line.split(" ", 1)[1] for line in log.read_text().splitlines()} if log.exists() else set()
    return Watched(folder, told, called | asked, listening)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_S3_no_command_calls_anyone_else(watched: Watched, record_property: Record) -> None:
    """Ranks listen on the loopback; torch's store, by which they meet, listens everywhere (SECURITY.md)."""
    assert watched.called, "ranks did meet"
    own = {socket.gethostname(), socket.getfqdn(), "0.0.0.0", ""}
    assert watched.called - LOOPBACK - own == set()
    assert watched.listening <= LOOPBACK | {"::"}
    assert "127.0.0.1" in watched.listening
    record_property("commands", 9)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_S5_secrets_of_the_environment_are_in_no_file(watched: Watched, record_property: Record) -> None:
    files = [path for path in watched.folder.rglob("*") if path.is_file()]
    assert {"log.txt", "versions.json", "report.html", "records.jsonl"} <= {path.name for path in files}
    for secret in SECRETS.values():
        planted = secret.rpartition("@")[0].rpartition(":")[2] or secret
        assert planted not in watched.told
        assert [path for path in files if planted.encode() in path.read_bytes()] == []
    record_property("secrets", len(SECRETS))
    record_property("files searched", len(files))


def bomb(levels: str = "abcdefghi", width: int = 10, merge: bool = False) -> str:
    """Aliases of aliases: a few hundred bytes that stand for a billion values."""
    lines = ["a: &a {k: 1}" if merge else f"a: &a [{', '.join('x' * width)}]"]
    for before, name in pairwise(levels):
        inner = ", ".join([f"*{before}"] * width)
        lines.append(f"{name}: &{name} {{<<: [{inner}]}}" if merge else f"{name}: &{name} [{inner}]")
    return "\n".join(lines) + "\n"


HOSTILE = {
    "a tag that runs a program": ("a: !!python/object/apply:os.system ['touch {marker}']", "could not determine"),
    "a tag of a module": ("a: !!python/module:antigravity", "could not determine"),
    "a class to be made": ("run: {{_target_: os.system, folder: x}}", "run._target_: is not a setting"),
    "a bomb of aliases": (bomb(), "holds more than 100,000 values"),
    "a bomb of merges": (bomb(merge=True), "holds more than 100,000 values"),
    "an alias inside itself": ("a: &a [*a]", "stands inside of what it names"),
    "deep nesting": ("[" * 100_000 + "]" * 100_000, "nested deeper than 50 levels"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(2000)), "nested deeper than 50 levels"),
    "escapes for the terminal": ('"\\e[31mred\\u202e": 1', r"\x1b[31mred\u202e: is not a setting"),
    "a key given twice": ("run: {folder: a}\nrun: {folder: b}", "the key `run` is given twice"),
    "a huge number": ("a: " + "9" * 10_000, "Exceeds the limit"),
    "not UTF-8": (b"a: \xff", "cannot be read"),
    "another encoding of tags": ("%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system", "could not determine"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HOSTILE)
def test_S1_hostile_configurations(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Record
) -> None:
    content, said = HOSTILE[kind]
    marker, config = tmp_path / "marker", tmp_path / "run.yaml"
    if isinstance(content, str):
        content = content.replace("{marker}", str(marker)).replace("{{", "{").replace("}}", "}").encode()
    config.write_bytes(content)
    assert main(["plan", str(config)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert all(character.isprintable() or character in "\n\t" for character in error)
    assert not marker.exists()
    record_property("bad inputs", 1)


@pytest.mark.timeout(60)
def test_S1_what_is_no_file_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Record
) -> None:
    pipe, large = tmp_path / "pipe.yaml", tmp_path / "large.yaml"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(1 << 40)
    for path, said in ((pipe, "a pipe or a device"), (Path("/dev/zero"), "a pipe or a device"), (large, "bytes, more")):
        assert main(["plan", str(path)]) == 2
        assert said in capsys.readouterr().err
    record_property("bad inputs", 3)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.tokens=1e24", "is more than any run counts"),
        ("training.tokens=1000000000000000000 steps", "more than any run counts"),
        ("training.tokens=1e9999", "is not a duration"),
        ("training.tokens=9**9**9", "is not a duration"),
        ("data.sources.domain.weight=1e400", "should be a finite number"),
        ("run.seed=" + "9" * 5000, "Exceeds the limit"),
        ("run.folder=${oc.env:HOME}", None),
    ],
)
def test_S1_numbers_beyond_all_bounds(
    workshop: Workshop,
    tmp_path: Path,
    word: str,
    said: str | None,
    capsys: pytest.CaptureFixture[str],
    record_property: Record,
) -> None:
    code = main(["plan", str(workshop.write_config(tmp_path / "run")), word])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if said is None:  # nothing is looked up in the environment: it is a name
        assert code == 0 and not Path("${oc.env:HOME}").exists()
    else:
        assert code == 2 and said in error
    record_property("bad inputs", 1)


def test_S1_an_honest_configuration_with_aliases_is_read(workshop: Workshop, tmp_path: Path) -> None:
    """Many sources with settings in common."""
    config = workshop.config(tmp_path / "run")
    one = config["data"]["sources"]["domain"]
    config["data"]["sources"] |= {f"domain{number}": one for number in range(60)}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    assert "*id" in path.read_text()
    assert main(["plan", str(path)]) == 2  # the sources share documents: it was read to the end
