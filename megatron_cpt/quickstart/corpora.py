"""Two corpora that every machine has: the prose and the code of Python's own standard library.

1. `general`: English. Docstrings (read from the source, nothing is imported), the language reference
   that `help()` prints, licence, news and read-me texts. A paragraph is taken once, however many
   places repeat it.
2. `domain`: Python. The same modules with docstrings and comments removed, still valid Python, cut
   between statements.

Test packages are left out of both. Each document is one JSON line, `{"text", "meta": {"file", "name"}}`,
in the order of file names, so that one Python version always gives the same bytes.
"""

import ast
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from inspect import cleandoc
from itertools import chain
from pathlib import Path
from typing import TypeVar

import orjson

from megatron_cpt.runs.folder import durable_file

LONGEST_PROSE = 4000
"""Characters after which prose is cut at the next paragraph."""
_LONGEST_CODE = 120
"""Lines, as the author wrote them, after which code is cut at the next statement or method."""
SHORTEST = 200
"""Characters below which a document is dropped: it would be mostly its own end."""

_TESTS = {"test", "tests", "idle_test"}
_INSTALLED = {"site-packages", "dist-packages"}
# Character tables and recorded settings: literals that a program wrote.
_TABLES = {"encodings", "pydoc_data"}
_GENERATED = re.compile(r"_sysconfigdata.*\.py|Grammar.*\.txt|entities\.py")
_PROSE_FILES = ("**/*.txt", "**/*.rst", "**/README*", "**/help.html")

Piece = TypeVar("Piece")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    file: str
    """Where it comes from, relative to the standard library."""
    name: str
    """What it is there: a module, a topic, a part of either."""
    text: str


def standard_library() -> Path:
    """The folder of the running Python's own standard library, also from inside a virtual environment."""
    return Path(sysconfig.get_path("stdlib"))


def write_corpora(library: Path, folder: Path) -> dict[str, Path]:
    """Writes general.jsonl and domain.jsonl into a folder, each whole or absent; returns both by name."""
    corpora = {"general": general_documents(library), "domain": domain_documents(library)}
    paths = {name: folder / f"{name}.jsonl" for name in corpora}
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in corpora.items():
        with durable_file(paths[name]) as file:
            for document in documents:
                meta = {"file": document.file, "name": document.name}
                file.write(orjson.dumps({"text": document.text, "meta": meta}, option=orjson.OPT_APPEND_NEWLINE))
    return paths


def general_documents(library: Path) -> Iterator[Document]:
    """The English of the library: language reference, text files, docstrings."""
    texts = chain(_reference_topics(library), _text_files(library), docstrings(library))
    seen: set[str] = set()
    for text in texts:
        fresh = [paragraph for paragraph in dict.fromkeys(_paragraphs(text.text)) if paragraph not in seen]
        seen.update(fresh)
        yield from parts(text, ("\n\n".join(run) for run in packed(fresh, len, LONGEST_PROSE)))


def domain_documents(library: Path) -> Iterator[Document]:
    """The Python of the library, module by module, without a word of English around it."""
    seen: set[str] = set()
    for module, tree in modules(library):
        for document in parts(module, sources(without_docstrings(tree))):
            if document.text not in seen:
                seen.add(document.text)
                yield document


def parts(whole: Document, texts: Iterable[str]) -> Iterator[Document]:
    """Numbered documents of the texts that one source was cut into, without those too short to keep."""
    kept = (text for text in texts if len(text) >= SHORTEST)
    for number, text in enumerate(kept, start=1):
        yield replace(whole, name=f"{whole.name} {number}", text=text)


