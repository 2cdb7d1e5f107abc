"""Conversion of matplotlib's SVG files to elements of a page."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from html import escape

from markupsafe import Markup


def inline_svg(svg: str, prefix: str, label: str, hover: Mapping[str, list[str]] | None = None) -> Markup:
    """Convert an SVG file of matplotlib to an element of a page.

    Args:
        svg: The file. Metadata and styles are removed.
        prefix: Prefix that makes each id unique on the page.
        label: Description for screen readers.
        hover: Texts of the marks of a collection, by its gid. They become attributes that the page's script shows.
    """
    box = re.search(r'viewBox="([\d. ]+)"', svg)
    assert box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for gid, texts in (hover or {}).items():
        body = _add_texts(body, gid, texts)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = _group_styles(body.replace("xlink:href", "href"))
    body = _prefix_ids(body, prefix)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", body)
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], label)
    return head + Markup(body.strip())


def _prefix_ids(body: str, prefix: str) -> str:
    """Prefix each id. Ids that a figure uses several times, which nothing refers to, are numbered."""
    seen: Counter[str] = Counter()

    def prefixed(match: re.Match[str]) -> str:
        seen[match[1]] += 1
        number = f"-{seen[match[1]]}" if seen[match[1]] > 1 else ""
        return f'id="{prefix}-{match[1]}{number}"'

    return re.sub(r'\bid="([^"]*)"', prefixed, body)


def _group_styles(body: str) -> str:
    """Move the style of consecutive marks to a group around them. With thousands of marks this halves the size."""

    def grouped(run: re.Match[str]) -> str:
        styles = set(re.findall(r'style="([^"]*)"', run[0]))
        if len(styles) != 1:
            return run[0]
        style = styles.pop()
        return f'<g style="{style}">' + run[0].replace(f' style="{style}"', "").replace("     <use", "<use") + "</g>"

    return re.sub(r'(?:\s*<use [^>]*style="[^"]*"/>){3,}', grouped, body)


def _add_texts(body: str, gid: str, texts: list[str]) -> str:
    """Add a text to each mark of the collection `gid`.

    matplotlib writes one `use` element per mark, in order. If the numbers of marks and texts differ, because a mark has
    no finite position, no text is added, since texts could be assigned to the wrong marks.
    """
    start = body.find(f'<g id="{escape(gid)}">')
    if start < 0:
        return body
    depth, end = 0, start
    for tag in re.finditer(r"<g\b|</g>", body[start:]):
        depth += 1 if tag[0] == "<g" else -1
        if depth == 0:
            end = start + tag.end()
            break
    group = body[start:end]
    if group.count("<use ") != len(texts):
        print(f"dnas: {gid} has {group.count('<use ')} marks, but {len(texts)} texts", file=sys.stderr)
        return body
    remaining = iter(texts)
    group = re.sub("<use ", lambda _: f'<use data-t="{escape(next(remaining))}" ', group)
    return body[:start] + group + body[end:]
