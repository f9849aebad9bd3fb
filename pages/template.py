"""A page of HTML that needs nothing else, for phones and in the dark, and the parts that pages are made of.

Every text that a part is given is escaped by it.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from pages.colors import VARIABLES
from pages.plot import PLOT_STYLE

STYLE = (
    VARIABLES
    + """
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; background: var(--ground); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: .75rem 0 .25rem }
p { margin: .4rem 0 } .quiet { color: var(--quiet); font-size: .875rem }
.row { margin: .55rem 0 } .row > div:first-child { display: flex; justify-content: space-between; gap: .75rem }
.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap }
.track { background: var(--track); border-radius: 3px; height: .6rem; overflow: hidden; position: relative }
.limit { position: absolute; top: 0; width: 3px; height: 100%; background: var(--text) }
.busy { border-left: 4px solid var(--beyond); padding-left: .75rem; font-weight: 600 }
.bar { background: var(--bar); height: 100% } .ours { background: var(--ours) } .beyond { background: var(--beyond) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { border-top: 1px solid var(--line); padding: .3rem .5rem .3rem 0; vertical-align: top; text-align: left }
th { border-top: 0; font-weight: 600 }
td:last-child, th:last-child { text-align: right; padding-right: 0 }
td:first-child, td:last-child { overflow-wrap: break-word }
.several td, .several th { min-width: 7rem } .several td:not(:first-child), .several th:not(:first-child) {
  text-align: right }
summary { cursor: pointer; color: var(--quiet); font-size: .875rem }
figure { margin: 0 0 1rem } figcaption { font-size: .875rem; color: var(--quiet) }
img { display: block; max-width: 100%; height: auto } .pixels { image-rendering: pixelated; width: 100% }
.plots, .images { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
.images { grid-template-columns: repeat(4, minmax(0, 1fr)) }
@media (max-width: 40rem) { .images { grid-template-columns: repeat(2, minmax(0, 1fr)) } }
svg { display: block; width: 100%; height: auto }
"""
    + PLOT_STYLE
)


def page(title: str, sections: Iterable[str], columns: int = 1) -> str:
    """A page. Args: columns: how many things stand beside one another where there is room."""
    body = "\n".join(sections)
    width = 52 if columns == 1 else min(100, 34 * columns)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}body {{ max-width: {width}rem }}</style>
</head>
<body>
{body}
</body>
</html>
"""


def text(words: str, kind: str = "") -> str:
    """A paragraph. Args: kind: "quiet" for a remark, "busy" for a warning."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def bar(name: str, number: str, share: float, kind: str = "", note: str = "") -> str:
    """A bar of `share` of its track; beyond 1 the track is as long as the bar, and a line marks 1."""
    quiet = f'<div class="quiet">{escape(note)}</div>' if note else ""
    limit = ""
    if share > 1:
        kind, limit = "beyond", f'<div class="limit" style="left:{1 / share:.1%}"></div>'
    return (
        f'<div class="row"><div><span>{escape(name)}</span><span class="number">{escape(number)}</span></div>'
        f'<div class="track"><div class="bar {kind}" style="width:{min(1.0, share):.1%}"></div>{limit}</div>'
        f"{quiet}</div>"
    )


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A table, which scrolls by itself where it is wider than the page."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if heads:
        lines.insert(0, "".join(f"<th>{escape(head)}</th>" for head in heads))
    kind = ' class="several"' if len(heads) > 2 else ""
    return f'<div class="wide"><table{kind}>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def folded(summary: str, *parts: str) -> str:
    """Parts that are seen when they are asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def grid(parts: Iterable[str], kind: str = "plots") -> str:
    """Parts beside one another where there is room. Args: kind: "plots", or the smaller "images"."""
    return f'<div class="{kind}">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def image(picture: Image.Image, words: str, format: str = "PNG", kind: str = "") -> str:
    """A picture, inside the page itself. Args: words: what it shows; kind: "pixels" to enlarge it without smoothing."""
    file = io.BytesIO()
    picture.save(file, format, quality=90)
    content = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img class="{kind}" alt="{escape(words)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:image/{format.lower()};base64,{content}">'
    )


def figure(drawn: str, caption: str) -> str:
    """A drawing and its caption."""
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"
