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

FEW = 8  # more runs than this are a line each, not a line an epoch


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Watch:
    """Progress of the runs of `ids`: a bar for each slot, above it what is to stay.

    Of a few runs, one at a time, a line an epoch stays; of many, a line a run.
    """

    def __init__(self, console: Console, ids: set[str], jobs: int = 1) -> None:
        columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[say]}")
        still = not sys.stdout.isatty()  # colours can be forced into a log, animation cannot
        self.bars = Progress(*columns, console=console, transient=True, disable=still)
        self.console, self.ids, self.epochwise = console, ids, jobs == 1 and len(ids) <= FEW
        self.started = self.settled = 0
        self.began = self.run_began = time.monotonic()
        self.all = self.bars.add_task("all", total=len(ids), say="", visible=not self.epochwise)
        self.slots: dict[int, Any] = {}
        self.epochs: dict[int, int] = {}
        self.bases: dict[tuple[str, ...], Experiment] = {}

    def __enter__(self) -> Watch:
        if not self.epochwise:
            head = f"{'run':>7}  {'val. top-1':>10}  {'test top-1':>10}  {'time':>11}  experiment"
            self.console.print(f"[bold]{head}[/]")
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        slot = event.get("slot", 0)
        if slot not in self.slots:
            self.slots[slot] = self.bars.add_task("", total=None, say="")
        task, total = self.slots[slot], self.epochs.get(slot, 1)
        if "experiment" in event:
            self.started, self.run_began = self.started + 1, time.monotonic()
            self.epochs[slot] = event["epochs"]
            words = escape(self.words(event["experiment"]))
            if self.epochwise:
                self.console.print(f"[bold]{self.started}/{len(self.ids)}[/] {words}")
            say = "" if self.epochwise else words
            name = f"slot {slot + 1}"
            self.bars.update(task, description=name, completed=0, total=event["epochs"], say=say)
        elif "row" in event:
            self.epochs[slot] = event.get("epochs", total)
            if self.epochwise:
                self._epoch(event["row"], event["epoch"], self.epochs[slot])
            self.bars.update(task, completed=event["epoch"], total=self.epochs[slot])
        elif "steps" in event:
            done = event["epoch"] + event["step"] / event["steps"]
            self.bars.update(task, completed=done)
            if self.epochwise:
                say = f"{event['rate']:.0f} images/s, {self._left(done, total)}"
                self.bars.update(task, say=say)
        elif "total" in event:  # decoding or fetching
            say = f"{event['done']:,} of {event['total']:,}"
            counts = {"completed": event["done"], "total": event["total"]}
            self.bars.update(task, description=f"  {event['what']}", say=say, **counts)

    def _left(self, done: float, total: float) -> str:
        seconds = (time.monotonic() - self.run_began) / max(done, 1e-9) * (total - done)
        return f"{duration(seconds)} left"

    def _epoch(self, row: dict[str, Any], epoch: int, total: int) -> None:
        shown = {"train": "train_loss", "val.": "val_loss"}
        numbers = [f"{name} {row[key]:.4f}" for name, key in shown.items() if key in row]
        numbers += [f"top-5 {100 * row['val_top5']:.1f} %"] if "val_top5" in row else []
        if rate := row.get("images_per_second"):
            numbers.append(f"{rate:.0f} images/s")
        layer = f"  layer {row['layer'] or 'all'}" if "layer" in row else ""
        words = "  ".join([*numbers, self._left(epoch, total)])
        self.console.print(f"  {epoch:3d}/{total}{layer}  {words}")

    def words(self, experiment: Experiment) -> str:
        """The first experiment of its kind by its title, the others by what they change of it."""
        title = experiment.title.split(",")[:3]  # loss, optimizer, data
        kind = *title, experiment.model.weights, str(experiment.data.per_class)
        base = self.bases.setdefault(kind, experiment)
        return experiment.title if self.epochwise else experiment.differs(base) or experiment.title

    def result(self, experiment: Experiment, result: Result | Exception) -> None:
        """Say how a run ended, unless its result was in the store; why it failed is said later."""
        if experiment.id not in self.ids:
            return
        self.settled += 1
        left = (time.monotonic() - self.began) / self.settled * (len(self.ids) - self.settled)
        say = f"{self.settled} of {len(self.ids)}, {duration(left)} left"
        self.bars.update(self.all, completed=self.settled, say=say)
        place, failed = f"{self.settled}/{len(self.ids)}", isinstance(result, Exception)
        metrics = {} if isinstance(result, Exception) else result.metrics
        took = "" if isinstance(result, Exception) else duration(result.provenance["seconds"])

        def share(key: str) -> str:
            return f"{100 * metrics[key]:.1f} %" if key in metrics else "–"

        if self.epochwise:
            shown = {"top-5": "test_top5", "top-1": "test_top1"}
            found = [f"{name} {share(key)}" for name, key in shown.items() if key in metrics]
            words = f"{'test ' * bool(found)}{', '.join(found)}  ({took})"
            self.console.print("  [red]failed[/]" if failed else f"  [green]done[/] {words}")
            return
        cells = f"{share('val_top1'):>10}  {share('test_top1'):>10}  {took:>11}"
        cells = f"[red]{'failed':>35}[/]" if failed else cells
        self.console.print(f"{place:>7}  {cells}  {escape(self.words(experiment))}")
