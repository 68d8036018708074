"""Parameters are what their cell declares, outputs ordinary HTML, a dead kernel a failure."""

import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dlops import cli, export, report
from dlops.experiment import Experiment
from dlops.report import live, output, page
from dlops.series import Report
from dlops.settings import DlopsError
from dlops.store import Store


def notebook(*cells, **variables):
    """The namespace of a kernel after these cells; variables: what else it knows."""
    namespace = {"In": ["", *cells], **variables}
    for cell in cells:
        exec(cell, namespace)
    return namespace


CELL = "preset = 'test'\noptimizer = None  # type: str  or adam\nlr = None\nseed = None"

# Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("epoch = 3", "no parameter epoch; did you mean epochs?"),
        ("learning_rate = None", "no parameter learning_rate"),
        ("lr = 'fast'", "lr is 'fast', but must be a number"),
        ("epochs = -1", "at least 1"),
        ("optimizer = 'sdg'", "one of adam, sgd"),
        ("preset = 'tset'", "no preset 'tset'"),
        ("momentum = 0.9", "does not apply to optimizer adam"),
    ],
)
@pytest.mark.parametrize("how", ["typed", "injected"])
def test_what_is_no_parameter_is_refused_with_a_suggestion(line, says, how):
    cells = [f"{CELL}\n{line}"] if how == "typed" else [CELL, f"# Parameters\n{line}\n"]
    with pytest.raises(DlopsError, match=re.escape(says)):
        report.experiment(notebook(*cells), "q1.1")


def test_only_the_parameters_cell_and_the_injected_one_count():
    namespace = notebook(CELL, "# Parameters\noptimizer = 'sgd'\n", "k = 3\nepochs = 7", np=np)
    made = report.experiment(namespace, "q1.1")
    assert made == Experiment.from_preset("q1.1", "test", optimizer="sgd")
    assert namespace["_parameters"] == {"optimizer": "sgd"}


def test_a_second_pass_takes_the_new_values_and_forgets_the_injected():
    first = [CELL, "# Parameters\noptimizer = 'sgd'\n", "k = 3", "margin = 'a variable'"]
    namespace = notebook(*first, CELL.replace("seed = None", "seed = 4"), "k = 4")
    assert report.experiment(namespace, "q1.1").seed == 4
    assert namespace["_parameters"] == {"seed": 4}


def test_an_injected_preset_does_not_make_its_cell_the_parameters_cell():
    namespace = notebook("preset = None\nlr = 0.5", "# Parameters\npreset = 'test'\n")
    assert report.experiment(namespace, "q1.1").optimizer.lr == 0.5
    assert report.preset_of(namespace) == "test"


def test_cells_that_did_not_parse_are_passed_over():
    namespace = notebook(CELL)
    namespace["In"].append("preset = (")
    assert report.parameters(namespace) == {}
    with pytest.raises(DlopsError, match="parameters cell.*has not been run"):
        report.parameters({"In": ["", "k = 3"], "k": 3})


def test_the_preset_comes_from_the_notebook_then_from_the_environment(monkeypatch):
    assert report.preset_of({"preset": None}) == "quick"
    monkeypatch.setenv("DLOPS_PRESET", "test")
    assert report.preset_of({"preset": None}) == "test"
    assert report.preset_of({"preset": "lite"}) == "lite"


# Words and outputs ----------------------------------------------------------------------------


def made(top5, seed=0, images=100, **settings):
    """A stored result of four classes."""
    labels = np.arange(images) % 4
    history = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_top1": 0.5, "val_top5": 1.0}]
    return Store().save(
        Experiment.from_flat({"classes": 4, "epochs": 1, "seed": seed, **settings}),
        metrics={"test_top5": top5, "test_top1": top5 / 2, "test_images": images},
        history=history,
        provenance={"val_images": 40},
        arrays={"predictions": np.tile(np.arange(4), (images, 1)), "labels": labels},
        weights={},
    )


def test_one_network_is_called_one_and_seeds_are_counted():
    one, three = [made(0.9)], [made(share, seed) for seed, share in enumerate((0.88, 0.9, 0.92))]
    assert "this network, 100 test images" in report.accuracy(one)
    words = report.accuracy(three)
    assert words.startswith("90.0 %") and "3 seeds" in words
    mean, low, high = report.estimate(three, "test_top5")
    assert (mean, low) == pytest.approx((0.9, 0.9 - 4.303 * 0.02 / 3**0.5), abs=1e-4)
    assert high <= 1 or "to 100.0 %" in words


@pytest.fixture
def shown(monkeypatch):
    """What pages display, instead of displaying it."""
    found = []

    def note(what, **about):
        found.append(what)

    for module in (page, output, live):
        monkeypatch.setattr(module, "display", note)
    return found


def line():
    figure, (axes,) = report.panels(1, "A title")
    axes.plot([1, 2])
    return figure


def test_a_figure_is_one_html_output_with_caption_alt_text_and_key(shown):
    report.show(line, "What < it shows", 'A "line"', key="curves")
    (text,) = [what.data for what in shown]
    assert text.startswith('<figure id="fig-curves" class="dlops"><picture>')
    assert "<figcaption>What &lt; it shows</figcaption>" in text
    assert 'alt="A &quot;line&quot;"' in text
    assert re.findall(r'<source media="([^"]*)"', text) == ["(max-width: 30em)"]
    assert text.count("prefers-color-scheme") == 2  # within the drawings, wide and narrow
    assert not re.search(r'srcset="[^"]*\s', text)  # a blank would end the address


