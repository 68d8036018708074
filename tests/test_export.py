"""Executed notebooks as HTML, PDF, index and hand-in document."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dlops import export
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
    html = export.markdown(
        "With $z \\in \\mathbb{R}^{C}$:\n\n$$\\ell = -\\log \\frac{a}{b}$$\n\nand on"
    )
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
    soup = BeautifulSoup(export.mathml(tex, display=True), "html.parser")
    assert soup.find("math") and "&" not in soup.get_text() and "\\" not in soup.get_text()


def test_aligned_equations_get_a_row_each_and_no_columnalign():
    math = BeautifulSoup(
        export.mathml(r"\begin{align} a &= b \\ c &= d \end{align}"), "html.parser"
    )
    assert len(math.find_all("mtr")) == 2
    assert not math.find(columnalign=True)  # browsers ignore it
    assert "right" in math.find("mtd")["style"]
    assert "(1)" not in math.get_text()


def test_script_letters_convert_without_braces_too():
    assert export.mathml(r"\mathcal L").count("ℒ") == export.mathml(r"\mathcal{L}").count("ℒ") == 1


def test_minimum_has_its_index_below():
    math = BeautifulSoup(export.mathml(r"\min_{n} d", display=True), "html.parser")
    assert math.find("munder").find("mo").get_text() == "min"


@pytest.mark.parametrize("tex", [r"\foo{x}", r"\frac{a}{", "a & b", "}{"])
def test_unconvertible_formulas_stay_as_tex_in_a_code_element(tex):
    soup = BeautifulSoup(export.mathml(tex), "html.parser")
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
    soup = BeautifulSoup(export.markdown(text), "html.parser")
    assert soup.find("math") is None and soup.find(class_="tex") is None
    assert soup.get_text().count("$") == text.count("$")
    assert "\\$" not in soup.get_text()


def test_underscores_and_stars_in_formulas_are_no_emphasis():
    soup = BeautifulSoup(export.markdown("$a_1 * b_2$ and $c_1 * d_2$"), "html.parser")
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
    page = tmp_path / "quick" / "a.html"
    cells = [new_markdown_cell("# A title"), code("x", error, tags=["hide"])]
    reason = export.export(saved(tmp_path / "a.ipynb", *cells), page)
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert soup.find(class_="failed").get_text().startswith("FAILED")
    assert reason in soup.find(class_="failed").get_text() and "<i>why</i>" in reason
    assert "last" in soup.find(class_="error").get_text()
    record = json.loads(page.with_suffix(".json").read_text())
    assert record["failed"] == reason and record["title"] == "A title"
    assert record["preset"] == "quick"


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


def test_figures_have_alt_text_numbered_captions_and_their_size(tmp_path):
    soup = exported(
        tmp_path,
        code("a", figure('First <alt> "quoted"', "A class <b> and $x_1$.")),
        code("b", figure("Second alt", "Two.")),
    )
    first, second = soup.find_all("figure")
    assert first.img["alt"] == 'First <alt> "quoted"' and second.img["alt"] == "Second alt"
    assert first.figcaption.get_text().startswith("Figure 1. A class <b> and")
    assert first.figcaption.find("math") and second.figcaption.get_text() == "Figure 2. Two."
    assert (first.img["width"], first.img["height"]) == ("192", "128")  # 300 x 200 at 150 dpi


def test_big_plots_shrink_and_photographs_become_jpeg():
    grey = Image.effect_noise((600, 400), 60).point(lambda value: value // 8 * 8)
    plot = Image.merge("RGB", [grey] * 3)  # few colours in an order that PNG cannot predict
    buffer = io.BytesIO()
    plot.save(buffer, "PNG")
    mime, small = export.compact(buffer.getvalue())
    assert mime == "image/png" and len(small) < 0.8 * len(buffer.getvalue())
    with Image.open(io.BytesIO(small)) as image:
        assert image.convert("RGB").tobytes() == plot.tobytes()
    channels = [Image.effect_noise((300, 300), 60) for _ in range(3)]
    buffer = io.BytesIO()
    Image.merge("RGB", channels).save(buffer, "PNG")
    assert export.compact(buffer.getvalue())[0] == "image/jpeg"
    assert export.compact(b"small") == ("image/png", b"small")


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
        "<thead><tr><th></th><th>val_loss</th><th>name</th></tr>"
        "<tr><th>epoch</th><th></th><th></th></tr></thead>"
        "<tbody><tr><th>1</th><td>0.25</td><td>sgd</td></tr></tbody></table>"
    )
    caption = {"text/html": {"caption": "All epochs."}}
    soup = exported(tmp_path, code("t", display({"text/html": html}, caption)))
    box = soup.find("figure", class_="table")
    assert box.figcaption.get_text() == "Table 1. All epochs."
    assert box.find(class_="scroll")["tabindex"] == "0"
    assert box.find("style") is None and not box.table.has_attr("border")
    assert [th.get_text() for th in box.thead.find_all("th")] == ["epoch", "val_loss", "name"]
    assert [th["scope"] for th in box.find_all("th")] == ["col", "col", "col", "row"]
    assert [td.get("class") for td in box.find_all("td")] == [["number"], None]


def test_headings_get_unique_anchors_and_a_list_of_contents(tmp_path):
    soup = exported(
        tmp_path, new_markdown_cell("# T\n\n## Data & more\n\n### Part\n\n## Method\n\n### Part")
    )
    links = [a["href"] for a in soup.nav.find_all("a")]
    assert links == ["#data-more", "#part", "#method", "#part-2"]
    assert all(soup.find(id=link[1:]) for link in links)


def test_code_is_highlighted_and_verbatim(tmp_path):
    source = "def f(x):\n    return '$a$ <b>' if x < 1 else r'\\frac'  # " + "-" * 60
    soup = exported(tmp_path, code(source))
    assert soup.find(class_="code").get_text().strip() == source
    assert soup.find("span", class_="k").get_text() == "def"


def test_titles_are_escaped_everywhere(tmp_path):
    soup = exported(tmp_path, new_markdown_cell("# Plain"))
    assert soup.title.get_text() == PAYLOAD["title"] and soup.find("b") is None
    export.export(tmp_path / "report.ipynb", tmp_path / "o.html", title='</style><b>"\\')
    text = (tmp_path / "o.html").read_text()
    assert "</style><b>" not in text and text.count("</style>") == 1
    export.index(tmp_path)
    index = BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser")
    assert index.find("h4").get_text() == PAYLOAD["title"] and index.find("b") is None


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


def test_index_lists_presets_in_order_from_the_records(tmp_path):
    for preset in ("quick", "full"):
        nb = saved(tmp_path / "nb" / "a.ipynb", finish(preset=preset))
        export.export(nb, tmp_path / "reports" / preset / "a b.html")
    bad = saved(tmp_path / "nb" / "bad.ipynb", new_markdown_cell("# Bad"), code())
    export.export(bad, tmp_path / "reports" / "quick" / "bad.html")
    (tmp_path / "reports" / "full" / "a b.pdf").write_bytes(b"%PDF")
    (tmp_path / "reports" / "full" / "results" / "1").mkdir(parents=True)
    (tmp_path / "reports" / "full" / "results" / "1" / "result.json").write_text("[]")
    page = export.index(tmp_path / "reports")
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert [h.code.get_text() for h in soup.find_all("h2")] == ["full", "quick"]
    first = soup.find(class_="card")
    assert [(d.dt.get_text(), d.dd.get_text()) for d in first.find_all("div")] == [
        ("Test top-5", "0.981"),
        ("Test top-1", "0.873"),
    ]
    assert {a["href"] for a in first.find_all("a")} == {"full/a%20b.html", "full/a%20b.pdf"}
    assert first.time.get_text() == "2026-01-02"
    assert soup.find_all(class_="card")[-1].find(class_="failed").get_text().startswith("FAILED")
    assert len(soup.find_all("a", string="PDF")) == 1


def test_index_names_a_broken_record(tmp_path):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "x.json").write_text("{")
    with pytest.raises(DlopsError, match=r"x\.json"):
        export.index(tmp_path)


def hand_in(reports, page):
    return export.hand_in(
        reports, page, title="Work <1>", author="A. Lovelace", roll_number="M22", date="1 May 2026"
    )


def test_hand_in_has_cover_contents_chapters_and_unique_ids(tmp_path):
    cells = [
        new_markdown_cell(
            "# Report\n\n## Data\n\nSee [the method](#method).\n\n## Method\n\n### Loss"
        ),
        code("a", figure()),
    ]
    exported(tmp_path, *cells)
    notebook = saved(tmp_path / "two.ipynb", *cells, code())
    page = tmp_path / "hand-in.html"
    verdict = hand_in([tmp_path / "quick" / "report.html", notebook], page)
    assert verdict == "Not every run finished: chapter 2 (Report)."
    soup = BeautifulSoup(page.read_text(), "html.parser")
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in soup.find_all("a") if a["href"].startswith("#")]
    assert all(link[1:] in ids for link in links)
    assert [h.get_text() for h in soup.find_all("h1")] == ["Work <1>"]
    one, two = soup.find_all("article")
    assert [h.name for h in one.find_all(re.compile("^h[1-6]$"))] == ["h2", "h3", "h3", "h4"]
    assert [a.figcaption.b.get_text() for a in (one, two)] == ["Figure 1.", "Figure 1."]
    assert one.find("a", string="the method")["href"] == "#c1-method"
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


# ---------------------------------------------------------------------------- PDF


def test_without_a_browser_there_is_one_clear_sentence(tmp_path, monkeypatch):
    exported(tmp_path, new_markdown_cell("# A"))
    monkeypatch.setattr(export, "browser", lambda: None)
    with pytest.raises(DlopsError, match="Chrome, Chromium nor Edge") as caught:
        export.pdf(tmp_path / "quick" / "report.html", tmp_path / "quick" / "report.pdf")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "quick").iterdir()) == ["report.html", "report.json"]


def test_a_browser_that_fails_is_quoted_and_leaves_the_old_pdf(tmp_path, monkeypatch):
    exported(tmp_path, new_markdown_cell("# A"))
    program = tmp_path / "chrome"
    program.write_text("#!/bin/sh\necho no usable sandbox >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(export, "browser", lambda: str(program))
    old = tmp_path / "quick" / "report.pdf"
    old.write_bytes(b"old")
    with pytest.raises(DlopsError, match="no usable sandbox"):
        export.pdf(tmp_path / "quick" / "report.html", old)
    assert old.read_bytes() == b"old" and len(list(old.parent.iterdir())) == 3


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
