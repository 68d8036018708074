"""The `dlops` command. Nothing here imports torch before something trains."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlops.data import present
from dlops.data.fetch import fetch
from dlops.execute import execute
from dlops.experiment import KEEP, Experiment
from dlops.series import ASSIGNMENTS, Report, select
from dlops.settings import DATASETS, DlopsError, choices
from dlops.slots import Slots
from dlops.store import Store, project_root, publish, reports_root
from dlops.watch import Watch, duration

app = typer.Typer(
    help="Deep-learning reports: train what a question asks, execute and export its notebooks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    epilog="Begin with [bold]dlops run q1.1[/]: real digits, about a minute, no download.",
)
data_app = typer.Typer(help="Fetch data sets, and see which are there.")
app.add_typer(data_app, name="data")
console = Console(highlight=False, soft_wrap=True)
PUBLISHED = ("lite", "original", "full")  # presets whose results are kept beside their reports

_IDS = typer.Argument(metavar="[ID]...", help="Questions (q1.1, ...) or assignments; all if none.")
_ROLL = typer.Option(help="Your roll number: its last digit picks the variant.")
_SET = typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; repeatable.")
_DEVICE = typer.Option(help="cpu, cuda or mps; default: CUDA if there is one.")
_JOBS = typer.Option(help="Runs at a time, each in its own process; GPUs are shared out.")
_AUTHOR = typer.Option(help="Your name: also writes the document to hand in, per assignment.")
Ids = Annotated[list[str] | None, _IDS]
Preset = Annotated[str, typer.Option(help="test, quick, lite, original or full.")]
Roll = Annotated[str | None, _ROLL]
Set = Annotated[list[str] | None, _SET]
Device = Annotated[str | None, _DEVICE]
Force = Annotated[bool, typer.Option("--force", help="Train again, also what is complete.")]
Jobs = Annotated[int, _JOBS]
Author = Annotated[str | None, _AUTHOR]


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
    wanted = _wanted(select(ids, roll_number, preset, settings(changes)), preset)
    store = Store()
    missing = [e for e in wanted if force or not settled(store, e)]
    if done := len(wanted) - len(missing):
        console.print(f"{done} of {len(wanted)} results are in the store.")
    if not missing:
        return

    options: dict[str, Any] = {"store": store, "device": device, "force": force}
    sources = [e.parent.with_(keep="weights") for e in missing if e.parent]
    due = {e.id for e in missing} | {e.id for e in sources if not store.find(e)}
    with Watch(console, due, jobs) as watch:
        from dlops.runs import run_all  # which imports torch

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


def _wanted(reports: Iterable[Report], preset: str) -> list[Experiment]:
    """The experiments of all reports, each once: of equals the one that keeps more."""
    wanted = [e for report in reports for e in report.wanted(preset)]
    most = {e.id: e for e in sorted(wanted, key=lambda e: KEEP.index(e.keep))}
    return [most[id_] for id_ in dict.fromkeys(e.id for e in wanted)]


@app.command()
def report(
    ids: Ids = None,
    preset: Preset = "quick",
    roll_number: Roll = None,
    changes: Set = None,
    author: Author = None,
) -> None:
    """Execute the notebooks from the store and export HTML and PDF. Never trains."""
    from dlops import export  # which imports nbconvert

    store, asked = Store(), select(ids, roll_number, preset, settings(changes))
    missing = [r for r in asked if any(not settled(store, e) for e in r.wanted(preset))]
    ready = [r for r in asked if r not in missing]
    if missing and not author:  # the document has every question with results
        questions = dict.fromkeys(r.question for r in missing)
        words = " ".join(["dlops train", *questions, f"--preset {preset}"])
        words += f" --roll-number {roll_number}" if roll_number else ""
        words += "".join(f" --set {pair}" for pair in changes or [])
        raise DlopsError(f"Results are missing for {', '.join(questions)}; train them: {words}")
    if not ready:
        raise DlopsError("There is nothing to report: no question that was asked for has results.")
    for name in dict.fromkeys(e.data.name for r in ready for e in r.wanted(preset)):
        here, words = present(name)
        if not here:
            raise DlopsError(f"A report shows images of {DATASETS[name].title}: {words}")

    folder, problems, no_pdf = reports_root() / preset, [], ""
    pages: dict[str, list[Path]] = {}
    for number, item in enumerate(ready, 1):
        began, page = time.monotonic(), folder / f"{item.name}.html"
        console.print(f"[bold]{number}/{len(ready)}[/] {item.title}")
        notebook = project_root() / "notebooks" / item.notebook
        given = {"preset": preset, **dict(item.parameters)}
        with console.status("  executing"):
            executed = execute(notebook, given, page.with_suffix(".ipynb"))
        if failed := export.export(executed, page, title=item.title):
            problems.append(f"{item.name}: {failed}")
            console.print(f"  {page.with_suffix('.failed.html')}")
            continue
        no_pdf = _print(page) or no_pdf
        if preset in PUBLISHED:
            for result in filter(None, map(store.get, item.wanted(preset))):
                publish(result, preset)
        pages.setdefault(item.assignment, []).append(page)
        console.print(f"  {page}  ({duration(time.monotonic() - began)})")
    if author:
        no_pdf = _hand_in(pages, folder, author, roll_number or "") or no_pdf
        left_out = [f"{r.question} ({r.variant})" if r.variant else r.question for r in missing]
        problems += [f"left out for want of results: {', '.join(left_out)}"] if left_out else []
    if no_pdf:
        console.print(f"[yellow]{escape(no_pdf)}[/]")
    console.print(f"The index of the reports: {export.index(reports_root(), preset)}")
    if problems:
        raise DlopsError("; ".join(problems))


def _print(page: Path) -> str:
    """Print a page; where that cannot be done, why."""
    from dlops import export

    try:
        export.pdf(page, page.with_suffix(".pdf"))
    except DlopsError as error:
        page.with_suffix(".pdf").unlink(missing_ok=True)
        return str(error)
    return ""


def _hand_in(pages: dict[str, list[Path]], folder: Path, author: str, roll_number: str) -> str:
    """One document an assignment; where it cannot be printed, why."""
    from dlops import export

    no_pdf = ""
    for assignment, chapters in pages.items():
        page = folder / f"{assignment}-{re.sub(r'[^0-9A-Za-z]+', '-', roll_number) or 'all'}.html"
        names = {"title": ASSIGNMENTS[assignment], "author": author, "roll_number": roll_number}
        export.hand_in(chapters, page, **names, date=time.strftime("%Y-%m-%d"))
        no_pdf = _print(page) or no_pdf
        console.print(f"To hand in: {page}")
    return no_pdf


@app.command("list")
def list_(
    ids: Ids = None,
    preset: Preset = "quick",
    roll_number: Roll = None,
    changes: Set = None,
    every: Annotated[bool, typer.Option("--all", help="Each run, with what it changes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The reports of a preset: how many of their runs are complete, and the headline."""
    store = Store()
    rows: list[dict[str, Any]] = []
    for item in select(ids, roll_number, preset, settings(changes)):
        wanted = _wanted([item], preset)
        parents = {e.parent.id for e in wanted if e.parent}
        headline = next(e for e in wanted if e.id not in parents)
        runs = [_row(store, e, headline) for e in wanted]
        states = Counter(run["state"] for run in runs)
        own = {"headline": runs[wanted.index(headline)], "runs": runs}
        rows.append({"report": item.name, "states": states, **own})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run" if every else "report", "state", "top-5", "top-1", "time"):
        left = name in ("report", "run", "state")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        if every:
            table.add_row(f"[bold]{row['report']}[/]")
            for run in row["runs"]:
                words = escape(f"{run['id']} {run['words']}")
                table.add_row(words, _coloured(run["state"]), *_numbers(run))
        else:
            words = ", ".join(f"{n} {_coloured(state)}" for state, n in row["states"].items())
            table.add_row(row["report"], words, *_numbers(row["headline"]))
    console.print(table, soft_wrap=False)
    for error in dict.fromkeys(run["error"] for row in rows for run in row["runs"]):
        if error:
            console.print(f"[red]failed[/] {escape(error)}")


