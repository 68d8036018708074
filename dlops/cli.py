"""The `dlops` command. Nothing here imports torch before something trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from dlops.experiment import DATASETS, KEEP, DlopsError, Experiment, choices
from dlops.series import ASSIGNMENTS, Report, check_preset, select
from dlops.store import Result, Store, project_root, publish, reports_root

app = typer.Typer(
    help="Deep-learning reports: train what a question asks, execute and export its notebooks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    epilog="Begin with [bold]dlops run q1.1[/]: real digits, about a minute, no download.",
)
data_app = typer.Typer(help="Fetch data sets, and see which are there.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console(highlight=False, soft_wrap=True)
PUBLISHED = ("lite", "original", "full")  # presets whose results are kept beside their reports

FEW = 8  # more experiments than this are shown as a table, not epoch by epoch
CELL_SECONDS = 600  # a cell that takes longer hangs: reports never train

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="Questions (q1.1, ...) or assignments; all if none."),
]
Preset = Annotated[str, typer.Option(help="test, quick, lite, original or full.")]
Roll = Annotated[
    str | None, typer.Option(help="Your roll number: its last digit picks the variant.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; repeatable."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps; default: CUDA if there is one.")
]
Force = Annotated[bool, typer.Option("--force", help="Train again, also what is complete.")]
Jobs = Annotated[
    int, typer.Option(help="Runs at a time, each in its own process; GPUs are shared out.")
]
Author = Annotated[
    str | None, typer.Option(help="Your name: also writes the document to hand in, per assignment.")
]


def settings(pairs: list[str] | None) -> dict[str, Any]:
    """["lr=0.01", "sizes=64,32"] -> {"lr": 0.01, "sizes": (64, 32)}."""
    changes: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise DlopsError(f"--set {pair!r} is not NAME=VALUE, for example --set lr=0.01.")
        value = _value(text.strip())
        own = value is None and "none" in choices(name.strip())  # weights=none, augment=none
        changes[name.strip()] = "none" if own else value
    return changes


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def suffix(changes: dict[str, Any]) -> str:
    """What a changed report's file name ends with, so that it replaces no other."""
    words = (f"{name}-{value}" for name, value in sorted(changes.items()))
    return "".join(f"-{word}" for word in words).replace("/", "_").replace(" ", "")


@app.command()
def run(
    ids: Ids = None,
    preset: Preset = "quick",
    roll_number: Roll = None,
    changes: Set = None,
    device: Device = None,
    force: Force = False,
    jobs: Jobs = 1,
    author: Author = None,
) -> None:
    """Train what is missing, then execute the notebooks and export HTML and PDF."""
    train(ids, preset, roll_number, changes, device, force, jobs)
    report(ids, preset, roll_number, changes, author)


@app.command()
def train(
    ids: Ids = None,
    preset: Preset = "quick",
    roll_number: Roll = None,
    changes: Set = None,
    device: Device = None,
    force: Force = False,
    jobs: Jobs = 1,
) -> None:
    """Train what is missing, and keep the results in the store. Ask again to resume."""
    wanted = _wanted(select(ids, roll_number, preset), preset, settings(changes))
    store = Store()
    missing = [e for e in wanted if force or not settled(store, e)]
    done = len(wanted) - len(missing)
    if done:
        console.print(f"{done} of {len(wanted)} results are in the store.")
    if not missing:
        return

    options: dict[str, Any] = {"store": store, "device": device, "force": force}
    sources = [e.parent.with_(keep="weights") for e in missing if e.parent]
    due = {e.id for e in missing} | {e.id for e in sources if not store.find(e)}
    many = jobs > 1 or len(due) > FEW
    with Board(console, due) if many else Watch(console, len(due)) as watch:
        from dlops.slots import Slots
        from dlops.train import run_all

        try:
            with Slots(jobs, watch) if jobs > 1 else nullcontext() as executor:
                run_all(missing, executor, on_result=watch.result, progress=watch, **options)
        except DlopsError:
            if not all(settled(store, e) for e in missing):
                raise


