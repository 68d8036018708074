"""Executed notebooks become self-contained HTML, PDF, an index, and one document to hand in.

HTML files carry no script and load nothing: figures are `data:` URIs, formulas are MathML, and the
content security policy forbids the rest. What a notebook says about itself is the JSON payload of
its last cell's output (MIME type `SENTINEL`); a notebook without it did not finish, whatever its
execution counts claim.
"""

from __future__ import annotations

import base64
import copy
import html as htmllib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import mistune
import nbformat
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert as latex_to_mathml
from markupsafe import Markup
from nbconvert.filters import ansi2html
from PIL import Image, ImageChops, ImageStat
from pygments import highlight as pygments_highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from dlops.settings import DlopsError

SENTINEL = "application/vnd.dlops.finished+json"
PRESET_ORDER = ("full", "original", "lite", "quick", "test")
Verdict = str | None
"""None for a run that finished; otherwise one sentence that says why it counts as failed."""

# --------------------------------------------------------------------------- maths and Markdown

_TEX_REWRITES = (
    (r"\\(begin|end)\{(?:aligned|align|split|equation\*?|gathered|gather\*?)\}", r"\\\1{align*}"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"\\mathop\{\\(?:mathrm|text)\{([^{}]*)\}\}", r"\\operatorname{\1}"),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
    (r"\\(math(?:cal|bb|bf|frak|scr)) +([a-zA-Z])", r"\\\1{\2}"),
    (r"\\big[lr]?(?![a-zA-Z])", ""),
    (r"\\(?:limits|nonumber|notag)(?![a-zA-Z])|\\label\{[^{}]*\}", ""),
)
_LIMITS = {"∑", "∏", "max", "min", "sup", "inf", "lim", "argmax", "argmin", "arg max", "arg min"}


def mathml(tex: str, *, display: bool = False) -> str:
    """A formula as MathML (with the TeX source as its `alttext`), or, where the converter does not
    know it, the TeX source itself in a code element."""
    source = tex.strip()
    rewritten = source
    for pattern, replacement in _TEX_REWRITES:
        rewritten = re.sub(pattern, replacement, rewritten)
    try:
        text = latex_to_mathml(rewritten, display="block" if display else "inline")
    except Exception:  # the converter raises many types, IndexError among them
        text = "\\"
    if "\\" in text or "<mi>&</mi>" in text:  # an unknown command or a stray alignment mark
        return f'<code class="tex">{htmllib.escape(source)}</code>'
    soup = BeautifulSoup(text, "html.parser")
    math = soup.find("math")
    assert isinstance(math, Tag)
    math["alttext"] = source
    _mend_mathml(math)
    return str(math)


def _mend_mathml(math: Tag) -> None:
    """What browsers need beyond the converter's output (MathML Core has no `columnalign`)."""
    for cell in math.find_all("mtd", columnalign=True):
        cell["style"] = f"text-align: {cell['columnalign']}"
        del cell["columnalign"]
    for token in math.find_all(["mi", "mo"]):
        text = token.get_text()
        if re.fullmatch(
            r"[A-Za-z]{2,}( [a-z]+)?", text
        ):  # log, softplus: upright, with a thin space
            after = token.find_next_sibling()
            open_bracket = after is not None and after.get_text() in ("(", "[")
            token.name = "mo"
            token["lspace"], token["rspace"] = "0.1em", "0" if open_bracket else "0.167em"
        elif text in ("‖", "|") and not token.get("form"):
            token["stretchy"], token["lspace"], token["rspace"] = "false", "0", "0"
        elif text in ("±", "∓"):
            token.name = "mo"
        elif text in ("(", "[", "{", ")", "]", "}") and not token.get("form"):
            token["form"] = "prefix" if text in "([{" else "postfix"
    for script in math.find_all(["msub", "msup", "msubsup"]):
        base = script.find(True)
        if base is not None and base.name == "mo" and base.get_text() in _LIMITS:
            base["movablelimits"] = "true"
            script.name = {"msub": "munder", "msup": "mover"}.get(script.name, "munderover")