def test_a_figure_or_table_without_words_is_refused():
    for words in (("", "alt"), ("caption", " ")):
        with pytest.raises(DlopsError, match="caption and an alt text"):
            report.show(Figure(), *words)
    with pytest.raises(DlopsError, match="needs a caption"):
        report.table(pd.DataFrame({"a": [1]}), " ")


def test_words_stand_left_in_a_table_and_numbers_right(shown):
    frame = pd.DataFrame({"name": ["a<b", "5 apples"], "share": ["9.5 %", "–"], "x": [1.5, np.nan]})
    report.table(frame, "A caption")
    text = shown[0].data
    assert text.startswith('<figure class="dlops table"><figcaption>A caption</figcaption><table>')
    assert re.findall(r'<th class="(\w+)"', text) == ["text", "number", "number"]
    assert "a&lt;b" in text and "nan" not in text


def test_settings_leave_out_what_is_off_or_of_no_matter_here(shown):
    report.settings(Experiment.from_preset("q1.1", "test"), "test")
    names = re.findall(r'<tr><td class="text"[^>]*>(\w+)</td>', shown[0].data)
    assert {"preset", "data", "optimizer", "lr", "epochs", "seed"} <= set(names)
    assert not {"labels", "tune", "body_lr", "label_smoothing", "fold"} & set(names)


def test_limitations_come_from_the_settings():
    one = " ".join(report.limitations([made(0.9)]))
    assert "One network, of seed 0" in one and "handwritten digits" in one
    assert "Tiny ImageNet's test labels" not in one
    two = " ".join(report.limitations([made(0.9), made(0.8, 1)]))
    assert two.startswith("2 seeds") and "One network" not in two


def test_progress_is_a_line_an_epoch_and_a_curve_until_the_last_run_is_there(monkeypatch, capsys):
    class Place:
        def update(self, what):
            self.now = what.data

    monkeypatch.setattr(live, "get_ipython", lambda: object())
    monkeypatch.setattr(live, "display", lambda *_, **__: Place())
    monkeypatch.setattr(live.time, "monotonic", iter(range(100)).__next__)
    experiment = Experiment.from_preset("q1.1", "test")
    seen = report.Live(total=2)
    seen({"experiment": experiment, "epochs": 4})
    seen({"epoch": 0, "step": 5, "steps": 10, "rate": 99.0})
    (place,) = seen.places
    assert 'value="0.062"' in place.now and "run 1 of 2" in place.now and "<img" not in place.now
    seen({"epoch": 1, "row": {"val_loss": 1.0, "val_top5": 0.5, "seconds": 2.0}})
    assert 'value="0.125"' in place.now and "<img" in place.now
    assert "epoch   1/4  val_loss 1.0000  val_top5 0.5000  2.0 s" in capsys.readouterr().out
    seen.on_result(experiment, None)
    assert place.now
    seen.on_result(experiment, None)
    assert place.now == ""


# The verdict ----------------------------------------------------------------------------------


def test_the_mark_at_the_end_carries_what_the_index_shows(shown):
    namespace = {"preset": "test", "_parameters": {"lr": 0.1}}
    results = [made(share, seed) for seed, share in enumerate((0.97, 0.98, 0.99))]
    report.finish(namespace, "q1.1", results)
    payload = shown[0][export.SENTINEL]
    assert payload["headline"][0] == ["Test top-5", "98.0 %"]
    assert (payload["preset"], payload["parameters"]) == ("test", {"lr": 0.1})
    assert payload["assignment"] == "assignment1" and payload["claims"] == []
    assert payload["title"].startswith("Question 1.1: ResNet18 with cross-entropy, Adam, ")
    assert payload["title"].endswith("(4 classes)")
    (mark,) = payload["results"]
    assert (mark["top5"], mark["classes"], mark["chance"]) == (pytest.approx(0.98), 4, 1.0)
    assert mark["low"] < 0.98 < mark["high"] <= 1


def test_a_title_follows_the_resolved_experiment(shown):
    center = [made(0.9, loss="center", center_weight=0.1, optimizer="sgd", lr=0.1)]
    report.finish({"_parameters": {}}, "q1.3", {"with": center, "without": [made(0.8)]})
    payload = shown[0][export.SENTINEL]
    assert "center loss, SGD" in payload["title"]
    assert [mark["name"] for mark in payload["results"]] == ["with", "without"]


def test_a_killed_kernel_is_a_failed_report(tmp_path, monkeypatch, capsys):
    """papermill marks the cells of a dead kernel completed; the report says FAILED, exit code 2."""
    cells = [
        new_markdown_cell("# A question"),
        new_code_cell("preset = None", metadata={"tags": ["parameters"]}),
        new_code_cell("print('so far')"),
        new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
        new_code_cell("print('the end')"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    folder = tmp_path / "notebooks" / "assignment1"
    folder.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "killed.ipynb")
    item = Report("q1.1", "assignment1/killed.ipynb", "Killed", lambda preset, **_: [])
    monkeypatch.setattr(cli, "project_root", lambda: tmp_path)
    monkeypatch.setattr(cli, "select", lambda *_: [item])
    monkeypatch.setattr(sys, "argv", ["dlops", "report", "q1.1", "--preset", "test"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("dlops: killed: The run did not reach its end")
    reports = Path(os.environ["DLOPS_REPORTS"])
    page = (reports / "test" / "killed.failed.html").read_text()
    assert "FAILED" in page and "so far" in page and "the end" not in page.split("so far")[1][:200]
    assert "killed" not in (reports / "test" / "index.html").read_text().lower()