def settled(store: Store, experiment: Experiment) -> bool:
    """Whether there is nothing left to train: a sweep's member may have diverged, which is told."""
    diverged = experiment.keep == "metrics" and store.failure(experiment) is not None
    return store.find(experiment) is not None or diverged


def _wanted(reports: list[Report], preset: str, changes: dict[str, Any]) -> list[Experiment]:
    check_preset(preset)
    wanted = [e for report in reports for e in report.wanted(preset, **changes)]
    by_keep = sorted(wanted, key=lambda e: KEEP.index(e.keep))  # of equals the one that keeps more
    most = {e.id: e for e in by_keep}
    return [most[id_] for id_ in dict.fromkeys(e.id for e in wanted)]


class Watch:
    """Progress that a person likes to watch; on anything but a terminal, a line an epoch."""

    def __init__(self, console: Console, total: int) -> None:
        columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[say]}")
        self.bars = Progress(*columns, console=console, transient=True)
        self.console, self.total, self.count = console, total, 0
        self.epochs, self.began, self.row = 1, time.monotonic(), ""
        self.task = self.bars.add_task("", total=None, say="")

    def __enter__(self) -> Watch:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if "experiment" in event:
            self.count += 1
            self.epochs, self.began, self.row = event["epochs"], time.monotonic(), ""
            title = escape(event["experiment"].title)
            self.console.print(f"[bold]{self.count}/{self.total}[/] {title}")
            self.bars.update(self.task, description="", completed=0, total=self.epochs, say="")
        elif "row" in event:
            row, self.epochs = event["row"], event.get("epochs", self.epochs)
            shown = {
                k: row[k] for k in ("train_loss", "val_loss", "val_top1", "val_top5") if k in row
            }
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            left = (time.monotonic() - self.began) / event["epoch"] * (self.epochs - event["epoch"])
            rate = row.get("images_per_second")
            speed = f"  {rate:.0f} images/s" if rate else ""
            epoch = f"{event['epoch']:3d}/{self.epochs}"
            epoch += f"  layer {row['layer'] or 'all'}" if "layer" in row else ""
            self.console.print(f"  epoch {epoch}  {numbers}{speed}  {duration(left)} left")
            self.bars.update(self.task, completed=event["epoch"], total=self.epochs)
        elif "steps" in event:
            done = event["epoch"] + event["step"] / event["steps"]
            left = (time.monotonic() - self.began) / max(done, 1e-9) * (self.epochs - done)
            words = f"{event['rate']:.0f} images/s, {duration(left)} left"
            text = f"  epoch {event['epoch'] + 1}"
            self.bars.update(self.task, description=text, completed=done, say=words)
        elif "total" in event:
            words = f"{event['done']:,} of {event['total']:,}"
            self.bars.update(
                self.task,
                description=f"  {event['what']}",
                completed=event["done"],
                total=event["total"],
                say=words,
            )

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
        columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[say]}")
        self.bars = Progress(*columns, console=console, transient=True)
        self.console, self.began, self.count = console, time.monotonic(), 0
        self.ids, self.total = ids, len(ids)
        self.all = self.bars.add_task("all", total=self.total, say=f"0 of {self.total}")
        self.slots: dict[int, Any] = {}
        self.bases: dict[tuple[str, ...], Experiment] = {}

    def __enter__(self) -> Board:
        head = f"{'run':>7}  {'val. top-1':>10}  {'test top-1':>10}  {'time':>9}  experiment"
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
        """The experiment, and what it changes of the first one of its kind."""
        title = experiment.title.split(",")[:3]  # loss, optimizer, data
        kind = *title, experiment.model.weights, str(experiment.data.per_class)
        old = self.bases.setdefault(kind, experiment).settings
        changed = {n: v for n, v in experiment.settings.items() if n != "seed" and old.get(n) != v}
        return ", ".join([experiment.title, *(f"{n} {v}" for n, v in changed.items())])

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
            self.console.print(f"{place:>7}  [red]{'failed':>33}[/]  {words}")
            return
        m = result.metrics
        cells = [f"{100 * m[k]:.1f} %" if k in m else "–" for k in ("val_top1", "test_top1")]
        time_ = duration(result.provenance["seconds"])
        self.console.print(f"{place:>7}  {cells[0]:>10}  {cells[1]:>10}  {time_:>9}  {words}")


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@app.command()
def report(
    ids: Ids = None,
    preset: Preset = "quick",
    roll_number: Roll = None,
    changes: Set = None,
    author: Author = None,
) -> None:
    """Execute the notebooks from the store and export HTML and PDF. Never trains."""
    from dlops import export

    changed = settings(changes)
    reports = select(ids, roll_number, preset)
    check_preset(preset)
    store = Store()
    missing = {
        r.question: r
        for r in reports
        if any(not settled(store, e) for e in r.wanted(preset, **changed))
    }
    if author:  # the document has every question with results
        reports = [r for r in reports if r.question not in missing]
        for question in missing:
            console.print(f"{question} has no results in preset {preset} yet, and is left out.")
    elif missing:
        words = " ".join(["dlops train", *missing, f"--preset {preset}"])
        words += "".join(f" --set {pair}" for pair in changes or [])
        raise DlopsError(f"Results are missing for {', '.join(missing)}; train them with: {words}")
    if not reports:
        raise DlopsError("There is nothing to report: no question that was asked for has results.")

    folder = reports_root() / preset
    failures, no_pdf = [], ""
    pages: dict[str, list[Path]] = {}
    for number, item in enumerate(reports, 1):
        began = time.monotonic()
        page = folder / f"{item.name}{suffix(changed)}.html"
        console.print(f"[bold]{number}/{len(reports)}[/] {item.title}")
        executed = execute(item, preset, changed, page.with_suffix(".ipynb"))
        failed = export.export(executed, page, title=item.title)
        if failed:
            failures.append(f"{item.name}: {failed}")
        no_pdf = _print(export.pdf, page) or no_pdf
        if preset in PUBLISHED and not failed:
            for experiment in item.wanted(preset, **changed):
                if result := store.get(experiment):
                    publish(result, preset)
        pages.setdefault(item.assignment, []).append(page)
        console.print(f"  {page}  ({duration(time.monotonic() - began)})")
    if author:
        for assignment, chapters in pages.items():
            page = folder / f"{assignment}-{roll_number or 'all'}.html"
            failed = export.hand_in(
                chapters,
                page,
                title=ASSIGNMENTS[assignment],
                author=author,
                roll_number=roll_number or "",
                date=time.strftime("%Y-%m-%d"),
            )
            no_pdf = _print(export.pdf, page) or no_pdf
            console.print(f"To hand in: {page}")
    index = export.index(reports_root())
    if no_pdf:
        console.print(f"[yellow]{escape(no_pdf)}[/]")
    console.print(f"The index of all reports: {index}")
    if failures:
        raise DlopsError("; ".join(failures))


