"""The nbconvert exporter `dlops`, and `export`, which writes a page with its record beside it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, pass_context
from markupsafe import Markup
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from dlops.export.maths import markdown, phrase
from dlops.export.page import clean, finish, words
from dlops.settings import DlopsError
from dlops.store.disk import replaced

SENTINEL = "application/vnd.dlops.finished+json"
PUBLISHED = ("standard", "full", "lite", "original")
"""Presets whose reports are committed and stand in the front page; others have an index each."""

Verdict = str | None
"""None for a run that finished; otherwise one sentence that says why it counts as failed."""

_LIVE = f"widget|javascript|{re.escape(SENTINEL)}"
_PARAMETERS = {"parameters": "Parameters", "injected-parameters": "Parameters of this run"}


class ReportExporter(HTMLExporter):
    """A report: one HTML file without scripts, which loads nothing.

    Cells tagged `hide` or `interactive` are left out, of `hide-input` the source; `fold` and the
    parameters are folded. `jupyter nbconvert --to dlops NOTEBOOK` uses it.
    """

    export_from_notebook = "Report (dlops)"

    def __init__(self, **given: Any) -> None:
        templates = str(Path(__file__).parent / "templates")
        own = {"template_name": "report", "extra_template_basedirs": [templates]}
        super().__init__(**own | given)

    def _create_environment(self) -> Environment:
        environment = super()._create_environment()
        environment.autoescape = True
        environment.trim_blocks = environment.lstrip_blocks = True
        environment.globals["css_string"] = _css_string
        return environment

    @pass_context
    def markdown2html(self, context: Any, source: str) -> Markup:
        """Markdown with MathML; nbconvert's own leaves formulas to MathJax."""
        attachments = context.get("cell", {}).get("attachments", {})
        return Markup(markdown(source, attachments=attachments))

    def default_filters(self) -> Iterable[tuple[str, Any]]:
        """nbconvert's, and `phrase` and `summary`."""
        yield from super().default_filters()
        yield from (("phrase", phrase), ("summary", _summary))

    def from_notebook_node(  # type: ignore[override]
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **kw: Any
    ) -> tuple[str, dict[str, Any]]:
        """The page of an executed notebook; its record is in `resources["report"]`."""
        resources = self._init_resources(resources)
        name = resources.get("metadata", {}).get("name") or "report"
        resources.setdefault("report", record(nb, name))
        if failed := resources["report"]["failed"]:
            self.log.warning("FAILED: %s", failed)
        nb = nbformat.from_dict(nb)
        for cell in nb.cells:
            if "outputs" in cell:
                _drop_live(cell)
        text, resources = super().from_notebook_node(nb, resources, **kw)
        return finish(text, resources["report"]), resources


def _drop_live(cell: NotebookNode) -> None:
    """Leave out what only a live notebook shows; a cell that failed is shown whatever its tags."""
    if any(output.output_type == "error" for output in cell.outputs):
        cell.metadata["tags"] = []
    cell.outputs = [
        output
        for output in cell.outputs
        if not output.get("metadata", {}).get("live_only")
        and not any(re.search(_LIVE, mime) for mime in output.get("data", {}))
    ]


def _summary(cell: NotebookNode) -> str | None:
    """What a folded cell is called; "" leaves that to the heading before it, None is unfolded."""
    tags = cell.metadata.get("tags", ())
    for tag, summary in _PARAMETERS.items():
        if tag in tags:
            return summary
    return cell.metadata.get("summary", "") if "fold" in tags else None


def _css_string(text: str) -> Markup:
    escaped = re.sub(r'[\\"<>&\n]', lambda match: f"\\{ord(match[0]):x} ", str(text))
    return Markup(f'"{escaped}"')


def _read(notebook: Path) -> NotebookNode:
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise DlopsError(f"There is no notebook {notebook}; execute it first.") from None
    except Exception as error:
        raise DlopsError(f"{notebook} is not a readable notebook: {error}") from error


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def _payload(code: list[NotebookNode]) -> dict[str, Any] | None:
    """What the sentinel in the last code cell says, or None without one."""
    said = (output.get("data", {}).get(SENTINEL) for cell in code[-1:] for output in cell.outputs)
    return next((dict(data) for data in said if data is not None), None)


def verdict(notebook: Path | NotebookNode) -> Verdict:
    """None if the notebook ran to its end, otherwise why it did not.

    A run fails by an exception in any cell, or when the last code cell lacks the sentinel: after a
    killed kernel the cells look completed, but nothing has written that.
    """
    code = _code(_read(notebook) if isinstance(notebook, Path) else notebook)
    reached = 0
    for number, cell in enumerate(code, 1):
        reached = number if cell.outputs else reached
        for output in cell.outputs:
            if output.output_type == "error":
                what = ": ".join(filter(None, (output.ename, output.evalue.strip())))
                what = strip_ansi(what).split("\n")[0]
                return f"Code cell {number} of {len(code)} stopped with {what}"
    if _payload(code) is not None:
        return None
    return (
        "The run did not reach its end: the last cell left no finishing mark, so the kernel was"
        f" stopped or died. The last output comes from code cell {reached} of {len(code)}."
    )


def record(notebook: NotebookNode, name: str, title: str | None = None) -> dict[str, Any]:
    """What the index knows of a report; it is written beside the page as `<name>.json`.

    Its title is the payload's, which names what was run; without one the given title, the
    notebook's first heading or its file name.
    """
    said = _payload(_code(notebook)) or {}
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    first = BeautifulSoup(markdown(next(texts, "")), "html.parser")
    clean(first)
    asked = first.select_one("h1 + p")
    heading = words(first.h1) if first.h1 else ""
    return {
        "id": name,
        "assignment": "",
        "preset": "",
        "commit": "",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **said,
        "title": said.get("title") or title or heading or name,
        "heading": heading,
        "asked": asked.decode_contents() if asked else "",
        "headline": dict(said.get("headline") or {}),
        "failed": verdict(notebook),
    }


def export(notebook: Path, html: Path, *, title: str | None = None) -> Verdict:
    """Write an executed notebook as one self-contained HTML file, and `<name>.json` beside it.

    A run that failed is exported too, under a banner that says why, as `<name>.failed.html`: a
    good page is never replaced by it. Returns the verdict: None, or the reason. `title` is for
    notebooks that do not state one.
    """
    nb = _read(notebook)
    report = record(nb, html.stem, title)
    report["preset"] = report["preset"] or html.resolve().parent.name
    home = "../index.html" if report["preset"] in PUBLISHED else "index.html"
    text, _ = exporter().from_notebook_node(nb, {"report": report, "index": home})
    failed_page = html.with_suffix(".failed.html")
    if report["failed"]:
        write(failed_page, text)
    else:
        write(html, text)
        write(html.with_suffix(".json"), json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        failed_page.unlink(missing_ok=True)
    return report["failed"]


@functools.cache
def exporter() -> ReportExporter:
    """One exporter for all pages: its templates are compiled once."""
    return ReportExporter()


def render(template: str, **values: Any) -> str:
    """One of the templates beside the report's: the front page, or the document to hand in."""
    return exporter().environment.get_template(template).render(**values)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write(text.encode())