def _maths_plugin(markdown: mistune.Markdown) -> None:
    """`$..$`, `$$..$$` and bare `\\begin{align}` blocks. A dollar opens a formula only before a
    character that is no space, and closes it only after one and not before a digit: prices stay."""
    block = (
        r"^ {0,3}(?:\$\$(?P<tex_block>(?:[^$\\]|\\[\s\S])+?)\$\$[ \t]*$"
        r"|(?P<tex_env>\\begin\{(?P<tex_name>(?:align|equation|gather)\*?)\}[\s\S]+?"
        r"\\end\{(?P=tex_name)\})[ \t]*$)"
    )
    inline = (
        r"\$\$(?P<tex_display>(?:[^$\\`]|\\[\s\S])+?)\$\$"
        r"|(?<!\$)\$(?![\s$])(?P<tex_inline>(?:[^$\\`]|\\[\s\S])+?)(?<!\s)\$(?![\d$])"
    )

    def parse_block(_: Any, match: re.Match[str], state: Any) -> int:
        state.append_token({"type": "maths", "raw": match["tex_block"] or match["tex_env"]})
        return match.end()

    def parse_inline(_: Any, match: re.Match[str], state: Any) -> int:
        display = match["tex_display"] is not None
        token = {"type": "maths" if display else "inline_maths"}
        state.append_token(token | {"raw": match["tex_display"] or match["tex_inline"]})
        return match.end()

    def render_block(_: Any, tex: str) -> str:
        box = '<span class="formula" role="group" aria-label="Formula" tabindex="0">'
        return f"{box}{mathml(tex, display=True)}</span>\n"

    markdown.block.register("maths", block, parse_block, before="list")
    markdown.inline.register("inline_maths", inline, parse_inline, before="link")
    if markdown.renderer is not None and markdown.renderer.NAME == "html":
        markdown.renderer.register("maths", render_block)
        markdown.renderer.register("inline_maths", lambda _, tex: mathml(tex))


class _Renderer(mistune.HTMLRenderer):
    def block_code(self, code: str, info: str | None = None) -> str:
        return highlight(code, (info or "text").split()[0])


_PLUGINS: list[Any] = ["table", "strikethrough", "footnotes", "url", "def_list", _maths_plugin]
_markdown = mistune.create_markdown(renderer=_Renderer(escape=False), plugins=_PLUGINS)
_plain = mistune.create_markdown(renderer=_Renderer(escape=True), plugins=_PLUGINS[-1:])


def markdown(text: str) -> Markup:
    """Markdown with formulas, tables and highlighted code blocks as HTML."""
    return Markup(_markdown(text))


def caption_html(text: str) -> Markup:
    """One paragraph of Markdown with formulas; HTML in it is shown, not obeyed."""
    return Markup(re.sub(r"^<p>|</p>\s*$", "", str(_plain(text)).strip()))


def highlight(code: str, language: str = "python") -> str:
    """Source code as a `<div class="highlight"><pre>` with Pygments' classes."""
    try:
        lexer = get_lexer_by_name(language, stripnl=True)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    marked = str(pygments_highlight(code, lexer, HtmlFormatter(wrapcode=True)))
    # Tokens without a colour of their own need no element; a tagged PDF is a third smaller.
    marked = re.sub(
        r'<span class="(?:n|nn|nb|bp|na|nv|o|p|w|err|si|py)">([^<]*)</span>', r"\1", marked
    )
    if max((len(line) for line in code.splitlines()), default=0) > 84:
        marked = marked.replace('class="highlight"', 'class="highlight long"', 1)
    return marked


# --------------------------------------------------------------------------- notebook to blocks


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def _payload(notebook: Any) -> dict[str, Any] | None:
    """What the sentinel in the last code cell says, or None without one."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for output in code[-1].outputs if code else ():
        data = output.get("data", {}).get(SENTINEL)
        if data is not None:
            return json.loads(data) if isinstance(data, str) else dict(data)
    return None


def verdict(notebook: Path | nbformat.NotebookNode) -> Verdict:
    """None if the notebook ran to its end, otherwise why it did not.

    A run fails by an exception in any cell, or when the last code cell lacks the sentinel: after a
    killed kernel the cells look completed, but nothing has written that.
    """
    nb = _read(notebook) if isinstance(notebook, Path) else notebook
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                what = ": ".join(part for part in (output.ename, output.evalue.strip()) if part)
                what = re.sub(r"\x1b\[[0-9;]*m", "", what).split("\n")[0]
                return f"Code cell {number} of {len(code)} stopped with {what}"
    if _payload(nb) is None:
        reached = max((n for n, cell in enumerate(code, 1) if cell.outputs), default=0)
        return (
            "The run did not reach its end: the last cell left no finishing mark, so the kernel "
            f"was stopped or died. The last output comes from code cell {reached} of {len(code)}."
        )
    return None


def _read(notebook: Path) -> Any:
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise DlopsError(f"There is no notebook {notebook}; execute it first.") from None
    except Exception as error:
        raise DlopsError(f"{notebook} is not a readable notebook: {error}") from error


def _streams_joined(outputs: list[Any]) -> Iterator[Any]:
    """Outputs with neighbouring pieces of the same stream joined and `\\r` lines overwritten."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last["text"] = _text(last.text) + _text(output.text)
        else:
            joined.append(copy.copy(output))
    for output in joined:
        if output.output_type == "stream":
            lines = _text(output.text).replace("\r\n", "\n").split("\n")
            output["text"] = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)
        yield output


