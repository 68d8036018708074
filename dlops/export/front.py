"""The front page of the reports: questions, answers, all results in one chart, every claim."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import escape

from dlops.export.exporter import PUBLISHED, render, write
from dlops.series import ASSIGNMENTS

PRESETS = {
    "standard": "All of Tiny ImageNet and CIFAR-100 with a modern recipe, on the machine at hand.",
    "full": "The same with longer training and more seeds; it needs a GPU.",
    "original": "The settings of the original assignments, beside the figures published then.",
    "lite": "Real images, but 20 classes or fewer images a class: minutes on a laptop.",
    "quick": "Small handwritten digits, in about a minute and without a download.",
    "test": "300 digits for two epochs: it shows that the code runs, and nothing else.",
}
_NEEDED = {"id", "title", "headline", "when"}
Report = dict[str, Any]


def index(root: Path, preset: str | None = None) -> Path:
    """Write the front page of the published reports, or of a checkout's own; returns its path.

    root: the folder with a folder for each preset. `root/index.html` lists what is published;
    with a preset that is not (quick, test), `root/<preset>/index.html` lists that one alone.
    The reports of each preset get links to the one before and the one after.
    """
    own = preset is not None and preset not in PUBLISHED
    names = [preset] if own else [name for name in PRESETS if name in PUBLISHED]
    target = root / preset / "index.html" if own and preset else root / "index.html"
    reports = [report for name in names if name for report in _records(root / name)]
    for report in reports:
        folder = "" if own else f"{quote(report['preset'])}/"
        report["href"] = folder + quote(report["html"])
        report["pdf_href"] = report["pdf"] and folder + quote(report["pdf"])
    presets = list(dict.fromkeys(report["preset"] for report in reports))
    text = render(
        "front.html.j2",
        questions=_questions(reports),
        charts=_charts(reports),
        claims=_claims(reports),
        presets={name: PRESETS.get(name, "") for name in presets},
    )
    write(target, text)
    for name in presets:
        _link(root / name, [r for r in reports if r["preset"] == name], target)
    return target


def _records(folder: Path) -> list[Report]:
    """The reports of a folder in the series' order; what is no report's record is passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        known = isinstance(report, dict) and report.keys() >= _NEEDED and not report.get("failed")
        page, pdf = path.with_suffix(".html"), path.with_suffix(".pdf")
        if known and page.is_file():
            pdf_name = pdf.name if pdf.is_file() else ""
            found.append(report | {"preset": folder.name, "html": page.name, "pdf": pdf_name})
    order = {name: position for position, name in enumerate(ASSIGNMENTS)}
    return sorted(found, key=lambda r: (order.get(r.get("assignment"), 99), r["id"], r["html"]))


def _questions(reports: list[Report]) -> dict[str, dict[str, list[Report]]]:
    """For each assignment its questions, each with the reports that answer it."""
    found: dict[str, dict[str, list[Report]]] = {}
    for report in reports:
        title = ASSIGNMENTS.get(report.get("assignment", ""), "Other reports")
        found.setdefault(title, {}).setdefault(report["id"], []).append(report)
    return found


def _charts(reports: Iterable[Report]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """The results of each preset, apart by the number of classes: 5 of 10 is easy, 5 of 20 less."""
    charts: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for report in reports:
        for result in report.get("results", ()):
            rows = charts.setdefault((report["preset"], result["classes"]), {})
            rows.setdefault(result["name"], {**result, "href": report["href"]})
    return charts


def _claims(reports: Iterable[Report]) -> dict[str, dict[str, list[Report]]]:
    """For each report and each of its claims what the presets say of it."""
    claims: dict[str, dict[str, list[Report]]] = {}
    for report in reports:
        for claim in report.get("claims", ()):
            anchor = str(claim.get("anchor") or "").removeprefix("#")
            href = report["href"] + (f"#{quote(anchor)}" if anchor else "")
            verdicts = claims.setdefault(report["title"], {}).setdefault(claim["sentence"], [])
            verdicts.append({**claim, "preset": report["preset"], "href": href})
    return claims


def _link(folder: Path, reports: list[Report], front: Path) -> None:
    """Write into each page the links to its neighbours and to the front page."""
    home = "index.html" if front.parent == folder else "../index.html"
    for before, report, after in zip([None, *reports], reports, [*reports[1:], None]):
        links = [("index", home, "All reports")]
        if before:
            links.insert(0, ("prev", quote(before["html"]), f"← {before['title']}"))
        if after:
            links.append(("next", quote(after["html"]), f"{after['title']} →"))
        inner = "".join(f'<a rel="{rel}" href="{href}">{escape(t)}</a>' for rel, href, t in links)
        page = folder / report["html"]
        old = page.read_text(encoding="utf-8")
        start, rest = old.partition("<!--pages-->")[::2]
        new = f"{start}<!--pages-->{inner}<!--/pages-->{rest.partition('<!--/pages-->')[2]}"
        if rest and new != old:
            write(page, new)
