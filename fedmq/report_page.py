"""The report's page: sections of HTML in one self-contained file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Noto Sans", sans-serif; color: #1b1f24; background: #fff; }
body { max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d8dee4; padding-bottom: .2rem; }
p { max-width: 75ch; margin: .4rem 0; } .note { color: #57606a; }
figure { margin: .6rem 0; } figcaption { color: #57606a; font-size: .9rem; }
svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e6eaef; white-space: nowrap; }
td.long { white-space: normal; min-width: 12rem; }
th { font-weight: 600; border-bottom: 2px solid #afb8c1; } th:first-child, td:first-child { text-align: left; }
code { font-size: .9em; overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""A page of figures and text: it runs nothing and fetches nothing, whatever names of runs and classes say."""

LONG_CHARACTERS = 30
"""A cell's text is broken into lines when it is longer: names of classes, never figures."""


def page(title: str, sections: Sequence[str]) -> str:
    """Return a whole HTML document."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = f'<meta charset="utf-8">{policy}<meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join(sections)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n'


def section(title: str, *parts: str) -> str:
    """Return a section; parts that are empty are left out."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "</section>"


def paragraph(text: str, *, is_note: bool = False) -> str:
    """Return a paragraph of plain text."""
    return f'<p class="note">{escape(text)}</p>' if is_note else f"<p>{escape(text)}</p>"


def figure(svg: str, caption: str) -> str:
    """Return a figure with what one sees below it."""
    return f'<figure><div class="wide">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, shades: Sequence[Sequence[float | None]] | None = None) -> str:
    """Return a table; `shades` colours cells from white (0) to blue (1)."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for row_index, row in enumerate(rows):
        cells = []
        for column_index, cell in enumerate(row):
            shade = shades[row_index][column_index] if shades else None
            style = "" if shade is None else f' style="background: rgba(9, 105, 218, {0.75 * shade:.3f})"'
            text = "-" if cell is None else str(cell)
            kind = ' class="long"' if len(text) > LONG_CHARACTERS else ""
            cells.append(f"<td{kind}{style}>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def percent(share: float | None) -> str | None:
    """Return a share in per cent, two decimals; None of nothing."""
    return None if share is None else f"{100 * share:.2f} %"


def number(value: float | None, digits: int) -> str | None:
    """Return a number with so many decimals; None of nothing."""
    return None if value is None else f"{value:.{digits}f}"
