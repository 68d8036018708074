"""What is seen while training: a line an epoch, and in a notebook a bar and a growing curve."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure

from dlops.experiment import Experiment
from dlops.report.output import picture
from dlops.report.page import Answer
from dlops.report.style import CLASSES, epoch_axis, panels, percent_axis


class Live:
    """Progress of one or several runs; pass it to `run` or `run_all` as `progress`.

    answer: the place at the top of the page that shows the same until the answer is there; total:
    how many runs are asked for. Also `on_result` of `run_all`, which counts those from the store.
    """

    def __init__(self, answer: Answer | None = None, total: int = 1) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.epochs, self.name = 1, ""
        self.rows: list[dict[str, Any]] = []
        self.places: list[Any] = []
        self.curve, self.drawn = "", self.began
        if get_ipython() is not None:
            self.places = [display(HTML(""), display_id=True, metadata={"live_only": True})]
            self.places += [answer.figure] if answer else []

    def __call__(self, event: dict[str, Any]) -> None:
        if "experiment" in event:
            trained: Experiment = event["experiment"]
            self.name, self.epochs, self.rows, self.curve = trained.title, event["epochs"], [], ""
            print(f"training {self.name} ({trained.id})")
        elif "row" in event:
            self.epochs = event.get("epochs", self.epochs)  # an auto-encoder's: of all layers
            self.rows.append({**event["row"], "epoch": event["epoch"]})
            self._line(event["epoch"], event["row"])
            self._update(event["epoch"] / self.epochs)
        elif "steps" in event:
            rate = f", {event['rate']:.0f} images/s"
            self._update((event["epoch"] + event["step"] / event["steps"]) / self.epochs, rate)

    def on_result(self, experiment: Experiment, result: Any) -> None:
        """A run has ended, or was found in the store."""
        self.done += 1
        self.rows = []
        if self.done >= self.total:
            for place in self.places:
                place.update(HTML(""))

    def _line(self, epoch: int, row: dict[str, Any]) -> None:
        names = [n for n in ("train_loss", "val_loss", "val_top1", "val_top5") if n in row]
        numbers = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        layer = f"layer {row['layer'] or 'all'}  " if "layer" in row else ""
        print(f"{layer}epoch {epoch:3d}/{self.epochs}  {numbers}  {row['seconds']:.1f} s")

    def _update(self, share: float, rate: str = "") -> None:
        """Redraw the bar, the time left, and the curve so far."""
        if not self.places:
            return
        whole = min(1.0, (self.done + share) / max(self.total, self.done + 1))
        left = (time.monotonic() - self.began) * (1 - whole) / max(whole, 1e-9)
        words = f"{self.name}{rate}; run {self.done + 1} of {self.total}, about {left:.0f} s left"
        bar = f'<progress value="{whole:.3f}" max="1"></progress> {words}'
        if not rate and time.monotonic() - self.drawn > 1:  # drawing takes a third of a second
            self.curve, self.drawn = picture(self._draw, 5.0), time.monotonic()
        image = f'<br><img alt="The curves so far." src="{self.curve}">' if self.curve else ""
        for place in self.places:
            place.update(HTML(bar + image))

    def _draw(self) -> Figure:
        frame = pd.DataFrame(self.rows)
        names = [name for name in ("val_loss", "val_top5") if name in frame]
        figure, grid = panels(len(names), "", height=1.5)
        for axes, name in zip(grid, names):
            sns.lineplot(frame, x="epoch", y=name, marker="o", color=CLASSES[0], ax=axes)
            axes.set(title=name, ylabel="", xlim=(0.8, self.epochs + 0.2))
            epoch_axis(axes)
            if name == "val_top5":
                axes.set_ylim(0, 1.02)
                percent_axis(axes)
        return figure
