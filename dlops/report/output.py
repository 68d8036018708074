"""Figures and tables as a notebook's output: ordinary HTML, the same in every viewer."""

from __future__ import annotations

import base64
import html
import io
import re
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image

from dlops.report.style import DARK, NARROW, WIDE, Drawing, style
from dlops.settings import DlopsError

HEAVY = 100_000  # characters
_MARK = r'<use href="[^"]+" x="[^"]+" y="[^"]+" style='
MARKS = re.compile(rf'{_MARK}"([^"]*)"/>(?:\s*{_MARK}"\1"/>)+')


def show(
    figure: Drawing | Figure, caption: str, alt: str, *, key: str = "", where: Any = None
) -> None:
    """Display a figure with its caption and a text for those who cannot see it.

    figure: a function that draws it (see style.py), which is called for a wide and a narrow page,
    or a Figure, for all. key: what claims and links call it, "curves" -> "#fig-curves". where: a
    display handle to fill, instead of this cell's output.
    """
    if not caption.strip() or not alt.strip():
        raise DlopsError("A figure needs a caption and an alt text that says what it shows.")
    found = HTML(_figure_html(figure, caption, alt, key))
    where.update(found) if where else display(found)


def _figure_html(figure: Drawing | Figure, caption: str, alt: str, key: str) -> str:
    narrow = ""
    if not isinstance(figure, Figure):
        narrow = f'<source media="(max-width: 30em)" srcset="{picture(figure, NARROW)}">'
    name = f' id="fig-{html.escape(key)}"' if key else ""
    look = 'style="width: 100%; max-width: 46rem"'
    wide = f'<img src="{picture(figure, WIDE)}" alt="{html.escape(alt)}" {look}>'
    words = f"<figcaption>{html.escape(caption, quote=False)}</figcaption>"
    return f'<figure{name} class="dlops"><picture>{narrow}{wide}</picture>{words}</figure>'


def picture(figure: Drawing | Figure, width: float) -> str:
    """The figure as a data: URI.

    Lines and text are SVG, which suits light and dark pages; photographs, and what would be more
    than HEAVY as SVG, are WebP on light paper.
    """
    with style(width):
        drawn = figure if isinstance(figure, Figure) else figure()
        arrays = [image.get_array() for axes in drawn.axes for image in axes.images]
        if not any(np.ndim(array) == 3 for array in arrays if array is not None):
            svg = _svg(drawn)
            if len(svg) <= HEAVY:
                return _svg_uri(_adaptive(svg))
        return _photograph(drawn)


def _adaptive(svg: str) -> str:
    """The drawing with its colours as variables, which a dark page sets anew."""
    names = {color: f"--c{i}" for i, color in enumerate(DARK) if color in svg}
    for color, name in names.items():
        svg = svg.replace(color, f"var({name})")
    light = ";".join(f"{name}:{color}" for color, name in names.items())
    dark = ";".join(f"{name}:{DARK[color]}" for color, name in names.items())
    look = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda m: m[1] + look, svg, count=1)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _smaller(buffer.getvalue())


def _smaller(svg: str) -> str:
    """The same drawing without what no eye sees: metadata, long names, digits below 1/100 point."""
    svg = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", "", svg)
    svg = svg.replace("DejaVuSans-", "d").replace("xlink:href", "href")
    svg = re.sub(r'(?<=<g) id="[^"]*"', "", svg)
    svg = re.sub(r'(?<= [xy]=")-?[\d.]+', lambda m: f"{float(m[0]):.4g}", svg)
    svg = re.sub(r"translate\(([-\d.]+) ([-\d.]+)\)", _shorter_place, svg)
    svg = re.sub(r' d="([^"]*)"( transform="scale\(0.015625\)")?', _shorter_path, svg)
    svg = re.sub(r' style="[^"]*"', lambda m: " style=" + m[0][7:].replace(" ", ""), svg)
    svg = MARKS.sub(_shorter_marks, svg)
    svg = _without_bare_groups(re.sub(r"\s*\n\s*", "", svg))
    return re.sub(r'<use href="#d3"[^>]*>', "", svg).replace('"', "'")  # d3 is the blank


def _shorter_marks(match: re.Match[str]) -> str:
    """Neighbouring marks of one style, which is said once."""
    style = f' style="{match[1]}"'
    return f"<g{style}>{match[0].replace(style, '')}</g>"


def _without_bare_groups(svg: str) -> str:
    """Without the groups that have no attributes."""
    bare: list[bool] = []

    def tag(match: re.Match[str]) -> str:
        if match[0] != "</g>":
            bare.append(match[0] == "<g>")
        dropped = bare[-1] if match[0] != "</g>" else bare.pop()
        return "" if dropped else match[0]

    svg = re.sub(r"<g\b[^>]*/>", "", svg)  # groups of nothing
    return re.sub(r"</?g\b[^>]*>", tag, svg)


def _shorter_place(match: re.Match[str]) -> str:
    return f"translate({float(match[1]):.4g} {float(match[2]):.4g})"


def _shorter_path(match: re.Match[str]) -> str:
    """A path with fewer digits; a letter's has 64 steps a point, of which it needs 8."""
    step, end = (8, ' transform="scale(0.125)"') if match[2] else (1, "")

    def number(found: re.Match[str]) -> str:
        return f"{round(float(found[0]) / step, 2 if step == 1 else 0):g}"

    path = re.sub(r"-?\d[\d.]*", number, match[1])
    path = re.sub(r"\s*([A-Za-z])\s*", r"\1", path)
    path = re.sub(r"\s+", ",", path.strip())
    return f' d="{path}"{end}'


def _svg_uri(svg: str) -> str:
    """Percent-encoded: a fifth shorter than base64."""
    return "data:image/svg+xml," + quote(svg, safe="~()*!.'/:=,;+@$-_")


def _photograph(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor=figure.get_facecolor())
    smaller = io.BytesIO()
    Image.open(buffer).convert("RGB").save(smaller, "WEBP", quality=78, method=4)
    return "data:image/webp;base64," + base64.b64encode(smaller.getvalue()).decode()


def table(frame: pd.DataFrame, caption: str, *, index: bool = False, digits: int = 4) -> None:
    """Display a table with its caption; columns of words are aligned left, of numbers right."""
    if not caption.strip():
        raise DlopsError("A table needs a caption.")
    shown = frame.reset_index() if index else frame
    number = [_is_number(shown[name]) for name in shown.columns]
    kind = ["number" if flag else "text" for flag in number]

    def cell(tag: str, value: Any, i: int) -> str:
        side = "right" if number[i] else "left"  # for pages without our style sheet
        return (
            f'<{tag} class="{kind[i]}" style="text-align: {side}">{_words(value, digits)}</{tag}>'
        )

    head = "".join(cell("th", name, i) for i, name in enumerate(shown.columns))
    rows = (
        "".join(cell("td", value, i) for i, value in enumerate(row))
        for row in shown.itertuples(index=False)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    words = f"<figcaption>{html.escape(caption, quote=False)}</figcaption>"
    rest = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    display(HTML(f'<figure class="dlops table">{words}{rest}</figure>'))


def _is_number(column: pd.Series) -> bool:
    """Whether all that a column shows are numbers, perhaps with a unit."""
    form = re.compile(r"[-+−±]?[\d.,]+(e[-+]?\d+)?( ?%| \w{1,3})?|nan|–|")
    return all(form.fullmatch(str(value).strip()) for value in column)


def _words(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:.{digits}g}"
    return html.escape("–" if value is None else str(value), quote=False)
