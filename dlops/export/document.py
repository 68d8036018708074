"""Several reports as one document: a cover, contents, and a chapter each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from markupsafe import Markup

from dlops.export.exporter import Verdict, render, write
from dlops.export.page import number, words
from dlops.settings import DlopsError


def hand_in(
    reports: list[Path], html: Path, *, title: str, author: str, roll_number: str, date: str
) -> Verdict:
    """Write exported pages as one document.

    Headings go down a level, ids get the chapter's prefix, figures its number. Returns None, or
    which chapters come from failed runs. Raises DlopsError for what is no report.
    """
    chapters = [_chapter(path, position) for position, path in enumerate(reports, 1)]
    if not chapters:
        raise DlopsError("A document to hand in needs at least one report.")
    cover = {"title": title, "author": author, "roll_number": roll_number, "date": date}
    write(html, render("hand_in.html.j2", chapters=chapters, **cover))
    bad = [f"chapter {c['number']} ({c['title']})" for c in chapters if c["failed"]]
    return f"Not every run finished: {', '.join(bad)}." if bad else None


def _chapter(path: Path, position: int) -> dict[str, Any]:
    if not path.is_file():
        raise DlopsError(f"There is no report {path}; run `dlops report` first.")
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = soup.select_one("article#report:has(h1)")
    if article is None:
        raise DlopsError(f"{path} is no report exported by dlops; run `dlops report` again.")
    number(article, f"{position}.")
    prefix = f"c{position}-"
    for tag in article.find_all(True):
        if tag.get("id"):
            tag["id"] = prefix + str(tag["id"])
        if str(tag.get("href", "")).startswith("#"):
            tag["href"] = f"#{prefix}{str(tag['href'])[1:]}"
        for name in ("aria-labelledby", "aria-describedby", "headers"):
            if ids := " ".join(filter(None, tag.get_attribute_list(name))).split():
                tag[name] = " ".join(prefix + id for id in ids)
        if re.fullmatch("h[1-5]", tag.name):
            tag.name = f"h{int(tag.name[1]) + 1}"
        if tag.name == "style":  # of pandas' Styler
            tag.string = tag.get_text().replace("#T_", f"#{prefix}T_")
    heading = article.select("h2")[0]
    return {
        "number": position,
        "id": heading["id"],
        "title": words(heading),
        "sections": [{"id": tag["id"], "text": words(tag)} for tag in article.find_all("h3")],
        "failed": article.find(class_="failed") is not None,
        "html": Markup(article.decode_contents()),
    }