def _row(store: Store, experiment: Experiment, base: Experiment) -> dict[str, Any]:
    """What there is to tell of a run: its state, what it changes of the first one, its result."""
    state, result = store.status(experiment), store.get(experiment)
    alike = experiment.data.name, experiment.model.weights
    kin = experiment is not base and alike == (base.data.name, base.model.weights)
    metrics = result.metrics if result else {}
    return {
        "id": experiment.id,
        "words": experiment.differs(base) if kin else experiment.title,
        "state": state,
        "top5": metrics.get("test_top5"),
        "top1": metrics.get("test_top1"),
        "seconds": result.provenance["seconds"] if result else None,
        "error": store.failure(experiment) if state == "failed" else None,
    }


def _numbers(run: dict[str, Any]) -> list[str]:
    shares = [f"{100 * x:.1f} %" if x is not None else "–" for x in (run["top5"], run["top1"])]
    return [*shares, duration(run["seconds"]) if run["seconds"] else "–"]


def _coloured(state: str) -> str:
    colours = {"complete": "green", "failed": "red", "running": "cyan"}
    return f"[{colours[state]}]{state}[/]" if state in colours else state


@data_app.callback(invoke_without_command=True)
def data_list(context: typer.Context) -> None:
    """Which data sets are here; `dlops data fetch NAME` fetches one."""
    if context.invoked_subcommand is None:
        for info in DATASETS.values():
            console.print(f"{info.name:<14} {info.title:<34} {escape(present(info.name)[1])}")


