"""The docs say what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from megatron_cpt.commands.dispatch import COMMANDS
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.parallel.upstream_fixes import FIXES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "megatron_cpt"


def packages() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_configuration_page_is_written_from_the_schema() -> None:
    script = ROOT / "tools/configuration_page.py"
    page = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/configuration.md").read_text() == page, (
        "run tools/configuration_page.py > docs/configuration.md"
    )


def test_the_page_of_the_python_interface_is_written_from_its_docstrings() -> None:
    page = subprocess.run(
        [sys.executable, ROOT / "tools/api_page.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/api.md").read_text() == page, "run tools/api_page.py > docs/api.md"


def test_the_page_of_megatron_core_is_written_from_the_table() -> None:
    script = ROOT / "tools/megatron_core_page.py"
    page = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/megatron-core.md").read_text() == page, (
        "run tools/megatron_core_page.py > docs/megatron-core.md"
    )


def test_the_page_on_coming_over_is_written_from_the_table_of_arguments() -> None:
    script = ROOT / "tools/migrating_page.py"
    page = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/migrating.md").read_text() == page, "run tools/migrating_page.py > docs/migrating.md"


def test_the_page_of_the_commands_is_written_from_their_parsers() -> None:
    script = ROOT / "tools/commands_page.py"
    page = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/commands.md").read_text() == page, "run tools/commands_page.py > docs/commands.md"


def test_the_site_has_every_page() -> None:
    """`make site` itself needs mkdocs, and refuses the same."""
    parts = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = [page for part in parts for pages in part.values() for page in pages]
    recipes = [ROOT / "examples/README.md", *(ROOT / "examples/recipes").glob("*/README.md")]
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(named) == sorted([*pages, *(page.relative_to(ROOT).as_posix() for page in recipes)])


def test_links_to_a_heading_find_it() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link, anchor in re.findall(r"\]\(([^):]*)#([^)]+)\)", page.read_text()):
            target = page.parent / link if link else page
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {link}#{anchor}"


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_fix_of_megatron_core_is_shown_by_a_test_or_a_reason() -> None:
    fixes = [fix for part in FIXES.values() for fix in part]
    assert len({fix.number for fix in fixes}) == len(fixes)
    for fix in fixes:
        tests = re.findall(r"(tests/[\w/]+\.py)::(\w+)", fix.shown_by)
        assert tests or fix.here in ("not hit", "open"), fix.number
        for file, test in tests:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{fix.number}: {file}::{test}"


def test_the_architecture_names_every_package_and_file_and_no_other() -> None:
    table = (ROOT / "docs/architecture.md").read_text().split("## How a run goes")[0]
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.*) \| [^|]* \|$", table, re.MULTILINE))
    assert set(rows) == packages()
    for package, files in rows.items():
        there = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__", "__main__"}
        named = set(re.findall(r"`(\w+)`", files))
        if package == "commands":  # one file a command
            named = named | {name.replace("-", "_") for name in COMMANDS}
        assert named == there, package


def test_the_tree_of_the_architecture_names_what_is_there() -> None:
    tree = (ROOT / "docs/architecture.md").read_text().split("```text")[1].split("```")[0]
    assert set(re.findall(r"^ +(\w+)/", tree, re.MULTILINE)) == packages()
    for name in re.findall(r"^(\S+?)/? ", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_no_page_names_a_file_that_is_not_there() -> None:
    """Paths with a folder, and links; names alone may be those of other systems."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for path in re.findall(r"`(\w+/[\w/]+\.(?:py|md|yaml|sh))`", text):
            if path.split("/")[0] in {*packages(), "benchmarks", "docs", "examples", "tests", "tools", "megatron_cpt"}:
                assert (ROOT / path).exists() or (PACKAGE / path).exists(), f"{page.name}: {path}"


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
