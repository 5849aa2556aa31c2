"""What mkdocs does beyond its own: the recipes of examples/ are pages too, and links to other files of the repository
lead to it.

Its address is `REPOSITORY_URL` in the environment, such as https://HOST/OWNER/megatron_cpt. Without one the text of
such a link stays, and the link goes.
"""

import os
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files of docs/: adds the READMEs of examples/ and of its recipes."""
    for path in [ROOT / "examples/README.md", *sorted((ROOT / "examples/recipes").glob("*/README.md"))]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    source = page.file.src_uri
    place = source if source.startswith("examples/") else f"docs/{source}"
    repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    return _LINK.sub(lambda link: _link(link, place, source, files, repository), markdown)


def _link(link: re.Match[str], place: str, source: str, files: Files, repository: str) -> str:
    """A link of the page at `place` in the repository, `source` on the site, as the site has it."""
    text, path, anchor = link[1], normpath(join(dirname(place), link[2])), link[3] or ""
    for there in (path.removeprefix("docs/"), f"{path}/README.md"):
        if files.get_file_from_path(there) is not None:
            return f"[{text}]({relpath(there, dirname(source) or '.')}{anchor})"
    if not (ROOT / path).exists():
        return link[0]
    return f"[{text}]({repository}/blob/main/{path}{anchor})" if repository else text