_NAME = typer.Argument(help="tiny-imagenet, cifar100, stl10, or imagenet-weights.")


@data_app.command("fetch")
def data_fetch(name: Annotated[str, _NAME]) -> None:
    """Fetch a data set or weights from the publisher: resumable, verified, unpacked."""
    with Watch(console, set()) as watch:

        def fetching(done: int, total: int) -> None:
            watch({"what": f"fetching {name}", "done": done, "total": total})

        if name == "imagenet-weights":
            from dlops.data.weights import fetch_imagenet  # which imports torch

            place = fetch_imagenet(progress=fetching)
        else:
            place = fetch(name, progress=fetching)
    console.print(f"{name} is ready in {place}")


@app.command()
def doctor() -> None:
    """What this machine has: versions, GPU, browser, fonts, data sets, disk."""
    import torch

    from dlops import export

    def line(name: str, good: object, words: str) -> None:
        mark = "[green]ok  [/]" if good else "[yellow]none[/]"
        console.print(f"{mark} {name:<9} {escape(words)}")

    ours = f"torch {torch.__version__}, dlops {metadata.version('dlops')}"
    line("python", True, f"{sys.version.split()[0]}, {ours}")
    gpu = torch.cuda.is_available()
    line("gpu", gpu, torch.cuda.get_device_name() if gpu else "training runs on the CPU")
    browser = export.browser()
    line("browser", browser, browser or "no PDF: install Chrome, Chromium or Edge")
    font = math_font()
    line("font", font, font or "formulas in PDF may look plain: install a maths font (lmodern)")
    for name in DATASETS:
        good, words = present(name)
        line("data", good, f"{name}: {words}")
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


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    if show:
        console.print(f"dlops {metadata.version('dlops')}")
        raise typer.Exit


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, Ctrl-C and SIGTERM are 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer makes this of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except DlopsError as error:
        complain = Console(stderr=True, highlight=False, soft_wrap=True).print
        complain(f"[red]dlops:[/] {escape(str(error))}")
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
