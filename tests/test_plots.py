"""Figures are checked as a reader sees them: nothing overlaps, nothing is cut off."""

import inspect

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dlops import plots

rng = np.random.default_rng(0)
LONG = "European fire salamander, Salamandra salamandra, of class"
TITLE = (
    "Cross-entropy with SGD reaches 97.2 % top-5 and 78.4 % top-1 on the test set; validation "
    "stalls from epoch 60 on, while the training loss goes on to fall"
)


def names(count):
    return [f"{LONG} {i}" if i % 7 == 3 else f"class {i}" for i in range(count)]


def history(epochs, shift=0.0):
    epoch = np.arange(1, epochs + 1)
    rise = 1 - np.exp(-3 * epoch / epochs)
    table = {"epoch": epoch, "lr": 0.1}
    for part, gap in {"train": 0.0, "val": 0.1}.items():
        table[f"{part}_loss"] = 2.3 * (1 - rise) + gap + shift
        table[f"{part}_top1"] = 0.9 * rise - gap * rise + shift
        table[f"{part}_top5"] = 0.6 + 0.39 * rise - gap * rise
    return pd.DataFrame(table)


def images(count, channels=3):
    return rng.integers(256, size=(count, channels, 8, 8), dtype=np.uint8)


def histories(count, epochs, seeds=1):
    return {
        f"center loss, optimizer {i}": [history(epochs, 0.01 * i + 0.002 * s) for s in range(seeds)]
        for i in range(count)
    }


def bars(count):
    share = rng.uniform(0.05, 0.95, count)
    limits = np.stack([share - 0.05, share + 0.05], axis=1)
    return plots.class_bars(names(count), share, limits, title=TITLE)


def matrix(count):
    return rng.multinomial(500, [1 / count] * count, size=count) + 400 * np.eye(count, dtype=int)


def tsne(count):
    labels = np.arange(1000) % count
    points = 30 * rng.normal(size=(count, 2))[labels] + rng.normal(size=(1000, 2))
    return plots.tsne(points, labels, names(count), title=TITLE)


def rays():
    labels = np.arange(300) % 10
    centers = np.stack([np.cos(np.arange(10) * 0.63), np.sin(np.arange(10) * 0.63)], axis=1)
    points = centers[labels] * rng.uniform(1, 9, (300, 1))
    panels = {"cross-entropy": points, "center loss": points / 3}
    return plots.scatter(
        panels, labels, "0123456789", title=TITLE, centers={"center loss": 2 * centers}
    )


GRID = pd.DataFrame(
    [[0.61, 0.70, 0.72], [0.75, 0.781, 0.785], [0.10, np.nan, 0.55]],
    index=pd.Index([1e-4, 1e-3, 1e-2], name="learning rate"),
    columns=pd.Index([0.5, 0.9, 0.99], name="beta1"),
)
RESPONSES = {
    "lr": {1e-4: 0.70, 1e-3: [0.780, 0.784, 0.788], 1e-2: np.nan},
    "eps": {1e-10: 0.78, 1e-8: [0.780, 0.784, 0.788], 1e-4: 0.77},
    "beta2": {0.9: 0.75, 0.999: [0.780, 0.784, 0.788], 0.9999: 0.76},
    "amsgrad": {False: [0.780, 0.784, 0.788], True: 0.79},
    "decoupled decay": {False: [0.780, 0.784, 0.788], True: 0.79},
}
BASE = {"lr": 1e-3, "eps": 1e-8, "beta2": 0.999, "amsgrad": False, "decoupled decay": False}
INTERVALS = {
    "cross-entropy, SGD": (0.784, 0.761, 0.805),
    f"center loss, {LONG}": (0.79, 0.77, 0.81),
    "published": (0.667, None, None),
}
SPLIT = {"same class": rng.normal(0.8, 0.1, 500), "other class": rng.normal(1.0, 0.1, 500)}