def _blocks(notebook: Any) -> Iterator[dict[str, Any]]:
    """The visible parts of a notebook, in order, as the template's blocks."""
    figures = tables = 0
    for cell in notebook.cells:
        tags = _tags(cell)
        failed = any(o.output_type == "error" for o in cell.get("outputs", ()))
        if tags & {"hide", "interactive"} and not failed:
            continue
        if any(tag.startswith("papermill-error") for tag in tags):
            continue
        if cell.cell_type == "markdown":
            yield {"kind": "markdown", "html": markdown(cell.source)}
        if cell.cell_type != "code":
            continue
        if "hide-input" not in tags and cell.source.strip():
            yield {"kind": "code", "html": Markup(highlight(cell.source))}
        for output in _streams_joined(cell.outputs):
            block = _output_block(output)
            if block is None:
                continue
            if block["kind"] == "figure" and block["caption"]:
                figures += 1
                block["number"] = figures
            if block["kind"] == "table" and block["caption"]:
                tables += 1
                block["number"] = tables
            yield block


def _output_block(output: Any) -> dict[str, Any] | None:
    if output.output_type == "stream":
        text = _text(output.text).strip("\n")
        return (
            {"kind": "text", "stream": output.name, "html": Markup(ansi2html(text))}
            if text
            else None
        )
    if output.output_type == "error":
        return {
            "kind": "text",
            "stream": "error",
            "html": Markup(ansi2html("\n".join(output.traceback))),
        }
    data, about = output.get("data", {}), output.get("metadata", {})
    if about.get("live_only") or any("widget-view" in mime for mime in data):
        return None
    for mime in ("image/svg+xml", "image/png", "image/jpeg"):
        if mime in data:
            return _figure_block(mime, data[mime], about.get(mime, {}))
    if "text/markdown" in data:
        return {"kind": "markdown", "html": markdown(_text(data["text/markdown"]))}
    if "text/html" in data:
        caption = caption_html(about.get("text/html", {}).get("caption", ""))
        is_table = "<table" in _text(data["text/html"])
        kind = "table" if is_table else "html"
        return {"kind": kind, "caption": caption, "html": Markup(_text(data["text/html"]))}
    if "text/latex" in data:
        return {"kind": "markdown", "html": markdown(_text(data["text/latex"]))}
    if "text/plain" in data:
        return {
            "kind": "text",
            "stream": "result",
            "html": Markup(ansi2html(_text(data["text/plain"]))),
        }
    return None


