"""What notebooks call, and nothing that trains or exports.

page.py     parameters, the answer, sources, settings, provenance, the last mark
live.py     progress while something trains
output.py   figures and tables as a notebook's output
style.py    how figures look, and what they are made with
figures.py  the figures that pages share, on seaborn and matplotlib
claims.py   claims written by people and judged by code
drawings.py what is taught, drawn: the network and the losses
q1.py       what only the notebooks of Question 1 need
q2.py       what only the notebook of Question 2 needs
q1_comparison.py   what only the comparison of its losses needs
lab3.py     what only the notebooks of lab 3 need: studies, noise floors
"""
# ruff: noqa: F401

from dlops.report.claims import Claims, best, difference, fact, ratio, score, spread, values
from dlops.report.figures import (
    class_bars,
    class_points,
    confusion,
    curves,
    distributions,
    embedding,
    images,
    scores,
)
from dlops.report.live import Live
from dlops.report.output import show, table
from dlops.report.page import (
    OPTIMIZERS,
    Answer,
    accuracy,
    bullets,
    data_title,
    estimate,
    experiment,
    finish,
    interval,
    limitations,
    log,
    method,
    parameters,
    percent,
    preset_of,
    provenance,
    row,
    settings,
    source,
    try_it,
)
from dlops.report.style import (
    CLASSES,
    PALETTE,
    direct_labels,
    drawing,
    epoch_axis,
    panels,
    percent_axis,
)