FIGURES = {
    **{f"curves {n}": lambda n=n: plots.curves(history(n), title=TITLE) for n in (1, 2, 12, 100)},
    **{
        f"compare {n} {epochs}": lambda n=n, epochs=epochs: plots.compare_curves(
            histories(n, epochs, 3), ["val_loss", "val_top1", "val_top5"], title=TITLE
        )
        for n in (1, 6)
        for epochs in (2, 100)
    },
    "lines": lambda: plots.lines(
        {f"Layer {k}": {"training": 0.1 / np.arange(1, 9)} for k in range(1, 5)},
        title=TITLE,
        log=["Layer 2"],
    ),
    **{f"bars {n}": lambda n=n: bars(n) for n in (10, 20, 200)},
    **{
        f"confusion {n}": lambda n=n: plots.confusion(matrix(n), names(n), title=TITLE)
        for n in (10, 20, 50, 100, 200)
    },
    **{f"tsne {n}": lambda n=n: tsne(n) for n in (10, 20, 200)},
    "scatter": rays,
    "images": lambda: plots.image_grid(images(30), names(30), title=TITLE),
    "rows": lambda: plots.image_grid(
        images(16, 1), title=TITLE, columns=8, row_names=["input", "through 4 layers"]
    ),
    "mistakes": lambda: plots.mistakes(images(9), names(9), names(9)[::-1], [1.0] * 9, title=TITLE),
    "triplets": lambda: plots.triplets(
        images(8), images(8), images(8), (np.ones(8), np.ones(8)), title=TITLE
    ),
    "filters": lambda: plots.filters(rng.normal(size=(20, 3, 7, 7)), title=TITLE),
    "intervals": lambda: plots.intervals(INTERVALS, title=TITLE, xlabel="Test top-1 accuracy"),
    "histogram": lambda: plots.histogram(
        {"before": SPLIT, "after": SPLIT}, title=TITLE, xlabel="Distance"
    ),
    "heatmap": lambda: plots.heatmap(GRID, title=TITLE, label="Validation top-1", noise=0.008),
    "responses": lambda: plots.responses(
        RESPONSES, BASE, (0.775, 0.79), title=TITLE, ylabel="Validation top-1"
    ),
}


def visible_texts(figure):
    """Every text a reader sees, with its box in pixels (ticks out of view are left out)."""
    figure.draw_without_rendering()
    shown = []
    skip = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = {id(t) for t in axis._update_ticks()} if axes.axison else set()
            for tick in [*axis.majorTicks, *axis.minorTicks]:
                if id(tick) not in drawn:
                    skip |= {id(tick.label1), id(tick.label2)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in skip:
            shown.append((text.get_text(), text.get_window_extent()))
    return shown


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another_or_leaves_the_page(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == (before, [])
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] == 7
    texts = visible_texts(figure)
    assert " ".join(texts[i][0] for i in range(len(texts))).replace("\n", " ").count(TITLE) == 1
    for i, (text, box) in enumerate(texts):
        assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, text
        assert box.y0 >= -1 and box.y1 <= figure.bbox.height + 1, text
        for other, other_box in texts[:i]:
            apart = (
                box.x0 >= other_box.x1 - 1
                or other_box.x0 >= box.x1 - 1
                or box.y0 >= other_box.y1 - 1
                or other_box.y0 >= box.y1 - 1
            )
            assert apart, (text, other)


def test_every_function_asks_for_a_title():
    drawing = [f for f in vars(plots).values() if inspect.isfunction(f)]
    drawing = [f for f in drawing if f.__module__ == plots.__name__ and f.__name__[0] != "_"]
    assert len(drawing) >= 14
    for function in drawing:
        assert inspect.signature(function).parameters["title"].default is inspect.Parameter.empty


@pytest.mark.parametrize("epochs", [1, 2, 3, 30, 100])
def test_epoch_ticks_are_whole_numbers_and_few(epochs):
    figure = plots.curves(history(epochs), title="x")
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [t for t in axes.get_xticks() if low <= t <= high]
        assert 1 <= len(ticks) <= 6
        assert all(t == round(t) for t in ticks)


def test_curves_show_what_the_history_has():
    loss_only = history(5)[["epoch", "train_loss", "val_loss"]].assign(val_top1=np.nan)
    figure = plots.curves(loss_only, title="x")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss"]
    training, validation = figure.axes[0].get_lines()
    np.testing.assert_allclose(training.get_ydata(), loss_only.train_loss)
    np.testing.assert_allclose(validation.get_ydata(), loss_only.val_loss)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["training", "validation"]


def test_saturated_accuracy_has_no_tick_above_100_percent():
    figure = plots.curves(history(5).assign(train_top5=1.0, val_top5=1.0), title="x")
    axes = figure.axes[2]
    figure.draw_without_rendering()
    inside = [t for t in axes.get_yticks() if t <= axes.get_ylim()[1]]
    assert max(inside) == pytest.approx(1.0)
    assert "100%" in [t.get_text() for t in axes.get_yticklabels()]


def test_several_seeds_become_their_mean_in_a_band():
    runs = [history(4), history(4, 0.02), history(4, 0.1)]
    figure = plots.compare_curves({"SGD": runs, "Adam": history(4)}, "val_top1", title="x")
    axes = figure.axes[0]
    mean = np.mean([run.val_top1 for run in runs], axis=0)
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), mean)
    (band,) = axes.collections
    edge = band.get_paths()[0].vertices[:, 1]
    assert edge.min() == pytest.approx(runs[0].val_top1.min())
    assert edge.max() == pytest.approx(runs[2].val_top1.max())


