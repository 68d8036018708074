"""Executed notebooks as HTML, PDF, index and hand-in document."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import nbconvert
import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup
from nbconvert.nbconvertapp import NbConvertApp
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dlops import export
from dlops.export import printer
from dlops.export.maths import markdown, mathml
from dlops.export.printer import printable
from dlops.settings import DlopsError

PAYLOAD = {
    "id": "q1-1-sgd",
    "title": "Can the class <b> be learnt?",
    "assignment": "Assignment 1",
    "preset": "quick",
    "parameters": {"lr": 0.05},
    "headline": [["Test top-5", "0.981"], ["Test top-1", "0.873"]],
    "commit": "0123456789abcdef",
    "when": "2026-01-02T03:04:05+00:00",
}


def png(size=(300, 200), dpi=150, noise=False) -> str:
    image = Image.effect_noise(size, 90) if noise else Image.new("RGB", size, "navy")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(dpi, dpi))
    return base64.b64encode(buffer.getvalue()).decode()


def display(data, metadata=None):
    return new_output("display_data", data=data, metadata=metadata or {})


def code(source="x = 1", *outputs, tags=()):
    cell = new_code_cell(source, outputs=list(outputs), execution_count=1)
    cell.metadata["tags"] = list(tags)
    return cell


def figure(alt="A falling line.", caption="The loss falls."):
    return display({"image/png": png()}, {"image/png": {"alt": alt, "caption": caption}})


def finish(**changes):
    return code("finish()", display({export.SENTINEL: PAYLOAD | changes}), tags=["hide-input"])


def saved(path: Path, *cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def exported(tmp_path, *cells, name="report") -> BeautifulSoup:
    """The page made of these cells and a sentinel."""
    page = tmp_path / "quick" / f"{name}.html"
    export.export(saved(tmp_path / f"{name}.ipynb", *cells, finish()), page)
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


# ---------------------------------------------------------------------------- maths


def test_inline_and_display_formulas_become_mathml():
    html = markdown("With $z \\in \\mathbb{R}^{C}$:\n\n$$\\ell = -\\log \\frac{a}{b}$$\n\nand on")
    soup = BeautifulSoup(html, "html.parser")
    inline, display = soup.find_all("math")
    assert (inline["display"], display["display"]) == ("inline", "block")
    assert "ℝ" in inline.get_text() and display.find("mfrac")
    assert display["alttext"] == "\\ell = -\\log \\frac{a}{b}"
    assert "$" not in soup.get_text()


@pytest.mark.parametrize(
    "tex",
    [
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{align} a &= b \\ c &= d \end{align}",
        r"\begin{cases} x & \text{if } x > 0 \\ 0 & \text{otherwise} \end{cases}",
        r"\lVert x_i - c_{y_i} \rVert_2^2",
        r"\operatorname*{softmax}_j z_j",
        r"\arg\max_j z_j",
        r"\max\bigl(0,\ d_{ap} - d_{an} + m\bigr)",
        r"\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}",
    ],
)
def test_the_formulas_of_the_reports_convert(tex):
    soup = BeautifulSoup(mathml(tex, display=True), "html.parser")
    assert soup.find("math") and "&" not in soup.get_text() and "\\" not in soup.get_text()


def test_aligned_equations_get_a_row_each_and_no_columnalign():
    math = BeautifulSoup(mathml(r"\begin{align} a &= b \\ c &= d \end{align}"), "html.parser")
    assert len(math.find_all("mtr")) == 2
    assert not math.find(columnalign=True)  # browsers ignore it
    assert "right" in math.find("mtd")["style"]
    assert "(1)" not in math.get_text()


def test_script_letters_convert_without_braces_too():
    assert mathml(r"\mathcal L").count("ℒ") == mathml(r"\mathcal{L}").count("ℒ") == 1


def test_minimum_has_its_index_below():
    math = BeautifulSoup(mathml(r"\min_{n} d", display=True), "html.parser")
    assert math.find("munder").find("mo").get_text() == "min"


@pytest.mark.parametrize("tex", [r"\foo{x}", r"\frac{a}{", "a & b", "}{"])
def test_unconvertible_formulas_stay_as_tex_in_a_code_element(tex):
    soup = BeautifulSoup(mathml(tex), "html.parser")
    assert soup.find("math") is None
    assert soup.find("code").get_text() == tex


@pytest.mark.parametrize(
    "text",
    [
        "`$HOME` and `$x$`",
        "```sh\necho $x$ $y$\n```",
        "    indented = '$x$'",
        r"It costs \$5 and \$6.",
        "It costs $5 and $6, or $7-$8.",
        "An unbalanced $ sign, and another$ one.",
        "Only $one dollar.",
        "from $5 with `a$b`",
    ],
)
def test_dollars_that_are_no_formula_stay(text):
    soup = BeautifulSoup(markdown(text), "html.parser")
    assert soup.find("math") is None and soup.find(class_="tex") is None
    assert soup.get_text().count("$") == text.count("$")
    assert "\\$" not in soup.get_text()


def test_underscores_and_stars_in_formulas_are_no_emphasis():
    soup = BeautifulSoup(markdown("$a_1 * b_2$ and $c_1 * d_2$"), "html.parser")
    assert len(soup.find_all("math")) == 2 and soup.find("em") is None


# ---------------------------------------------------------------------------- verdicts


def test_a_finished_run_passes(tmp_path):
    assert export.verdict(saved(tmp_path / "a.ipynb", code(), finish())) is None


def test_an_exception_fails_even_with_a_sentinel(tmp_path):
    error = new_output("error", ename="ValueError", evalue="lr is -1\nmore", traceback=["tb"])
    reason = export.verdict(saved(tmp_path / "a.ipynb", code("1"), code("x", error), finish()))
    assert reason == "Code cell 2 of 3 stopped with ValueError: lr is -1"


def test_a_killed_kernel_fails(tmp_path):
    out = new_output("stream", name="stdout", text="epoch 1\n")
    cells = [code("a", out), code("b"), code("finish()")]
    for cell in cells:  # what papermill writes after the kernel has died
        cell.metadata["papermill"] = {"status": "completed", "exception": False}
    reason = export.verdict(saved(tmp_path / "a.ipynb", *cells))
    assert "did not reach its end" in reason and "code cell 1 of 3" in reason


def test_a_sentinel_that_is_not_in_the_last_cell_does_not_count(tmp_path):
    assert export.verdict(saved(tmp_path / "a.ipynb", finish(), code("later()")))


def test_a_failed_report_carries_the_reason_and_its_outputs(tmp_path):
    error = new_output("error", ename="E", evalue="<i>why</i>", traceback=["\x1b[31mlast\x1b[0m"])
    cells = [new_markdown_cell("# A title"), code("x", error, tags=["hide"])]
    page = tmp_path / "quick" / "a.failed.html"
    reason = export.export(saved(tmp_path / "a.ipynb", *cells), tmp_path / "quick" / "a.html")
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert soup.title.get_text() == "FAILED: A title"
    assert soup.find(class_="failed").get_text().startswith("FAILED")
    assert reason in soup.find(class_="failed").get_text() and "<i>why</i>" in reason
    assert "last" in soup.find(class_="error").get_text()


def test_a_failed_run_leaves_the_good_page_and_a_good_run_ends_the_failed_one(tmp_path):
    page = tmp_path / "quick" / "report.html"
    exported(tmp_path, new_markdown_cell("# Good"))
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert export.export(saved(tmp_path / "b.ipynb", new_markdown_cell("# Bad"), code()), page)
    after = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert after.pop("report.failed.html") and after == before
    exported(tmp_path, new_markdown_cell("# Good"))
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    (tmp_path / "a.ipynb").write_text("{}")
    with pytest.raises(DlopsError, match=r"a\.ipynb is not a readable notebook"):
        export.export(tmp_path / "a.ipynb", tmp_path / "a.html")
    with pytest.raises(DlopsError, match="no notebook"):
        export.export(tmp_path / "b.ipynb", tmp_path / "b.html")


# ---------------------------------------------------------------------------- pages


def test_nothing_in_a_page_acts_or_loads(tmp_path):
    bad = (
        "<script>alert(1)</script><iframe src='http://x'></iframe><img src='http://x/y.png'>"
        "<p onclick='go()'>text</p><a href=' java\nscript:go()'>link</a><link href='http://x/a.css'>"
    )
    widget = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
        "text/plain": "Slider()",
    }
    soup = exported(
        tmp_path,
        new_markdown_cell(f"# Title\n\n{bad}\n\n![](http://x/z.png)"),
        code("show()", display({"text/html": bad}), display(widget)),
        code("js()", display({"application/javascript": "alert(1)"})),
    )
    assert soup.find(["script", "iframe", "link"]) is None
    assert all(image["src"].startswith("data:") for image in soup.find_all("img"))
    assert not [tag for tag in soup.find_all(True) if any(a.startswith("on") for a in tag.attrs)]
    assert "javascript" not in str([tag.get("href") for tag in soup.find_all("a")]).lower()
    assert "Slider()" not in soup.get_text()
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"
    )
    assert soup.html["lang"] == "en" and soup.find("meta", {"name": "viewport"})
    assert soup.find("a", class_="skip")["href"] == f"#{soup.main['id']}"


def test_plain_images_have_alt_text_numbered_captions_and_the_size_they_ask_for(tmp_path):
    sized = display({"image/png": png()}, {"image/png": {"width": 192, "caption": "Two."}})
    soup = exported(
        tmp_path,
        code("a", figure('First <alt> "quoted"', "A class <b> and $x_1$.")),
        code("b", sized),
    )
    first, second = soup.find_all("figure")
    assert first.img["alt"] == 'First <alt> "quoted"' and second.img["alt"] == "Two."
    assert first.figcaption.get_text().startswith("Figure 1. A class <b> and")
    assert first.figcaption.find("math") and second.figcaption.get_text() == "Figure 2. Two."
    assert second.img["width"] == "192" and first["id"] == "figure-1"


def figures(*keys, table=()):
    """A cell that shows figures and tables as ordinary HTML outputs, as notebooks do."""
    image = f'<img src="data:image/png;base64,{png()}" alt="A line.">'
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{png()}">'
    outputs = []
    for key in keys:
        kind, inner = ' class="dlops"', f"<picture>{dark}{image}</picture>"
        if key in table:
            kind, inner = ' class="dlops table"', "<table><tr><td>1</td></tr></table>"
        caption = f"<figcaption>About {key}.</figcaption>"
        outputs.append(
            display({"text/html": f'<figure id="fig-{key}"{kind}>{inner}{caption}</figure>'})
        )
    return code("show()", *outputs, tags=["hide-input"])


def test_figures_and_tables_are_numbered_apart_and_links_name_them(tmp_path):
    soup = exported(
        tmp_path,
        new_markdown_cell(
            "# T\n\n[Figure](#fig-b), [the table](#fig-t), [Table](#fig-t), [x](#no)"
        ),
        figures("a", "t", "b", table=["t"]),
    )
    captions = [c.get_text() for c in soup.find_all("figcaption")]
    assert captions == ["Figure 1. About a.", "Table 1. About t.", "Figure 2. About b."]
    links = [(a.get_text(), a["href"]) for a in soup.article.find_all("a")]
    assert links == [("Figure 2", "#fig-b"), ("the table", "#fig-t"), ("Table 1", "#fig-t")]
    assert soup.picture.source["srcset"].startswith("data:image/png")  # the dark variant stays
    boxes = soup.select("figure .scroll")
    assert [box["aria-label"] for box in boxes] == ["Figure 1", "Table 1", "Figure 2"]
    assert all(box["tabindex"] == "0" and box["role"] == "region" for box in boxes)


def test_captions_stand_in_what_plain_nbconvert_writes(tmp_path):
    nb = new_notebook(cells=[figures("a")])
    text, _ = nbconvert.HTMLExporter(template_name="basic").from_notebook_node(nb)
    assert "About a." in text and 'alt="A line."' in text


def test_folded_cells_are_closed_details_with_a_name(tmp_path):
    log = new_output("stream", name="stdout", text="epoch 1")
    named = code("show()", display({"text/plain": "x"}), tags=["fold", "hide-input"])
    named.metadata["summary"] = "All epochs"
    soup = exported(
        tmp_path,
        code("lr = None", tags=["parameters"]),
        new_markdown_cell("# T\n\n## The log"),
        code("print(log)", log, tags=["fold"]),
        named,
        code("nothing()", tags=["fold", "hide-input"]),
    )
    folds = soup.find_all("details", class_="fold")
    assert [f.summary.get_text() for f in folds] == ["Parameters", "The log", "All epochs"]
    assert not any(f.has_attr("open") for f in folds)
    assert "epoch 1" in folds[1].get_text() and "print(log)" in folds[1].get_text()


def test_cell_tags_hide_what_they_should(tmp_path):
    out = new_output("stream", name="stdout", text="output\n")
    soup = exported(
        tmp_path,
        code(
            "hidden_cell()",
            new_output("stream", name="stdout", text="hidden output"),
            tags=["hide"],
        ),
        code("interactive_cell()", tags=["interactive"]),
        code("hidden_input()", out, tags=["hide-input"]),
        code("shown()", display({"text/plain": "live"}, {"live_only": True})),
    )
    text = soup.main.get_text()
    assert "shown()" in text and "output" in text
    for absent in ("hidden_cell", "hidden output", "interactive_cell", "hidden_input", "live"):
        assert absent not in text


def test_streams_are_joined_coloured_and_overwritten(tmp_path):
    streams = [
        new_output("stream", name="stdout", text="epoch 1\nepo"),
        new_output("stream", name="stdout", text="ch 2 < 3\n"),
        new_output("stream", name="stderr", text=" 0%|\r50%|\r100%|\n\x1b[31mred\x1b[0m"),
    ]
    soup = exported(tmp_path, code("a", *streams))
    stdout, stderr = soup.find_all("pre", class_="output")
    assert stdout.get_text() == "epoch 1\nepoch 2 < 3"
    assert stderr.get_text() == "100%|\nred" and stderr.find(class_="ansi-red-fg")


def test_tables_scroll_and_name_their_headers(tmp_path):
    html = (
        '<style>.dataframe td {color: red}</style><table border="1" class="dataframe">'
        "<thead><tr><th>epoch</th><th>val_loss</th><th>name</th></tr></thead>"
        "<tbody><tr><th>1</th><td>0.25</td><td>sgd</td></tr></tbody></table>"
    )
    caption = {"text/html": {"caption": "All epochs."}}
    soup = exported(tmp_path, code("t", display({"text/html": html}, caption)))
    box = soup.find("figure", class_="table")
    assert box.figcaption.get_text() == "Table 1. All epochs."
    assert box.find(class_="scroll")["tabindex"] == "0"
    assert box.find("style") is None and not box.table.has_attr("border")
    assert [th["scope"] for th in box.find_all("th")] == ["col", "col", "col", "row"]
    cells = box.find_all(["th", "td"])
    assert [c.get_text() for c in cells if "number" in c.get("class", ())] == [
        *("epoch", "val_loss"),
        *("1", "0.25"),
    ]


def test_headings_get_unique_anchors_and_a_list_of_contents(tmp_path):
    soup = exported(
        tmp_path, new_markdown_cell("# T\n\n## Data & more\n\n### Part\n\n## Method\n\n### Part")
    )
    links = [a["href"] for a in soup.nav.find_all("a")]
    assert links == ["#data-more", "#part", "#method", "#part-2"]
    assert all(soup.find(id=link[1:]) for link in links)


def test_code_is_highlighted_verbatim_and_reached_by_the_keyboard(tmp_path):
    source = "def f(x):\n    return '$a$ <b>' if x < 1 else r'\\frac'  # " + "-" * 60
    soup = exported(tmp_path, new_markdown_cell("# T\n\n```python\ny\n```\n\n    z"), code(source))
    markdown_code, indented, cell = soup.select("div.highlight, pre:not(.highlight pre)")
    assert cell.get_text().strip() == source
    assert cell.find("span", class_="k").get_text() == "def"
    assert [box["tabindex"] for box in (markdown_code, indented, cell)] == ["0", "0", "0"]


def test_titles_are_the_payloads_and_escaped_everywhere(tmp_path):
    bad = '</style><b>"\\'
    page = tmp_path / "quick" / "report.html"
    notebook = saved(tmp_path / "report.ipynb", new_markdown_cell("# Plain"), finish(title=bad))
    export.export(notebook, page, title="What was asked for")
    text = page.read_text()
    assert BeautifulSoup(text, "html.parser").title.get_text() == bad
    assert "</style><b>" not in text and text.count("</style>") == 2
    index = BeautifulSoup(export.index(tmp_path, "quick").read_text(), "html.parser")
    assert index.find("a", string=bad) and index.find("b", string=re.compile("style")) is None
    export.export(saved(notebook, finish(title="")), page, title="Asked for")
    assert json.loads(page.with_suffix(".json").read_text())["title"] == "Asked for"


def test_export_is_atomic(tmp_path, monkeypatch):
    page = tmp_path / "quick" / "report.html"
    exported(tmp_path, new_markdown_cell("# Old"))
    before = page.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        export.export(tmp_path / "report.ipynb", page, title="New")
    assert page.read_bytes() == before


# ---------------------------------------------------------------------------- index and hand-in


def reported(tmp_path, name="a", preset="full", **changes):
    """A report in the reports folder of this test."""
    cells = [new_markdown_cell("# Which class?\n\nName the *class* of an image.\n\nMore.")]
    notebook = saved(tmp_path / "nb" / f"{name}.ipynb", *cells, finish(preset=preset, **changes))
    assert export.export(notebook, tmp_path / "reports" / preset / f"{name}.html") is None


def front(tmp_path, preset=None):
    page = export.index(tmp_path / "reports", preset)
    return page, BeautifulSoup(page.read_text(), "html.parser")


def test_front_page_lists_what_is_published_and_own_runs_have_their_own(tmp_path):
    for preset in ("quick", "full", "lite"):
        reported(tmp_path, "a b", preset, title=f"Class, {preset}")
    (tmp_path / "reports" / "full" / "a b.pdf").write_bytes(b"%PDF")
    page, soup = front(tmp_path)
    assert page == tmp_path / "reports" / "index.html"
    links = [a["href"] for a in soup.select(".question a")]
    assert links == ["full/a%20b.html", "full/a%20b.pdf", "lite/a%20b.html"]
    assert soup.h4.get_text() == "Which class?"
    assert soup.select_one(".question > p").get_text() == "Name the class of an image."
    assert "Test top-5 0.981" in soup.select_one(".question li").get_text()
    before = page.read_bytes()
    page, soup = front(tmp_path, "quick")
    assert page == tmp_path / "reports" / "quick" / "index.html"
    assert [a["href"] for a in soup.select(".question a")] == ["a%20b.html"]
    assert (tmp_path / "reports" / "index.html").read_bytes() == before


def test_a_foreign_json_file_is_passed_over(tmp_path):
    reported(tmp_path)
    for name, text in {"x": "{", "y": "[]", "z": '{"id": 1}'}.items():
        (tmp_path / "reports" / "full" / f"{name}.json").write_text(text)
    assert len(front(tmp_path)[1].select(".question li")) == 1


def test_scores_of_other_numbers_of_classes_stand_in_another_chart(tmp_path):
    rows = [
        {"name": "few", "top5": 0.98, "low": 0.9, "high": 0.99, "classes": 10, "chance": 0.5},
        {"name": "many", "top5": 0.5, "classes": 20, "chance": 0.25, "published": 0.6},
    ]
    reported(tmp_path, results=rows)
    few, many = front(tmp_path)[1].select(".chart")
    assert few.figcaption.get_text() == "10 classes, preset full"
    assert few.select_one("td.number").get_text() == "98.0 %"
    assert "90.0 to 99.0 %" in few.get_text() and "few" not in many.get_text()
    assert many.select_one(".published")["style"] == "left:60.00%" and not many.select(".range")


def test_front_page_tells_each_claim_once_with_the_verdict_of_each_preset(tmp_path):
    claim = {"sentence": "A beats B.", "quantity": 0.0312, "interval": [0.01, 0.05], "n": 5}
    reported(tmp_path, preset="full", claims=[claim | {"verdict": "supported", "anchor": "fig-a"}])
    reported(tmp_path, preset="lite", claims=[{"sentence": "A beats B.", "verdict": "refuted"}])
    (item,) = front(tmp_path)[1].select(".claims > li")
    assert item.p.get_text().startswith("A beats B.")
    supported, refuted = item.select("li")
    assert supported.get_text() == (
        "supported in preset full: 0.0312, interval 0.01 to 0.05, n = 5"
    )
    assert supported.a["href"] == "full/a.html#fig-a"
    assert "verdict-supported" in supported.a["class"]
    assert refuted.get_text() == "refuted in preset lite"


def test_pages_are_linked_to_their_neighbours_and_to_the_front_page(tmp_path):
    for name in "abc":
        reported(tmp_path, name, id=name, title=f"Report <{name}>")
    front(tmp_path)
    page = tmp_path / "reports" / "full" / "b.html"
    nav = BeautifulSoup(page.read_text(), "html.parser").find("nav", class_="pages")
    assert [(a["rel"][0], a["href"]) for a in nav.find_all("a")] == [
        ("prev", "a.html"),
        ("index", "../index.html"),
        ("next", "c.html"),
    ]
    assert "Report <c>" in nav.get_text()
    before = page.stat().st_mtime_ns
    front(tmp_path)
    assert page.stat().st_mtime_ns == before  # nothing to change, nothing written


def hand_in(reports, page):
    return export.hand_in(
        reports, page, title="Work <1>", author="A. Lovelace", roll_number="M22", date="1 May 2026"
    )


def test_hand_in_has_cover_contents_chapters_and_unique_ids(tmp_path):
    text = (
        "# Report\n\n## Data\n\nSee [Figure](#figure-1), [this](#method).\n\n## Method\n\n### Loss"
    )
    cells = [new_markdown_cell(text), code("a", figure())]
    exported(tmp_path, *cells)
    bad = export.export(saved(tmp_path / "b.ipynb", *cells, code()), tmp_path / "quick" / "b.html")
    page = tmp_path / "hand-in.html"
    verdict = hand_in(
        [tmp_path / "quick" / "report.html", tmp_path / "quick" / "b.failed.html"], page
    )
    assert bad and verdict == "Not every run finished: chapter 2 (Report)."
    soup = BeautifulSoup(page.read_text(), "html.parser")
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in soup.find_all("a") if a["href"].startswith("#")]
    assert all(link[1:] in ids for link in links)
    assert [h.get_text() for h in soup.find_all("h1")] == ["Work <1>"]
    one, two = soup.find_all("article")
    assert [h.name for h in one.find_all(re.compile("^h[1-6]$"))] == ["h2", "h3", "h3", "h4"]
    assert [a.figcaption.b.get_text() for a in (one, two)] == ["Figure 1.1.", "Figure 2.1."]
    assert two.find("a", string="Figure 2.1")["href"] == "#c2-figure-1"
    assert one.find("a", string="this")["href"] == "#c1-method"
    assert two.find(class_="failed") and one.find(class_="failed") is None
    for word in ("A. Lovelace", "M22", "1 May 2026"):
        assert word in soup.header.get_text()
    assert soup.find("script") is None


def test_hand_in_refuses_what_is_no_report(tmp_path):
    (tmp_path / "a.html").write_text("<p>Hello</p>")
    with pytest.raises(DlopsError, match="no report exported by dlops"):
        hand_in([tmp_path / "a.html"], tmp_path / "o.html")
    with pytest.raises(DlopsError, match="There is no report"):
        hand_in([tmp_path / "b.html"], tmp_path / "o.html")
    assert not (tmp_path / "o.html").exists()


# ---------------------------------------------------------------------------- nbconvert


def test_jupyter_nbconvert_finds_the_exporter_and_writes_the_report(tmp_path):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    named = project["project"]["entry-points"]["nbconvert.exporters"]["dlops"]
    notebook = saved(
        tmp_path / "executed.ipynb", new_markdown_cell("# T"), code("a", figure()), finish()
    )
    NbConvertApp.launch_instance(["--to", named.replace(":", "."), str(notebook)])
    NbConvertApp.clear_instance()
    soup = BeautifulSoup((tmp_path / "executed.html").read_text(), "html.parser")
    assert soup.title.get_text() == PAYLOAD["title"]
    assert soup.figcaption.get_text() == "Figure 1. The loss falls."
    assert soup.find("script") is None and soup.find("article", id="report")


# ---------------------------------------------------------------------------- PDF


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Installs shell scripts as the only browsers of the machine; they know their last argument."""
    printer._tried.cache_clear()
    monkeypatch.setattr(printer, "_given_up", [])
    monkeypatch.setattr(printer, "TRY_SECONDS", 2)
    monkeypatch.setattr(printer, "PAGE_SECONDS", 1)
    found = []
    monkeypatch.setattr(printer, "_candidates", lambda: found)

    def install(name, script):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
        program.chmod(0o755)
        found.append(str(program))

    yield install
    printer._tried.cache_clear()


