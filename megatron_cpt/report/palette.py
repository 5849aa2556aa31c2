"""The colours of the report, by name, for light and dark pages.

Figures are drawn in the light colours; in the page each becomes a CSS variable, so that one drawing
serves both schemes. The series stay apart under the common colour deficiencies and differ in lightness.
"""

LIGHT = {
    "paper": "#fffffe",
    "card": "#f5f7f9",
    "ink": "#1b2026",
    "muted": "#5a646f",
    "axis": "#929ba5",
    "grid": "#e4e8ec",
    "series0": "#1c6cb0",
    "series1": "#cf5217",
    "series2": "#10876a",
    "series3": "#8b4aa8",
    "series4": "#a37a05",
    "series5": "#2a9bc0",
    "series6": "#b73668",
    "series7": "#606c7b",
}
"""Name to colour. All different: figures are recoloured by value."""

DARK = {
    "paper": "#13161a",
    "card": "#1c2026",
    "ink": "#e9ecef",
    "muted": "#a3acb6",
    "axis": "#6c7680",
    "grid": "#2a3037",
    "series0": "#6db3f2",
    "series1": "#ff9860",
    "series2": "#4fcba6",
    "series3": "#d09dea",
    "series4": "#e5c04f",
    "series5": "#8bddf6",
    "series6": "#f690b5",
    "series7": "#abb6c4",
}

SERIES = [name for name in LIGHT if name.startswith("series")]
Dashes = tuple[float, tuple[float, ...]]
"""A line style: offset, then lengths of dashes and gaps in line widths; no lengths is a solid line."""

DASHES: list[Dashes] = [(0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]


def run_series(index: int) -> str:
    """Colour name of the run at an index; after eight they repeat with other dashes."""
    return SERIES[index % len(SERIES)]


def run_dashes(index: int) -> Dashes:
    """Line style of the run at an index."""
    return DASHES[index // len(SERIES) % len(DASHES)]


def source_series(index: int) -> str:
    """Colour name of a source: from the other end, so that few runs and few sources share none."""
    return SERIES[-2 - index % (len(SERIES) - 1)]


def css_variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
