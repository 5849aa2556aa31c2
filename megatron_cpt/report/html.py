"""A page around its sections: one HTML file with its style sheet, no script and nothing to load."""

from collections.abc import Sequence
from html import escape

from megatron_cpt.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy: the page's own style sheet and no more."""


def html_page(title: str, sections: Sequence[str], refresh_seconds: int | None = None) -> str:
    """The whole page; `sections` are HTML, the title is text. A browser loads it again every `refresh_seconds`."""
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{refresh}"
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · megatron_cpt report</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