def _figure_block(mime: str, data: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    size: dict[str, Any] = {}
    if mime == "image/svg+xml":
        content = _text(data).encode()
    else:
        content = base64.b64decode(_text(data))
        with Image.open(io.BytesIO(content)) as image:
            scale = 96 / (image.info.get("dpi", (96, 96))[0] or 96)
            width = about.get("width") or round(image.width * scale)
            size = {"width": width, "height": round(image.height * width / image.width)}
        if mime == "image/png":
            mime, content = compact(content)
    caption = about.get("caption") or ""
    alt = about.get("alt") or caption or "A figure without a description."
    source = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    return {"kind": "figure", "src": source, "alt": alt, "caption": caption_html(caption), **size}


def compact(png: bytes, *, limit: int = 60_000) -> tuple[str, bytes]:
    """MIME type and bytes of the same picture, smaller where the eye sees no difference.

    Pictures of up to `limit` bytes are left alone. A plot fits a palette of 256 colours; what does
    not (photographs) becomes a JPEG of high quality without chroma subsampling.
    """
    if len(png) <= limit:
        return "image/png", png
    with Image.open(io.BytesIO(png)) as opened:
        rgba = opened.convert("RGBA")
    image = Image.new("RGB", rgba.size, "white")
    image.paste(rgba, mask=rgba.getchannel("A"))
    palette = image.quantize(256, dither=Image.Dither.NONE)
    difference = ImageChops.difference(image, palette.convert("RGB"))
    best = ("image/png", png)
    buffer = io.BytesIO()
    if max(ImageStat.Stat(difference).rms) < 2.5:
        palette.save(buffer, "PNG", optimize=True)
        best = ("image/png", buffer.getvalue())
    else:
        image.save(buffer, "JPEG", quality=90, subsampling=0)
        best = ("image/jpeg", buffer.getvalue())
    return best if len(best[1]) < 0.8 * len(png) else ("image/png", png)


# --------------------------------------------------------------------------- blocks to a document

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_environment.globals["css_string"] = lambda text: Markup(
    '"' + re.sub(r'[\\"<>&\n]', lambda m: f"\\{ord(m[0]):x} ", str(text)) + '"'
)

_ACTIVE = ["script", "iframe", "object", "embed", "applet", "form", "input", "button", "textarea"]
_ACTIVE += ["select", "link", "meta", "base", "frame", "frameset", "audio", "video", "noscript"]
_NUMBER = re.compile(
    r"[-+−±]?[\d.,\s]+(?:e[-+]?\d+)?\s*(?:%|[a-zA-Z]{1,2})?(?:\s*±\s*[\d.]+)?|nan|–|-|"
)


def _clean(soup: BeautifulSoup) -> None:
    """Nothing in the document acts or loads; tables and long outputs are accessible and fit."""
    for tag in soup.find_all(_ACTIVE):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in [n for n in tag.attrs if n.lower().startswith("on")]:
            del tag[name]
        for name in ("href", "src", "xlink:href", "action"):
            value = re.sub(r"[\s\x00-\x1f]", "", str(tag.get(name, ""))).lower()
            if value.startswith(("javascript:", "vbscript:")):
                del tag[name]
    for image in soup.find_all("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.replace_with(f"[{image.get('alt') or 'image'}]")
        elif not image.has_attr("alt"):
            image["alt"] = ""
    for style in soup.find_all("style"):
        if "#T_" not in style.get_text():  # pandas' Styler keeps its own, keyed by table
            style.decompose()
    for table in soup.find_all("table"):
        _clean_table(soup, table)


def _clean_table(soup: BeautifulSoup, table: Tag) -> None:
    del table["border"]
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    width = max((len(row) for row in rows), default=0)
    head = table.select("thead > tr")
    if len(head) == 2 and not any(cell.get_text().strip() for cell in rows[1][1:]):
        rows[0][0].string = rows[1][
            0
        ].get_text()  # pandas puts the index's name in a row of its own
        head[1].decompose()
        del rows[1]
    body = table.find("tbody")
    body_rows = [row.find_all(["th", "td"]) for row in body.find_all("tr")] if body else []
    for row in rows:
        for position, cell in enumerate(row):
            if cell.name == "th" and not cell.has_attr("scope"):
                cell["scope"] = "col" if cell.find_parent("thead") else "row"
            column = [
                r[position].get_text().strip() for r in body_rows if len(r) == width == len(row)
            ]
            if column and any(column) and all(_NUMBER.fullmatch(text) for text in column):
                _add_class(cell, "number")
            for text in cell.find_all(string=re.compile("_")) if cell.name == "th" else ():
                pieces = str(text).split("_")
                text.replace_with(
                    BeautifulSoup("_<wbr>".join(map(htmllib.escape, pieces)), "html.parser")
                )
    if width > 7:
        _add_class(table, "wide" if width <= 13 else "widest")
    box = soup.new_tag("div", attrs={"class": "scroll", "role": "group", "tabindex": "0"})
    box["aria-label"] = "Table"
    table.wrap(box)


def _add_class(tag: Tag, name: str) -> None:
    tag["class"] = " ".join([*map(str, tag.get_attribute_list("class")), name])


def _contents(article: Tag) -> list[dict[str, Any]]:
    """Gives every heading an id, and returns the tree of level-2 and level-3 headings."""
    used: set[str] = {str(tag["id"]) for tag in article.find_all(id=True)}
    entries: list[dict[str, Any]] = []
    for heading in article.find_all(["h1", "h2", "h3", "h4"]):
        text = " ".join(heading.get_text().split())
        if not heading.get("id"):
            stem = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
            name, number = stem, 2
            while name in used:
                name, number = f"{stem}-{number}", number + 1
            used.add(name)
            heading["id"] = name
        if heading.name == "h2":
            entries.append({"id": heading["id"], "text": text, "children": []})
        elif heading.name == "h3" and entries:
            entries[-1]["children"].append({"id": heading["id"], "text": text})
    return entries


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _render(template: str, **values: Any) -> str:
    return _environment.get_template(template).render(**values)


def _summary(notebook: Any, html: Path, title: str | None, failed: Verdict) -> dict[str, Any]:
    """The record beside the HTML file: what the index knows of this report."""
    said = _payload(notebook) or {}
    first = re.search(
        r"^# +(.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M
    )
    heading = (
        BeautifulSoup(caption_html(first[1]), "html.parser").get_text() if first else html.stem
    )
    parameters = notebook.metadata.get("papermill", {}).get("parameters", {})
    return {
        "id": said.get("id", html.stem),
        "title": title or said.get("title") or heading,
        "assignment": said.get("assignment", ""),
        "preset": said.get("preset") or html.resolve().parent.name,
        "parameters": dict(said.get("parameters") or parameters),
        "headline": {str(k): str(v) for k, v in dict(said.get("headline") or {}).items()},
        "failed": failed,
        "html": html.name,
        "pdf": html.with_suffix(".pdf").name,
        "commit": said.get("commit", ""),
        "when": said.get("when") or datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _article(
    notebook: Any, summary: Mapping[str, Any]
) -> tuple[BeautifulSoup, list[dict[str, Any]]]:
    text = _render("article.html.j2", blocks=list(_blocks(notebook)), report=summary)
    soup = BeautifulSoup(text, "html.parser")
    _clean(soup)
    article = soup.find("article")
    assert isinstance(article, Tag)
    return soup, _contents(article)


def export(notebook: Path, html: Path, *, title: str | None = None) -> Verdict:
    """Write an executed notebook as one self-contained HTML file, and `<name>.json` beside it.

    A run that failed is exported too, under a banner that says why. Returns the verdict: None, or
    the reason. `title` replaces the one that the notebook states.
    """
    nb = _read(notebook)
    failed = verdict(nb)
    summary = _summary(nb, html, title, failed)
    soup, contents = _article(nb, summary)
    _write(html, _render("report.html.j2", report=summary, article=Markup(soup), contents=contents))
    _write(html.with_suffix(".json"), json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return failed


def index(reports_dir: Path) -> Path:
    """Write `index.html` from the `<preset>/<name>.json` records, and return its path."""
    sections: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(reports_dir.glob("*/*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            page = path.with_name(report["html"])
            report["href"] = quote(f"{path.parent.name}/{report['html']}")
            report["pdf_href"] = quote(f"{path.parent.name}/{report['pdf']}")
            report["has_pdf"] = path.with_name(report["pdf"]).is_file()
        except (ValueError, KeyError, TypeError) as error:
            raise DlopsError(
                f"{path} is no report's record ({error!r}); export it again."
            ) from None
        if page.is_file():
            groups = sections.setdefault(path.parent.name, {})
            groups.setdefault(report["assignment"] or "Other reports", []).append(report)
    order = {preset: position for position, preset in enumerate(PRESET_ORDER)}
    names = sorted(sections, key=lambda name: (order.get(name, len(order)), name))
    target = reports_dir / "index.html"
    _write(
        target,
        _render(
            "index.html.j2", sections=[(name, sorted(sections[name].items())) for name in names]
        ),
    )
    return target


def hand_in(
    reports: list[Path], html: Path, *, title: str, author: str, roll_number: str, date: str
) -> Verdict:
    """Write several reports (exported `.html` files or executed notebooks) as one document.

    It has a cover, contents with links, and a chapter a report: headings go down a level, ids get
    the chapter's prefix. Returns None, or which chapters come from failed runs.
    """
    chapters: list[dict[str, Any]] = []
    for number, path in enumerate(reports, 1):
        if path.suffix == ".ipynb":
            nb = _read(path)
            summary = _summary(nb, path, None, verdict(nb))
            soup, _ = _article(nb, summary)
        elif path.is_file():
            soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        else:
            raise DlopsError(f"There is no report {path}; run `dlops report` first.")
        article = soup.find("article", id="report")
        if not isinstance(article, Tag):
            raise DlopsError(f"{path} is no report exported by dlops; run `dlops report` again.")
        chapters.append(_chapter(article, number))
    if not chapters:
        raise DlopsError("A document to hand in needs at least one report.")
    cover = {"title": title, "author": author, "roll_number": roll_number, "date": date}
    _write(html, _render("hand_in.html.j2", chapters=chapters, **cover))
    bad = [f"chapter {c['number']} ({c['title']})" for c in chapters if c["failed"]]
    return f"Not every run finished: {', '.join(bad)}." if bad else None


def _chapter(article: Tag, number: int) -> dict[str, Any]:
    prefix = f"c{number}-"
    for tag in article.find_all(True):
        if tag.get("id"):
            tag["id"] = prefix + str(tag["id"])
        if str(tag.get("href", "")).startswith("#"):
            tag["href"] = f"#{prefix}{str(tag['href'])[1:]}"
        for name in ("aria-labelledby", "aria-describedby", "headers", "for"):
            if tag.get(name):
                value = tag[name]
                names = value if isinstance(value, list) else str(value).split()
                tag[name] = " ".join(prefix + word for word in names)
        if re.fullmatch("h[1-5]", tag.name):
            tag.name = f"h{int(tag.name[1]) + 1}"
        if tag.name == "style":
            tag.string = tag.get_text().replace("#T_", f"#{prefix}T_")
    heading = article.find("h2")
    if heading is None:
        heading = BeautifulSoup(f'<h2 id="{prefix}top">Report {number}</h2>', "html.parser").h2
        assert heading is not None
        article.insert(0, heading)
    sections = [
        {"id": tag["id"], "text": " ".join(tag.get_text().split())}
        for tag in article.find_all("h3")
    ]
    return {
        "number": number,
        "id": heading["id"],
        "title": " ".join(heading.get_text().split()),
        "sections": sections,
        "failed": article.find(class_="failed") is not None,
        "html": Markup(article.decode_contents()),
    }


# --------------------------------------------------------------------------- PDF


def browser() -> str | None:
    """The path of an installed Chrome, Chromium or Edge, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    for name in (*names, "microsoft-edge", "microsoft-edge-stable", "msedge", "brave-browser"):
        if found := shutil.which(name):
            return found
    usual = [
        f"{folder}/{name}.app/Contents/MacOS/{name}"
        for folder in ("/Applications", f"{Path.home()}/Applications")
        for name in ("Google Chrome", "Chromium", "Microsoft Edge")
    ] + [
        os.path.join(os.environ.get(variable, ""), *part.split("/"))
        for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
        for part in (
            "Google/Chrome/Application/chrome.exe",
            "Microsoft/Edge/Application/msedge.exe",
        )
    ]
    return next((path for path in usual if os.path.isabs(path) and os.path.isfile(path)), None)


def pdf(html: Path, pdf: Path) -> None:
    """Print an exported page as a tagged A4 PDF with page numbers and an outline."""
    program = browser()
    if program is None:
        raise DlopsError(
            "No PDF: neither Chrome, Chromium nor Edge was found; install one of them, or print "
            f"{html} from any browser."
        )
    if not html.is_file():
        raise DlopsError(f"There is no page {html} to print; export the report first.")
    pdf.parent.mkdir(parents=True, exist_ok=True)
    temporary = pdf.resolve().with_name(
        f"{pdf.stem}-{os.getpid()}.tmp.pdf"
    )  # a snap writes no hidden files
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ]
        command += ["--no-pdf-header-footer", "--generate-pdf-document-outline"]
        command += [f"--user-data-dir={profile}", f"--print-to-pdf={temporary}"]
        if sys.platform != "win32" and os.geteuid() == 0:
            command.append("--no-sandbox")
        try:
            done = subprocess.run(
                [*command, html.resolve().as_uri()], capture_output=True, text=True, timeout=180
            )
            if done.returncode or not temporary.is_file():
                said = done.stderr.strip().splitlines() or ["it said nothing"]
                raise DlopsError(f"{program} could not print {html}: {said[-1]}")
            os.replace(temporary, pdf)
        except subprocess.TimeoutExpired:
            raise DlopsError(f"{program} did not print {html} within 3 minutes.") from None
        except OSError as error:
            raise DlopsError(f"{program} could not print {html}: {error}") from None
        finally:
            temporary.unlink(missing_ok=True)
