"""Figures are checked as a reader sees them: whole, in both widths, on light and dark pages."""

import re
import xml.etree.ElementTree as ElementTree
from urllib.parse import unquote

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dlops.report import drawings, figures, output
from dlops.report.style import DARK, NARROW, PAPER, WIDE, direct_labels, panels, style
from dlops.resnet import ResNet18

rng = np.random.default_rng(0)
TITLE = "Cross-entropy with SGD reaches 97.2 % top-5; validation stalls from epoch 60 on, while"


def history(epochs, shift=0.0):
    epoch = np.arange(1, epochs + 1)
    rise = 1 - np.exp(-3 * epoch / epochs)
    table = {"epoch": epoch}
    for part, gap in {"train": 0.0, "val": 0.1}.items():
        table[f"{part}_loss"] = 2.3 * (1 - rise) + gap + shift
        table[f"{part}_top1"] = 0.9 * rise - gap * rise + shift
        table[f"{part}_top5"] = 0.6 + 0.39 * rise - gap * rise
    return pd.DataFrame(table)


def names(count):
    return [f"European fire salamander {i}" if i % 7 == 3 else f"class {i}" for i in range(count)]


def mapped(count, n=400):
    labels = np.arange(n) % count
    points = 30 * rng.normal(size=(count, 2))[labels] + rng.normal(size=(n, 2))
    return figures.embedding(points, labels, names(count), title=TITLE)


def bars(count):
    share = rng.uniform(0.05, 0.95, count)
    limits = np.stack([share - 0.05, share + 0.05], axis=1)
    return figures.class_bars(names(count), share, limits, title=TITLE, xlabel="top-1")


def matrix(count):
    counts = rng.multinomial(500, [1 / count] * count, size=count) + 400 * np.eye(count, dtype=int)
    return figures.confusion(counts, names(count), title=TITLE)


def triplets():
    pictures = rng.integers(256, size=(24, 3, 8, 8), dtype=np.uint8)
    rows = ["anchor", "hardest positive", "hardest negative"]
    captions = [f"salamander\nd = {i}" for i in range(24)]
    return figures.images(pictures, captions, title=TITLE, columns=8, row_names=rows)


ROWS = [
    {"name": "center loss, top-5", "values": [0.91, 0.93], "low": 0.8, "high": 1.0, "chance": 0.5},
    {"name": "published", "values": [0.7], "low": None, "high": None, "chance": None},
]
PAIRS = pd.DataFrame({"value": rng.uniform(size=60), "kind": ["same", "different"] * 30})
DRAWINGS = {
    "curves of a seed": figures.curves([history(3)], title=TITLE),
    "curves of seeds": figures.curves([history(40), history(40, 0.05)], title=TITLE),
    "scores": figures.scores(ROWS, title=TITLE, xlabel="accuracy"),
    "10 classes": bars(10),
    "200 classes": bars(200),
    "10 x 10": matrix(10),
    "20 x 20": matrix(20),
    "60 x 60": matrix(60),
    "10 groups": mapped(10),
    "20 groups": mapped(20),
    "30 groups": mapped(30),
    "triplets": triplets(),
    "distances": figures.distributions({"a": PAIRS, "b": PAIRS}, title=TITLE, xlabel="d"),
    "network": drawings.resnet18(ResNet18(10), (3, 64, 64)),
    "softmax": drawings.softmax([2.0, 1.0, -1.0], 1),
    "triplet": drawings.triplet(),
    "center": drawings.center(),
}


MANY = ["200 classes", "10 x 10", "20 x 20", "60 x 60", "10 groups", "20 groups", "30 groups"]