WORKS = """for word; do case $word in --print-to-pdf=*) echo %PDF > "${word#*=}";; esac; done"""
HANGS_ON_REPORTS = (
    f"case $last in *page.html) {WORKS};; *) sleep 60 & echo $! > $0.pid; wait;; esac"
)


def report_page(tmp_path):
    exported(tmp_path, new_markdown_cell("# A"))
    return tmp_path / "quick" / "report.html"


def test_without_a_browser_there_is_one_clear_sentence(tmp_path, programs):
    page = report_page(tmp_path)
    with pytest.raises(DlopsError, match="no Chrome, Chromium or Edge was found") as caught:
        export.pdf(page, page.with_suffix(".pdf"))
    assert "\n" not in str(caught.value) and export.browser(tmp_path) is None
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_a_stub_is_passed_over_for_a_browser_that_prints(tmp_path, programs):
    programs("chromium-browser", "echo install the snap >&2")  # Ubuntu's: it prints nothing
    programs("google-chrome", WORKS)
    page = report_page(tmp_path)
    export.pdf(page, page.with_suffix(".pdf"))
    assert export.browser(page.parent) == str(tmp_path / "google-chrome")
    assert page.with_suffix(".pdf").read_bytes() == b"%PDF\n"
    assert len(list(page.parent.iterdir())) == 3


