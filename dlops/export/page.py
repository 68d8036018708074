"""What a page gets once its HTML stands: numbers, links, contents, tables that fit, nothing active.

nbconvert renders cell by cell; what is said here concerns the page as a whole.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup, Tag

_ACTIVE = """script, iframe, object, embed, applet, form, input, button, textarea, select, link,
base, frame, frameset, audio, video, noscript, article meta"""
_NUMBER = re.compile(
    r"[-+−±]?[\d.,\s]+(?:e[-+]?\d+)?\s*(?:%|[a-zA-Z]{1,2})?(?:\s*±\s*[\d.]+)?|nan|–|-|"
)
_PLAIN = ".n, .nn, .nb, .bp, .na, .nv, .o, .p, .w, .err, .si, .py"


def finish(text: str, report: Mapping[str, Any]) -> str:
    """The page of a report, from nbconvert's rendering of its template."""
    soup = BeautifulSoup(text, "html.parser")
    article = soup.find("article")
    assert isinstance(article, Tag)
    clean(soup)
    if article.h1 is None:
        article.insert(0, made(f"<h1>{html.escape(report['title'])}</h1>"))
    _fold(article)
    _contents(soup, article)
    number(article)
    for table in article.find_all("table"):
        _fit(table)
    _frame(article)
    return str(soup)


def clean(soup: BeautifulSoup) -> None:
    """Nothing in the document acts or loads. The content security policy says so again."""
    for tag in soup.select(_ACTIVE):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in list(tag.attrs):
            value = re.sub(r"[\s\x00-\x1f]", "", str(tag[name])[:200]).lower()
            if name.lower().startswith("on") or value.startswith(("javascript:", "vbscript:")):
                del tag[name]
    for image in soup.find_all(["img", "source"]):
        source = str(image.get("src") or image.get("srcset") or "")
        if not source.startswith("data:image/"):
            image.replace_with(f"[{image.get('alt') or 'image'}]")
    for style in soup.select("article style"):
        if "#T_" not in style.get_text():  # pandas' Styler keeps its own, keyed by table
            style.decompose()


def words(tag: Tag) -> str:
    """The text of a tag, on one line."""
    return " ".join(tag.get_text().split())


def made(text: str) -> Tag:
    """The first tag of a piece of HTML."""
    tag = BeautifulSoup(text, "html.parser").find(True)
    assert isinstance(tag, Tag)
    return tag


def _fold(article: Tag) -> None:
    """A folded cell without a name is called like its section; an empty one goes."""
    for summary in article.select("details.fold > summary"):
        fold, name = summary.parent, words(summary)
        assert fold is not None
        if words(fold) == name and not fold.find(["img", "svg"]):
            fold.decompose()
        elif not name:
            heading = fold.find_previous(["h1", "h2", "h3", "h4"])
            summary.string = words(heading) if heading else "Details"


def _contents(soup: BeautifulSoup, article: Tag) -> None:
    """Give every heading an id, and fill the list of contents with those of levels 2 and 3."""
    used = {str(tag["id"]) for tag in article.find_all(id=True)}
    (contents,) = soup.select("nav.contents")
    for heading in article.find_all(["h1", "h2", "h3", "h4"]):
        text = words(heading)
        stem = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
        names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        heading["id"] = heading.get("id") or next(name for name in names if name not in used)
        used.add(str(heading["id"]))
        if heading.name in ("h2", "h3"):
            link = f'<a href="#{heading["id"]}">{html.escape(text)}</a>'
            contents.select("ol")[0].append(made(f'<li class="{heading.name}">{link}</li>'))
    if not contents.li:
        contents.decompose()


def number(article: Tag, prefix: str = "") -> None:
    """Number the captions of figures and tables in their order, and name them in links to them.

    `[Figure](#fig-loss)` becomes "Figure 3"; other words of a link stay, a link to nothing is
    text. Numbers that stand already are replaced; prefix: a chapter's, for example "2.".
    """
    counts, names = {"Figure": 0, "Table": 0}, {}
    for caption in article.select("figure > figcaption"):
        figure = caption.parent
        if figure is None or not caption.get_text().strip():
            continue
        kind = "Table" if "table" in figure.get_attribute_list("class") else "Figure"
        counts[kind] += 1
        label = f"{kind} {prefix}{counts[kind]}"
        figure["id"] = figure.get("id") or label.lower().replace(" ", "-")
        names[figure["id"]] = label
        for old in caption.select("b.number"):
            old.decompose()
        first = caption.find("p", recursive=False) or caption
        tag = made(f'<b class="number">{label}.</b>')
        first.insert(0, tag)
        if not str(tag.next_sibling or "").startswith(" "):
            tag.insert_after(" ")
        for box in figure.select(".scroll"):
            box["aria-label"] = label
    ids = {str(tag["id"]) for tag in article.find_all(id=True)}
    for link in article.select('a[href^="#"]'):
        target, words = str(link["href"])[1:], link.get_text().strip()
        if target in names and re.fullmatch(r"((figure|table)[\s\d.]*)?", words, re.IGNORECASE):
            link.string = names[target]
        elif target not in ids:
            link.unwrap()


def _fit(table: Tag) -> None:
    """Numbers to the right, headers with their scope, and a box that scrolls."""
    del table["border"]
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    width = max(map(len, rows), default=0)
    for cells in zip(*(row for row in rows if len(row) == width)):
        texts = [cell.get_text().strip() for cell in cells if not cell.find_parent("thead")]
        if any(texts) and all(_NUMBER.fullmatch(text) for text in texts):
            for cell in cells:
                _mark(cell, "number")
    for header in table.find_all("th"):
        header["scope"] = header.get("scope") or ("col" if header.find_parent("thead") else "row")
        for text in header.find_all(string=re.compile("_")):
            pieces = html.escape(str(text)).replace("_", "_<wbr>")
            text.replace_with(BeautifulSoup(pieces, "html.parser"))
    if width > 7:
        _mark(table, "wide" if width <= 13 else "widest")
    _scroll(table)


def _mark(tag: Tag, name: str) -> None:
    tag["class"] = " ".join([*filter(None, tag.get_attribute_list("class")), name])


def _frame(article: Tag) -> None:
    """Pictures and code can be scrolled by the keyboard; code is as light as it can be."""
    for picture in article.select("figure > picture, figure > img"):
        _scroll(picture)
    for code in article.select("div.highlight, pre:not(.highlight pre)"):
        code["tabindex"], code["role"] = "0", "group"
        code["aria-label"] = code.get("aria-label") or "Code"
        if max(map(len, code.get_text().splitlines()), default=0) > 84:
            _mark(code, "long")
    for token in article.select(f".highlight :is({_PLAIN})"):
        token.unwrap()  # no colour of its own: a tagged PDF is a third smaller without


def _scroll(content: Tag) -> None:
    """A box that scrolls where its content is too wide, reachable by the keyboard."""
    figure = content.find_parent("figure")
    label = figure.select_one("b.number") if figure else None
    role, name = ("region", words(label).rstrip(".")) if label else ("group", "Table")
    content.wrap(made(f'<div class="scroll" tabindex="0" role="{role}" aria-label="{name}"></div>'))
