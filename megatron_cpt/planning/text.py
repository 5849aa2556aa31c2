"""Numbers and tables as plain text."""

from collections.abc import Sequence


def quantity(number: float) -> str:
    """Three significant digits with a suffix: 950, 12.3K, 1.50B."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * scale:
            scaled = number / scale
            return f"{scaled:.{max(0, 2 - (scaled >= 9.995) - (scaled >= 99.95))}f}{suffix}"
    return f"{number:.0f}"


def percent(share: float) -> str:
    """A share in per cent: 29.97 %."""
    return f"{100 * share:.2f} %"


def size(count: float) -> str:
    """Bytes in the binary unit that suits: 1.50 GiB."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 2**10:.2f} KiB"


def columns(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines of aligned columns; `sides` has an `l` or an `r` for each, rows[0] is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