def _print(pdf: Callable[[Path, Path], None], page: Path) -> str:
    """Print a page; where that cannot be done, why."""
    try:
        pdf(page, page.with_suffix(".pdf"))
    except DlopsError as error:
        page.with_suffix(".pdf").unlink(missing_ok=True)
        return str(error)
    return ""


def execute(item: Report, preset: str, changes: dict[str, Any], output: Path) -> Path:
    """Execute a report's notebook by papermill, whole or failed, and return where it lies."""
    notebook = project_root() / "notebooks" / item.notebook
    if not notebook.exists():
        raise DlopsError(f"There is no notebook {notebook}; run dlops from its checkout.")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    parameters = {"preset": preset, **dict(item.parameters), **changes}
    command = [sys.executable, "-m", "papermill", str(notebook), str(temporary)]
    command += ["--parameters_yaml", json.dumps(parameters), "--cwd", str(notebook.parent)]
    command += ["--kernel", "python3", "--no-progress-bar", "--autosave-cell-every", "2"]
    command += ["--execution-timeout", str(CELL_SECONDS)]
    environment = {**os.environ, "DLOPS_TRAIN": "never"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not temporary.exists():  # a cell that failed leaves a notebook; the export says so
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DlopsError(f"{notebook.name} could not be executed: {last}")
    os.replace(temporary, output)
    return output


@app.command("list")
def list_(ids: Ids = None, preset: Preset = "quick", roll_number: Roll = None) -> None:
    """Every run of the series: missing, running, interrupted, complete, failed or stale."""
    check_preset(preset)
    store, table = Store(), Table(box=None, pad_edge=False)
    for name in ("report", "runs", "identity", "experiment", "state"):
        table.add_column(name, no_wrap=name in ("identity", "state"))
    colours = {"complete": "green", "failed": "red", "stale": "yellow", "running": "cyan"}
    failures = []
    for item in select(ids, roll_number, preset):
        wanted = item.wanted(preset)
        for position, experiment in enumerate(wanted):
            state = store.status(experiment)
            if state == "failed":
                failures.append(f"{experiment.id}: {store.failure(experiment)}")
            shown = f"[{colours[state]}]{state}[/]" if state in colours else state
            first = (item.name, str(len(wanted))) if position == 0 else ("", "")
            table.add_row(*first, experiment.id, escape(experiment.title), shown)
    console.print(table)
    for failure in failures:
        console.print(f"[red]failed[/] {escape(failure)}")


@data_app.command("list")
def data_list() -> None:
    """Which data sets are here."""
    from dlops.data import present

    for info in DATASETS.values():
        console.print(f"{info.name:<14} {info.title:<34} {escape(present(info.name)[1])}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[
        str, typer.Argument(help="tiny-imagenet, cifar100, stl10, or imagenet-weights.")
    ],
) -> None:
    """Fetch a data set or weights from the publisher: resumable, verified, unpacked."""
    from dlops.data.fetch import fetch

    with Watch(console, 1) as watch:

        def fetching(done: int, total: int) -> None:
            watch({"what": f"fetching {name}", "done": done, "total": total})

        if name == "imagenet-weights":
            from dlops.data.weights import fetch_imagenet

            place = fetch_imagenet(progress=fetching)
        else:
            place = fetch(name, progress=fetching)
    console.print(f"{name} is ready in {place}")


