"""The docs say what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import config_from_dict

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "megatron_cpt"


def rooms() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_configuration_page_is_written_from_the_schema() -> None:
    script = ROOT / "tools/configuration_page.py"
    page = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/configuration.md").read_text() == page, (
        "run tools/configuration_page.py > docs/configuration.md"
    )


def test_the_architecture_names_every_room_and_no_other() -> None:
    table = (ROOT / "docs/architecture.md").read_text().split("## How a run goes")[0]
    assert set(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)) == rooms()


def test_the_readme_tree_names_what_is_there() -> None:
    tree = (ROOT / "README.md").read_text().split("```text")[1].split("```")[0]
    named = set(re.findall(r"^ +(\w+)/", tree, re.MULTILINE))
    assert named == rooms()
    for name in re.findall(r"^(\S+?)/? ", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_readme_config_is_a_config() -> None:
    text = (ROOT / "README.md").read_text().split("```yaml")[1].split("```")[0]
    config = config_from_dict(yaml.safe_load(text))
    assert config_faults(config, world_size=8) == []


def test_every_pin_has_its_reason() -> None:
    reasons = (ROOT / "docs/dependencies.md").read_text()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert name in reasons
            assert version in reasons or "For development" in reasons.split(name)[0], f"{name} {version}"


def test_no_unpickling_no_execution_of_what_is_read() -> None:
    forbidden = (
        r"pickle\.loads?\(|allow_pickle=True|weights_only=False|yaml\.(unsafe_)?load\("
        r"|\beval\([^)]|\bexec\(|shell=True|trust_remote_code=True"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
        for line in path.read_text().splitlines()
        if re.search(forbidden, line)
    ]
    assert found == []
