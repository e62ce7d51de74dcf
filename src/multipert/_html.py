"""Parts of a page that needs nothing beside itself: the style of all reports, and small pieces of HTML."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2330; --soft: #626b7a; --line: #dde1e7; --mark: #eef4fb;
  --accent: #1f6fb2; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --ink: #e4e7ec; --soft: #9aa4b2; --line: #333a45;
  --mark: #1d2a38; --accent: #74b3e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p, ul { margin: .4rem 0; max-width: 60rem; }
ul { padding-left: 1.2rem; }
.soft { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--mark); border-left: 4px solid var(--accent); padding: .8rem 1rem; margin: 1.25rem 0; }
.verdict strong { font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
thead th { border-bottom: 2px solid var(--line); }
tbody th, th.text { text-align: left; }
td.model, th.model { background: var(--mark); }
td.ceiling, th.ceiling { border-left: 2px solid var(--line); color: var(--soft); }
td.best { font-weight: 700; color: var(--accent); }
td.held { background: var(--mark); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .5rem 1rem; align-items: start; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { paint-order: stroke; stroke: var(--ground); stroke-width: 2.5px; stroke-linejoin: round; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; font-size: .9rem; margin: .5rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Parameters
    ----------
    title
        Plain text.
    body
        Pieces of HTML.

    Returns
    -------
    HTML, style included.
    """
    return (
        f"<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<title>{text(title)}</title>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def verdict(sentence: str, lines: Iterable[str]) -> str:
    """The box that comes first: one sentence, and what it rests on.

    Parameters
    ----------
    sentence
        Plain text.
    lines
        Plain text.

    Returns
    -------
    HTML.
    """
    return f"<div class=verdict><strong>{text(sentence)}</strong>{bullets(lines)}</div>"


def pairs(items: Mapping[str, Any]) -> str:
    """Names and values.

    Parameters
    ----------
    items
        Plain text, or what becomes plain text.

    Returns
    -------
    HTML.
    """
    return "<dl>" + "".join(f"<dt>{text(str(k))}</dt><dd>{text(str(v))}</dd>" for k, v in items.items()) + "</dl>"


def bullets(items: Iterable[str]) -> str:
    """A list.

    Parameters
    ----------
    items
        Plain text.

    Returns
    -------
    HTML.
    """
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def cell(tag: str, content: str, class_: str = "", style: str = "") -> str:
    """A cell of a table.

    Parameters
    ----------
    tag
        "td" or "th".
    content
        HTML.
    class_
        Classes of the style.
    style
        Style of this cell alone.

    Returns
    -------
    HTML.
    """
    attributes = (f' class="{class_}"' if class_ else "") + (f' style="{style}"' if style else "")
    return f"<{tag}{attributes}>{content}</{tag}>"


def text(value: str) -> str:
    """Plain text as HTML."""
    return html.escape(value)
