"""S: hostile configurations, sockets, secrets."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from tests.workshop import Workshop

Record = Callable[[str, object], None]


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