@app.command()
def doctor() -> None:
    """What this machine has: versions, GPU, browser, fonts, data sets, disk."""
    from importlib.metadata import version

    import torch

    from dlops import export
    from dlops.data import present

    def line(name: str, good: bool, words: str) -> None:
        console.print(
            f"{'[green]ok  [/]' if good else '[yellow]none[/]'} {name:<9} {escape(words)}"
        )

    line(
        "python",
        True,
        f"{sys.version.split()[0]}, torch {torch.__version__}, dlops {version('dlops')}",
    )
    gpu = torch.cuda.is_available()
    line("gpu", gpu, torch.cuda.get_device_name() if gpu else "training runs on the CPU")
    browser = export.browser()
    line("browser", bool(browser), browser or "no PDF: install Chrome, Chromium or Edge")
    fonts = math_font()
    line(
        "font",
        bool(fonts),
        fonts or "formulas in PDF may look plain: install a maths font (lmodern)",
    )
    for info in DATASETS.values():
        good, words = present(info.name)
        line("data", good, f"{info.name}: {words}")
    store = Store()
    here = next(p for p in (store.root, *store.root.parents) if p.exists())
    free = shutil.disk_usage(here).free / 2**30
    line("disk", free > 2, f"{free:.0f} GiB free for results in {store.root}")


def math_font() -> str:
    """The first installed font with formulas' shapes, or nothing where that cannot be told."""
    if not shutil.which("fc-list"):
        return ""
    listed = subprocess.run(["fc-list", ":", "family"], capture_output=True, text=True).stdout
    known = ("STIX Two Math", "Latin Modern Math", "Cambria Math", "DejaVu Math", "Noto Sans Math")
    return next((name for name in known if name in listed), "")


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer makes this of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except DlopsError as error:
        stderr = Console(stderr=True, highlight=False, soft_wrap=True)
        stderr.print(f"[red]dlops:[/] {escape(str(error))}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        console.print("Stopped. What was trained is kept; the same command goes on from there.")
        sys.exit(130)
    except Exception as error:  # typer's own: an unknown option, a missing value
        if not (hasattr(error, "exit_code") and hasattr(error, "show")):
            raise
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