def test_six_series_differ_in_colour_and_in_dashes():
    figure = plots.compare_curves(histories(6, 50), "val_loss", title="x")
    drawn = figure.axes[0].get_lines()
    assert len({line.get_color() for line in drawn}) == 6
    assert len({str(line._unscaled_dash_pattern) for line in drawn}) == 6


def test_confusion_writes_counts_and_colours_shares():
    figure = plots.confusion([[8, 2], [0, 40]], ["cat", "dog"], title="x")
    axes = figure.axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "8", (1, 0): "2", (1, 1): "40"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2], [0, 1]])


def test_confusion_of_many_classes_puts_confused_classes_beside_each_other():
    count = 60
    partner = rng.permutation(count).reshape(-1, 2)
    counts = 80 * np.eye(count, dtype=int)
    for a, b in partner:
        counts[a, b] = counts[b, a] = 20
    shown = plots.confusion(counts, names(count), title="x").axes[0].images[0].get_array()
    distance = np.abs(np.subtract(*np.nonzero(shown)))
    assert distance.max() == 1
    assert (distance == 1).sum() == count


def test_class_bars_leave_out_absent_classes_and_sort_the_others():
    figure = plots.class_bars(["a", "b", "c"], [0.2, np.nan, 0.9], title="x")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["c", "a"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.9, 0.2]


@pytest.mark.parametrize("values", [[0.0, 0.0], [-0.2, -0.1]])
def test_class_bars_start_at_zero_whatever_the_sign(values):
    low, high = plots.class_bars(["a", "b"], values, title="x").axes[0].get_xlim()
    assert low <= min(values) and 0 < high


def test_class_bars_of_200_classes_show_all_of_them_and_name_the_extremes():
    share = rng.permutation(200) / 200
    figure = plots.class_bars([f"c{i}" for i in range(200)], share, title="x")
    strip, highest, lowest = figure.axes
    assert len(strip.patches) == 200
    order = [f"c{i}" for i in np.argsort(-share)]
    assert [t.get_text() for t in highest.get_yticklabels()] == order[:15]
    assert [t.get_text() for t in lowest.get_yticklabels()] == order[-15:]


