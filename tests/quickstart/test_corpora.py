"""The quickstart's corpora, on a small library written for the test and on the running Python's own."""

import ast
import io
import itertools
import json
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.quickstart.corpora import (
    LONGEST_PROSE,
    SHORTEST,
    domain_documents,
    general_documents,
    html_text,
    packed,
    standard_library,
    without_docstrings,
    write_corpora,
)

PARAGRAPH = "Words that a person wrote, and enough of them to keep. " * 5

MODULE = f'''"""The module's own words.

{PARAGRAPH}
"""
# A comment that must not be learnt.
import os

class Kept:
    """What the class is.

    {"A class that does as little as can be done in two methods. " * 5}
    """

    def empty(self):
        """Nothing but this."""

    async def full(self, folder):
        """Says what it does."""
        names = os.listdir(folder)  # in any order
        return [name for name in names if name.endswith("#") or "two  spaces" in name]

def main(argument_one, argument_two, argument_three):
    return Kept().full(argument_one), argument_two, argument_three
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A standard library with a module, a package, tests, an installed package and text files."""
    files = {
        "module.py": MODULE,
        "package/__init__.py": MODULE.replace("Kept", "Other").replace("module's", "package's"),
        "package/tests/test_module.py": MODULE.replace("Kept", "Tested"),
        "site-packages/installed.py": MODULE.replace("Kept", "Installed"),
        "encodings/table.py": MODULE.replace("Kept", "Table"),
        "LICENSE.txt": "LICENCE\n\n" + ("You may read this. " * 20 + "\n\n") * 2,
        "test/notes.txt": "A note of a test. " * 30,
        "pydoc_data/topics.py": f"topics = {{'with': {PARAGRAPH!r}, 'assert': {'Assertions. ' * 30!r}}}\n",
    }
    for name, content in files.items():
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "library"


def test_the_language_reference_comes_first_then_texts_then_docstrings(library: Path) -> None:
    documents = list(general_documents(library))
    assert [(document.file, document.name) for document in documents] == [
        ("pydoc_data/topics.py", "assert 1"),
        ("pydoc_data/topics.py", "with 1"),
        ("LICENSE.txt", "LICENSE 1"),
        # Its long paragraph is the topic's; of the package that repeats it, too little is left to keep.
        ("module.py", "module 1"),
    ]


def test_docstrings_stand_under_their_names(library: Path) -> None:
    text = list(general_documents(library))[-1].text
    assert text.startswith("module:\n\nThe module's own words.\n\nmodule.Kept:\n\nWhat the class is.\n\nA class")
    assert "module.Kept.full:\n\nSays what it does." in text


def test_a_paragraph_is_taken_once(library: Path) -> None:
    texts = "\n".join(document.text for document in general_documents(library))
    assert texts.count(PARAGRAPH.strip()) == 1
    assert texts.count("You may read this.") == 20


def test_code_has_no_docstring_and_no_comment(library: Path) -> None:
    documents = list(domain_documents(library))
    assert [document.file for document in documents] == ["module.py", "package/__init__.py"]
    assert documents[0].text.startswith("import os\n\nclass Kept:\n\n    def empty(self):\n        pass\n")
    assert "name.endswith('#') or 'two  spaces' in name" in documents[0].text
    assert "must not be learnt" not in documents[0].text
    assert "Says what it does" not in documents[0].text


def test_a_module_that_is_there_twice_is_taken_once(library: Path) -> None:
    (library / "twin.py").write_text(MODULE)
    assert [document.file for document in domain_documents(library)] == ["module.py", "package/__init__.py"]


def test_a_long_class_is_cut_between_methods_and_stays_valid(tmp_path: Path) -> None:
    methods = [f"    def method_{i}(self):\n" + "        total = 'a\\nb' + str(self)\n" * 50 for i in range(9)]
    (tmp_path / "long.py").write_text("@decorated\nclass Long(Base, key=1):\n" + "\n".join(methods))
    documents = list(domain_documents(tmp_path))
    assert [document.name for document in documents] == [f"long {number}" for number in range(1, 6)]
    trees = [ast.parse(document.text) for document in documents]
    assert all(document.text.startswith("@decorated\nclass Long(Base, key=1):") for document in documents)
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert names == [f"method_{i}" for i in range(9)]


def test_strings_that_stand_alone_go_also_after_the_first() -> None:
    tree = ast.parse('class C:\n    "one"\n    "two"\n    x = 1\n    "of x"\n')
    assert ast.unparse(without_docstrings(tree)) == "class C:\n    x = 1"


def test_a_page_becomes_its_text() -> None:
    page = "<html><body><h1>Title</h1><p>First &amp; <b>second</b>.</p><p>Third.</p></body></html>"
    assert html_text(page) == "\n\nTitle\n\nFirst & second.\n\nThird."


@given(st.lists(st.text(max_size=30)), st.integers(1, 60))
def test_packing_keeps_all_pieces_in_order_and_cuts_only_where_it_must(pieces: list[str], longest: int) -> None:
    runs = list(packed(pieces, len, longest))
    assert [piece for run in runs for piece in run] == pieces
    assert all(len(run) == 1 or len("".join(run)) <= longest for run in runs)
    assert all(len("".join(a)) + len(b[0]) > longest for a, b in itertools.pairwise(runs))


def test_the_same_library_gives_the_same_bytes(library: Path, tmp_path: Path) -> None:
    first = write_corpora(library, tmp_path / "first")
    second = write_corpora(library, tmp_path / "second")
    assert sorted(first) == ["domain", "general"]
    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes()
    line = json.loads(first["domain"].read_bytes().splitlines()[0])
    assert line["meta"] == {"file": "module.py", "name": "module 1"}
    assert line["text"] == next(domain_documents(library)).text


@pytest.mark.slow
def test_this_python_gives_enough_of_both() -> None:
    library = standard_library()
    general = list(general_documents(library))
    assert sum(len(document.text) for document in general) > 1_500_000
    assert all(len(document.text) >= SHORTEST for document in general)
    assert sum(len(document.text) <= 2 * LONGEST_PROSE for document in general) > 0.99 * len(general)
    assert {"LICENSE 1"} <= {document.name for document in general} or not (library / "LICENSE.txt").exists()

    domain = list(domain_documents(library))
    assert sum(len(document.text) for document in domain) > 4_000_000
    assert len({document.text for document in domain}) == len(domain)
    for document in domain[::25]:
        ast.parse(document.text)
        kinds = {token.type for token in tokenize.generate_tokens(io.StringIO(document.text).readline)}
        assert tokenize.COMMENT not in kinds
