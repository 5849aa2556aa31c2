"""What mkdocs does to a page of docs/ beyond its own: links to files outside of docs/ lead to the repository.

Its address is `REPOSITORY_URL` in the environment, such as https://HOST/OWNER/megatron_cpt. Without one the text of
such a link stays, and the link goes.
"""

import os
import re
from typing import Any

_OUTSIDE = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    return _OUTSIDE.sub(lambda link: _link(link[1], link[2], repository), markdown)


def _link(text: str, path: str, repository: str) -> str:
    return f"[{text}]({repository}/blob/main/{path})" if repository else text
