"""Self-contained HTML pages: escaped text, tables, embedded pictures. They contain no scripts and load nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Sequence

# Browsers refuse whatever is not part of the page, should anything unescaped get into it.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: 2px 8px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, table.words th, table.words td { text-align: left; }
table.words td { white-space: pre-wrap; overflow-wrap: anywhere; }
tr.marked td { background: #fff3d6; }
img, video { max-width: 100%; }
pre { background: #f5f5f5; padding: 0.7em; overflow-x: auto; font-size: 13px; }
div.wide { overflow-x: auto; }
div.panels { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start; }
figure { margin: 0; }
div.curves figure { width: 350px; }
div.pictures figure { width: calc(50% - 0.5em); min-width: 300px; }
figcaption { font-size: 13px; }
div.gallery { gap: 1.5em; }
div.gallery figure { max-width: 20em; }
div.gallery img, div.gallery video { display: block; image-rendering: pixelated; min-width: 8em; }
svg { display: block; }
svg text { font-size: 11px; fill: #444; }
"""


def escaped(text: str) -> str:
    """Text for the content of an element or a quoted attribute.

    Characters that are not printable (control characters, changes of the direction of text, bytes of a file name that
    are not UTF-8) are shown as escape sequences; ends of lines and tabs are kept.
    """
    if not text.isprintable():
        text = "".join(one if one.isprintable() or one in "\n\t" else _sequence(one) for one in text)
    return html.escape(text)


def _sequence(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def html_table(rows: Sequence[Sequence[str]], *, words: bool = False, marked: Collection[int] = ()) -> str:
    """A table whose first row is the header, in an element that scrolls sideways.

    Args:
      rows: texts of the cells, not escaped.
      words: whether all columns hold text, which is aligned left and broken into lines; else the first one alone does.
      marked: indices in `rows` of rows that are highlighted.
    """
    lines = ["<tr>" + "".join(f"<th>{escaped(cell)}</th>" for cell in rows[0]) + "</tr>"]
    for index, row in enumerate(rows[1:], 1):
        cells = "".join(f"<td>{escaped(cell)}</td>" for cell in row)
        lines.append(f'<tr class="marked">{cells}</tr>' if index in marked else f"<tr>{cells}</tr>")
    table = '<table class="words">' if words else "<table>"
    return f'<div class="wide">{table}\n' + "\n".join(lines) + "\n</table></div>"


def html_picture(data: bytes, text: str, media_type: str = "image/png") -> str:
    """An image that is embedded with the bytes of its file; `text` describes it, not escaped."""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escaped(text)}" src="data:{media_type};base64,{encoded}">'


def html_video(data: bytes, text: str, media_type: str = "video/mp4") -> str:
    """A video that is embedded with the bytes of its file and repeats silently; `text` describes it, not escaped."""
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<video autoplay loop muted playsinline controls aria-label="{escaped(text)}" '
        f'src="data:{media_type};base64,{encoded}"></video>'
    )


def html_page(title: str, body: str) -> str:
    """A whole page; `title` is text, `body` is HTML."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escaped(title)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