def ticks_beyond(axes):
    """Labels of ticks outside the limits, which are not drawn."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_cut_off(name, width):
    with style(width):
        figure = DRAWINGS[name]()
        figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == pytest.approx(width)
    edge = figure.bbox.padded(2)
    beyond = [text for axes in figure.axes for text in ticks_beyond(axes)]
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in beyond:
            box = text.get_window_extent()
            inside = edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0
            assert inside and box.y1 <= edge.y1, text.get_text()


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", [name for name in DRAWINGS if name != "triplets"])
def test_a_line_drawing_is_an_svg_that_suits_light_and_dark_pages(name, width):
    uri = output.picture(DRAWINGS[name], width)
    if name in MANY and uri.startswith("data:image/webp"):
        return
    svg = unquote(uri.split(",", 1)[1])
    assert ElementTree.fromstring(svg).get("viewBox")
    assert "<text" not in svg and re.search(r"<path id='d[\w-]+' d=", svg)
    light, dark = svg.split("@media(prefers-color-scheme:dark)", 1)
    paper = re.search(rf"(--c\d+):{PAPER}", light)
    assert paper and f"{paper[1]}:{DARK[PAPER]}" in dark and PAPER not in dark


def test_photographs_are_pixels():
    assert output.picture(DRAWINGS["triplets"], WIDE).startswith("data:image/webp")


def test_what_would_be_heavy_as_a_drawing_is_a_picture():
    many, few = (output.picture(mapped(10, n), WIDE) for n in (5000, 100))
    assert many.startswith("data:image/webp") and few.startswith("data:image/svg+xml")
    assert len(many) < 400_000


def test_a_personal_matplotlibrc_does_not_leak():
    own = output.picture(DRAWINGS["curves of a seed"], WIDE)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "lines.linewidth": 5}):
        assert output.picture(DRAWINGS["curves of a seed"], WIDE) == own
        assert matplotlib.rcParams["font.size"] == 20
    assert not plt.get_fignums()


def drawn(drawing, width=WIDE):
    with style(width):
        figure = drawing()
        figure.draw_without_rendering()
    return figure


def test_curves_start_at_zero_and_name_their_lines():
    figure = drawn(DRAWINGS["curves of seeds"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "loss",
        "top-5 accuracy",
        "top-1 accuracy",
    ]
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert {text.get_text() for text in figure.axes[0].texts} == {"training", "validation"}
    mean = (history(40).val_loss + history(40, 0.05).val_loss) / 2
    lines = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == 40]
    assert any(np.allclose(line, mean) for line in lines)


def test_direct_labels_keep_apart_where_lines_end_together():
    with style():
        figure, (axes,) = panels(1, "")
        for i, color in enumerate(("#0072b2", "#d55e00", "#009e73")):
            axes.plot([0, 1], [0, 1 + 0.001 * i], color=color, label=f"line {i}")
        axes.axhline(-5, ls=":")
        direct_labels(axes)
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    highest = axes.transData.transform((1, 1.002))[1]
    assert abs(boxes[0].y0 - highest) < 0.2 * axes.bbox.height


def test_confusion_writes_counts_and_colours_shares():
    figure = drawn(figures.confusion([[8, 2], [0, 40]], ["cat", "dog"], title="x"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["8", "2", "40"]
    np.testing.assert_allclose(np.ravel(axes.collections[0].get_array()), [0.8, 0.2, 0, 1])


def test_class_bars_leave_out_absent_classes_sort_the_others_and_say_their_numbers():
    limits = [[0.1, 0.3], [np.nan, np.nan], [0.8, 1.0]]
    drawing = figures.class_bars(["a", "b", "c"], [0.2, np.nan, 0.9], limits, title="", xlabel="")
    (axes,) = drawn(drawing).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["c", "a"]
    assert [t.get_text() for t in axes.texts] == ["90 %", "20 %"]
    assert [len(axes.patches) for axes in drawn(bars(200)).axes] == [15, 15]


@pytest.mark.parametrize(("classes", "axes"), [(10, 1), (11, 11), (20, 20), (30, 20)])
def test_up_to_ten_classes_share_a_map_and_more_have_one_each(classes, axes):
    assert len(drawn(mapped(classes)).axes) == axes


def test_a_row_of_pictures_is_shortened_on_a_telephone_not_shrunk():
    wide, narrow = (len(drawn(triplets(), width).axes[0].images) for width in (WIDE, NARROW))
    assert (wide, narrow) == (24, 12)


def test_a_figure_is_taken_as_it_is():
    with style():
        figure = Figure()
        figure.subplots().plot([1, 2])
    assert output.picture(figure, WIDE).startswith("data:image/svg+xml,")


def test_classes_that_lie_on_each_other_get_a_panel_each():
    labels = np.arange(600) % 5
    far = 20.0 * np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 2]])[labels]
    noise = rng.normal(size=(600, 2))
    for points, panels_ in ((far + noise, 1), (20 * noise, 5)):
        drawn = figures.embedding(points, labels, names(5), title=TITLE)()
        assert len(drawn.axes) == panels_