def packed(pieces: Iterable[Piece], length: Callable[[Piece], int], longest: int) -> Iterator[list[Piece]]:
    """Runs of consecutive pieces, cut before the piece that would make a run too long."""
    run: list[Piece] = []
    total = 0
    for piece in pieces:
        if run and total + length(piece) > longest:
            yield run
            run, total = [], 0
        run.append(piece)
        total += length(piece)
    if run:
        yield run


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, in order."""
    return [paragraph.strip("\n") for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


# --- English ---------------------------------------------------------------------------------------


def _reference_topics(library: Path) -> Iterator[Document]:
    """The language reference as `help()` has it: one document a topic."""
    path = library / "pydoc_data" / "topics.py"
    if not path.exists():
        return
    [assignment] = [node for node in parse(path).body if isinstance(node, ast.Assign)]
    for topic, text in sorted(ast.literal_eval(assignment.value).items()):
        yield Document(_file_name(path, library), topic, text)


def _text_files(library: Path) -> Iterator[Document]:
    """Licence, news, help and read-me texts."""
    for path in sorted({path for pattern in _PROSE_FILES for path in library.glob(pattern)}):
        if path.is_file() and belongs(path, library):
            text = path.read_text(encoding="utf-8", errors="replace")
            prose = html_text(text) if path.suffix == ".html" else text
            yield Document(_file_name(path, library), path.stem, prose)


def docstrings(library: Path) -> Iterator[Document]:
    """All docstrings of a module, each under the name of what it documents."""
    for module, tree in modules(library):
        text = "\n\n".join(f"{name}:\n\n{cleandoc(doc)}" for name, doc in documented(tree, module.name))
        yield replace(module, text=text)


def documented(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    """Dotted names and docstrings of a module, class or function and of what it holds, in source order."""
    doc = ast.get_docstring(node, clean=False)
    if doc:
        yield name, doc
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from documented(child, f"{name}.{child.name}")


class _Text(HTMLParser):
    """Collects the readable text of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("p", "dt", "dd", "li", "h1", "h2", "h3", "pre"):
            self.words.append("\n\n")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def html_text(page: str) -> str:
    """The readable text of an HTML page, a blank line before each block."""
    reader = _Text()
    reader.feed(page)
    return "".join(reader.words)


# --- Python ----------------------------------------------------------------------------------------


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The module with no docstring left; a body that was nothing else becomes `pass`. Changes `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            node.body = [child for child in node.body if not _is_string(child)]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.copy_location(ast.Pass(), node)]
    return tree


def _is_string(statement: ast.stmt) -> bool:
    """True for a string that stands alone: a docstring, or one in all but name."""
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def sources(tree: ast.Module) -> Iterator[str]:
    """Source of consecutive statements, each valid Python. From the syntax tree, so comments are gone."""
    statements = chain.from_iterable(_cut_class(node) for node in tree.body)
    for run in packed(statements, lines, _LONGEST_CODE):
        yield ast.unparse(ast.Module(run, []))


def _cut_class(node: ast.stmt) -> Iterator[ast.stmt]:
    """The statement itself; of a class that is too long, several classes with some of its methods each."""
    if isinstance(node, ast.ClassDef) and lines(node) > _LONGEST_CODE:
        for body in packed(node.body, lines, _LONGEST_CODE):
            part = ast.ClassDef(node.name, node.bases, node.keywords, body, node.decorator_list)
            part.lineno, part.end_lineno = body[0].lineno, body[-1].end_lineno
            yield part
    else:
        yield node


def lines(node: ast.stmt) -> int:
    """Lines that a statement took in the file it was read from."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


# --- Files -----------------------------------------------------------------------------------------


def modules(library: Path) -> Iterator[tuple[Document, ast.Module]]:
    """Every module that a person wrote: its name and source, and its syntax tree."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if belongs(path, library) and not _TABLES & set(relative.parts):
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield Document(relative.as_posix(), name, ""), parse(path)


def belongs(path: Path, library: Path) -> bool:
    """True unless the file is a test, an installed package or generated."""
    folders = set(path.relative_to(library).parts[:-1])
    return not folders & (_TESTS | _INSTALLED) and not _GENERATED.fullmatch(path.name)


def _file_name(path: Path, library: Path) -> str:
    """The path inside the library, with forward slashes."""
    return path.relative_to(library).as_posix()


def parse(path: Path) -> ast.Module:
    """The syntax tree of a source file, in whatever encoding it declares."""
    return ast.parse(path.read_bytes(), filename=path.name)