def test_a_browser_that_fails_is_quoted_and_leaves_the_old_pdf(tmp_path, programs):
    programs("chrome", "echo no usable sandbox >&2; exit 1")
    page = report_page(tmp_path)
    page.with_suffix(".pdf").write_bytes(b"old")
    with pytest.raises(DlopsError, match="no usable sandbox"):
        export.pdf(page, page.with_suffix(".pdf"))
    assert page.with_suffix(".pdf").read_bytes() == b"old" and len(list(page.parent.iterdir())) == 3


def test_a_browser_that_hangs_is_ended_with_its_children_and_not_asked_again(tmp_path, programs):
    programs("chrome", HANGS_ON_REPORTS)
    page = report_page(tmp_path)
    with pytest.raises(DlopsError, match="did not print"):
        export.pdf(page, page.with_suffix(".pdf"))
    child = int((tmp_path / "chrome.pid").read_text())
    for _ in range(100):  # killed, and soon reaped by init
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process of the browser is left")
    began = time.monotonic()
    with pytest.raises(DlopsError, match="did not print"):
        export.pdf(page, page.with_suffix(".pdf"))
    assert time.monotonic() - began < 0.5
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_what_is_folded_is_printed_as_an_appendix_without_links_to_files(tmp_path):
    log = new_output("stream", name="stdout", text="epoch 1")
    exported(tmp_path, new_markdown_cell("# T\n\n## Log"), code("f()", log, tags=["fold"]))
    text = printable((tmp_path / "quick" / "report.html").read_text())
    soup = BeautifulSoup(text, "html.parser")
    appendix = soup.article.find_all("section")[-1]
    assert [h.get_text() for h in appendix.find_all(re.compile("h[1-6]"))] == [
        "Appendix",
        "A1. Log",
    ]
    assert "epoch 1" in appendix.get_text() and soup.find("details", class_="fold") is None
    assert soup.find("a", string="Log: appendix A1")["href"] == f"#{appendix.h3['id']}"
    assert all(a["href"].startswith("#") for a in soup.find_all("a"))


@pytest.mark.skipif(export.browser() is None, reason="no Chrome, Chromium or Edge installed")
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext (poppler) installed")
def test_pdf_has_pages_with_numbers_and_uncut_code(tmp_path):
    line = "value = " + "x" * 69 + "!"  # 78 columns
    listing = code("\n".join([line] * 90))
    exported(tmp_path, new_markdown_cell("# A report\n\n## Method\n\nWords."), listing)
    page = tmp_path / "quick" / "report.html"
    export.pdf(page, page.with_suffix(".pdf"))
    made = page.with_suffix(".pdf").read_bytes()
    assert b"/Outlines" in made and b"/StructTreeRoot" in made
    text = subprocess.run(
        ["pdftotext", "-layout", page.with_suffix(".pdf"), "-"], capture_output=True, text=True
    ).stdout
    pages = text.rstrip("\f").split("\f")
    assert len(pages) > 1 and "A report" in pages[0]
    assert re.search(rf"\b2 ?/ ?{len(pages)}\b", pages[1])
    assert text.count(line) == 90
    assert sorted(p.suffix for p in page.parent.iterdir()) == [".html", ".json", ".pdf"]
