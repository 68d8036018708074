"""Progress on a terminal: bars that move, lines that stay; in a log, the lines alone."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from dlops.experiment import Experiment
from dlops.store import Result


def bars(console: Console) -> Progress:
    """Bars that say what they are of and how far; still where there is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[say]}")
    still = not sys.stdout.isatty()  # colours can be forced into a log, animation cannot
    return Progress(*columns, console=console, transient=True, disable=still)


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Watch:
    """Progress of a few runs: a line an epoch, above a bar for the run."""

    def __init__(self, console: Console, total: int) -> None:
        self.bars = bars(console)
        self.console, self.total, self.count = console, total, 0
        self.epochs, self.began = 1, time.monotonic()
        self.task = self.bars.add_task("", total=None, say="")

    def __enter__(self) -> Watch:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if "experiment" in event:
            self.count += 1
            self.epochs, self.began = event["epochs"], time.monotonic()
            title = escape(event["experiment"].title)
            self.console.print(f"[bold]{self.count}/{self.total}[/] {title}")
            self.bars.update(self.task, description="", completed=0, total=self.epochs, say="")
        elif "row" in event:
            self._epoch(event)
        elif "steps" in event:
            done = event["epoch"] + event["step"] / event["steps"]
            left = (time.monotonic() - self.began) / max(done, 1e-9) * (self.epochs - done)
            words = f"{event['rate']:.0f} images/s, {duration(left)} left"
            text = f"  epoch {event['epoch'] + 1}"
            self.bars.update(self.task, description=text, completed=done, say=words)
        elif "total" in event:
            words, done, total = f"  {event['what']}", event["done"], event["total"]
            say = f"{done:,} of {total:,}"
            self.bars.update(self.task, description=words, completed=done, total=total, say=say)

    def _epoch(self, event: dict[str, Any]) -> None:
        row, self.epochs = event["row"], event.get("epochs", self.epochs)
        shown = {"train": "train_loss", "val.": "val_loss"}
        numbers = [f"{name} {row[key]:.4f}" for name, key in shown.items() if key in row]
        if "val_top5" in row:
            numbers.append(f"top-5 {100 * row['val_top5']:.1f} %")
        left = (time.monotonic() - self.began) / event["epoch"] * (self.epochs - event["epoch"])
        if rate := row.get("images_per_second"):
            numbers.append(f"{rate:.0f} images/s")
        epoch = f"{event['epoch']:3d}/{self.epochs}"
        epoch += f"  layer {row['layer'] or 'all'}" if "layer" in row else ""
        self.console.print(f"  {epoch}  {'  '.join(numbers)}  {duration(left)} left")
        self.bars.update(self.task, completed=event["epoch"], total=self.epochs)

    def result(self, experiment: Experiment, result: Result | Exception) -> None:
        """Say how an experiment ended."""
        if isinstance(result, Exception):
            self.console.print("  [red]failed[/]")  # why is said once, at the end
            return
        m = result.metrics
        shown = {"top-5": "test_top5", "top-1": "test_top1"}
        words = ", ".join(f"test {k} {100 * m[v]:.1f} %" for k, v in shown.items() if v in m)
        self.console.print(f"  [green]done[/] {words}  ({duration(result.provenance['seconds'])})")


class Board:
    """Progress of many runs: a table that fills, above a bar for all and one for each slot."""

    def __init__(self, console: Console, ids: set[str]) -> None:
        self.bars = bars(console)
        self.console, self.began, self.count = console, time.monotonic(), 0
        self.ids, self.total = ids, len(ids)
        self.all = self.bars.add_task("all", total=self.total, say=f"0 of {self.total}")
        self.slots: dict[int, Any] = {}
        self.bases: dict[tuple[str, ...], Experiment] = {}

    def __enter__(self) -> Board:
        head = f"{'run':>7}  {'val. top-1':>10}  {'test top-1':>10}  {'time':>11}  experiment"
        self.console.print(f"[bold]{head}[/]")
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        slot = event.get("slot", 0)
        if slot not in self.slots:
            self.slots[slot] = self.bars.add_task(f"slot {slot + 1}", total=None, say="")
        task = self.slots[slot]
        if "experiment" in event:
            say = escape(self.words(event["experiment"]))
            self.bars.update(task, completed=0, total=event["epochs"], say=say)
        elif "row" in event:
            self.bars.update(task, completed=event["epoch"])
        elif "steps" in event:
            self.bars.update(task, completed=event["epoch"] + event["step"] / event["steps"])

    def words(self, experiment: Experiment) -> str:
        """The first experiment of its kind by its title, the others by what they change of it."""
        title = experiment.title.split(",")[:3]  # loss, optimizer, data
        kind = *title, experiment.model.weights, str(experiment.data.per_class)
        base = self.bases.setdefault(kind, experiment)
        return experiment.differs(base) or experiment.title

    def result(self, experiment: Experiment, result: Result | Exception) -> None:
        """Add a row to the table, unless it was in the store."""
        if experiment.id not in self.ids:
            return
        self.count += 1
        left = (time.monotonic() - self.began) / self.count * (self.total - self.count)
        say = f"{self.count} of {self.total}, {duration(left)} left"
        self.bars.update(self.all, completed=self.count, say=say)
        place = f"{self.count}/{self.total}"
        words = escape(self.words(experiment))
        if isinstance(result, Exception):
            self.console.print(f"{place:>7}  [red]{'failed':>35}[/]  {words}")
            return
        m = result.metrics
        cells = [f"{100 * m[k]:.1f} %" if k in m else "–" for k in ("val_top1", "test_top1")]
        time_ = duration(result.provenance["seconds"])
        self.console.print(f"{place:>7}  {cells[0]:>10}  {cells[1]:>10}  {time_:>11}  {words}")