def test_tsne_of_many_classes_colours_the_most_frequent_ten():
    labels = np.repeat(np.arange(30), [5] * 20 + [9] * 10)
    figure = plots.tsne(rng.normal(size=(190, 2)), labels, [f"c{i}" for i in range(30)], title="x")
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == [f"c{i}" for i in range(20, 30)] + ["other classes"]
    assert len(figure.axes[0].collections[0].get_offsets()) == 100


def test_twenty_classes_differ_in_colour_or_marker():
    figure = tsne(20)
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes())
        for c in figure.axes[0].collections
    }
    assert len(looks) == 20


def test_image_grid_shows_the_pixels_of_every_layout():
    colour = images(2)
    shown = plots.image_grid(colour, title="x", columns=2).axes[0].images
    np.testing.assert_array_equal(shown[1].get_array(), colour[1].transpose(1, 2, 0))
    grey = images(2, 1)
    for same in (grey, grey[:, 0], grey / 255, (grey / 255).astype(np.float32)):
        shown = plots.image_grid(same, title="x", columns=2).axes[0].images
        np.testing.assert_array_equal(shown[0].get_array(), grey[0, 0])


def test_images_keep_their_aspect():
    figure = plots.image_grid(images(7), title="x", columns=4)
    figure.draw_without_rendering()
    for image in figure.axes[0].images:
        box = image.get_window_extent()
        assert box.width == pytest.approx(box.height, rel=0.01)


def test_filters_put_zero_at_mid_grey():
    weights = np.array([[[0.0, 0.5], [-0.5, 0.25]], [[0.0, 0.0], [0.0, 0.0]]])
    first, second = plots.filters(weights, title="x").axes[0].images
    np.testing.assert_array_equal(first.get_array(), [[128, 255], [0, 191]])
    np.testing.assert_array_equal(second.get_array(), [[128, 128], [128, 128]])


def test_intervals_draw_limits_and_published_values_without():
    figure = plots.intervals(INTERVALS, title="x", xlabel="top-1", reference=0.7)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    assert axes.get_position().width > 0.4  # long names leave room for the data
    assert len(axes.collections) == 2
    limits = axes.collections[0].get_segments()[0][:, 0]
    np.testing.assert_allclose(limits, [0.761, 0.805])
    assert [t.get_text() for t in axes.texts][::2] == ["78.4%  [76.1%, 80.5%]", "66.7%"]


def test_heatmap_frames_the_best_and_emboldens_what_noise_cannot_tell_from_it():
    axes = plots.heatmap(GRID, title="x", label="top-1", noise=0.008).axes[0]
    bold = [t.get_text() for t in axes.texts if t.get_weight() == "bold"]
    assert bold == ["78.1%", "78.5%"]
    (frame,) = axes.patches
    assert (round(frame.get_x()), round(frame.get_y())) == (2, 1)
    assert "failed" in [t.get_text() for t in axes.texts]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1e-4", "1e-3", "0.01"]


def test_responses_fill_the_base_setting_and_mark_failures():
    figure = plots.responses(RESPONSES, BASE, (0.775, 0.79), title="x", ylabel="top-1")
    axes = figure.axes[0]
    filled = [
        line.get_xdata()[0]
        for line in axes.get_lines()
        if line.get_marker() == "o" and line.get_markerfacecolor() == plots.BLUE
    ]
    assert filled == [1]
    crosses = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "x"]
    assert crosses == [2]
    assert "failed" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_histogram_counts_shares_over_common_bins():
    figure = plots.histogram({"x": {"a": [0, 0, 0, 1]}}, title="x", xlabel="d")
    heights = figure.axes[0].patches[0].get_path().vertices[:, 1]
    assert heights.max() == pytest.approx(0.75)


def test_drawing_survives_the_users_own_settings():
    with matplotlib.rc_context({"figure.constrained_layout.use": False, "axes.grid": False}):
        figure = plots.curves(history(3), title="x")
        assert matplotlib.rcParams["axes.grid"] is False
    assert figure.get_layout_engine() is not None
