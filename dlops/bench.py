"""`python -m dlops.bench`: how fast training is here, beside the script one would write otherwise.

In one run, interleaved, for each stem: (a) the ordinary script: ImageFolder, DataLoader with a
worker a core, crop and flip, float32, NCHW, Adam as it comes; (b) ours, by the very loop that
`run` uses; (c) ours on one resident batch, the ceiling without input; (d) the model step of (a)
on one resident batch. It reads Tiny ImageNet, or JPEGs made in its layout where that is not here.
"""

from __future__ import annotations

import argparse
import base64
import inspect
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dlops import export, memory, metrics, plots, train
from dlops.convolution import Conv3x3
from dlops.data import DataSet, Split, load, locate, present
from dlops.data.cache import _decode_paths
from dlops.experiment import Data, DlopsError, Experiment
from dlops.resnet import ResNet18
from dlops.store import reports_root, write_json

CLASSES = 20
EPOCH = 100_000  # images of the ordinary script's, as Tiny ImageNet's: it starts workers for each
VARIANTS = {
    "a": "(a) the ordinary script",
    "b": "(b) ours, end to end",
    "c": "(c) ours, one resident batch",
    "d": "(d) plain step, one resident batch",
}
GOALS = {  # the least ratio of each pair: on a CPU by stem, on a GPU
    "b/a": ({"imagenet": 1.8, "cifar": 2.2}, 5.0),
    "b/c": ({"imagenet": 0.95, "stride2": 0.95, "cifar": 0.95}, 0.95),
    "c/d": ({}, 2.5),
}
REACHED = {  # by the medians, by the best
    (True, True): "at least",
    (True, False): "by the medians at least, by the best below",
    (False, True): "by the best at least, by the medians below",
    (False, False): "below",
}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is trained: a stem, at so many pixels, in batches of so many images."""

    stem: str
    size: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.stem}, {self.size} px, batch {self.batch}"


# Images ---------------------------------------------------------------------------------------


def make_images(folder: Path, count: int) -> None:
    """Smooth noise as 64-pixel JPEGs in Tiny ImageNet's layout, `count` in CLASSES classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        wnid = f"n{number % CLASSES:08d}"
        place = folder / "train" / wnid / "images"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(place / f"{wnid}_{number}.JPEG", quality=88)


def choose(folder: Path, count: int) -> list[Path]:
    """About `count` training images, as many of each of the first CLASSES classes."""
    classes = sorted(path for path in (folder / "train").iterdir() if path.is_dir())[:CLASSES]
    each = max(1, count // len(classes))
    return [image for c in classes for image in sorted((c / "images").iterdir())[:each]]


def read(paths: Sequence[Path], size: int) -> DataSet:
    """The images as `run` would have them: uint8 in memory, of `size` pixels."""
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    if images.shape[-1] != size:
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    names = sorted({path.parent.parent.name for path in paths})
    labels = torch.tensor([names.index(path.parent.parent.name) for path in paths])
    return resident(images, labels, len(names))


def resident(images: Tensor, labels: Tensor, classes: int) -> DataSet:
    """A data set of these training images; validation and test are its first."""
    whole, few = Split(images, labels), Split(images[:32], labels[:32])
    names, rows = tuple(map(str, range(classes))), torch.arange(len(labels))
    middle = (0.45,) * 3, (0.25,) * 3
    return DataSet("bench", names, "", whole, few, few, None, rows, *middle)


# The four variants ----------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_model(stem: str) -> ResNet18:
    """ResNet18 with torch's own convolutions, as torchvision's has them."""
    model = ResNet18(200, stem)
    for module in model.modules():
        if isinstance(module, Conv3x3):
            module.forward = partial(nn.Conv2d.forward, module)  # type: ignore[method-assign]
    return model


class Ordinary:
    """The script of a tutorial: (a) with its input, (d) on one batch."""

    def __init__(
        self, case: Case, paths: Sequence[Path], device: torch.device, workers: int
    ) -> None:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        steps: list[Any] = [transforms.Resize(case.size)] if case.size != 64 else []
        steps += [
            transforms.RandomCrop(case.size, padding=case.size // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.45,) * 3, (0.25,) * 3),
        ]
        wanted = set(map(str, paths))
        whole = ImageFolder(str(paths[0].parents[2]), transforms.Compose(steps))
        rows = [i for i, (name, _) in enumerate(whole.samples) if name in wanted]
        data = torch.utils.data.Subset(whole, rows * (EPOCH // len(rows) + 1))
        self.loader = torch.utils.data.DataLoader(
            data,
            batch_size=case.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        self.device = device
        self.model = plain_model(case.stem).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.loss = nn.CrossEntropyLoss()
        self.input = self.batches()
        self.one = next(self.input)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for images, labels in self.loader:
                yield images.to(self.device), labels.to(self.device)

    def measure(self, seconds: float, resident: bool) -> float:
        """Images a second, from the second batch on. It goes on in the epoch where it stopped:
        starting workers and filling their queue is the price of an epoch, not of a few seconds.
        """
        done, started, total = 0, 0.0, 0.0
        for images, labels in repeat(self.one) if resident else self.input:
            loss = self.loss(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            if not started:  # the first batch leaves the memory as the others find it
                synchronize(self.device)
                started = time.perf_counter()
                continue
            done += len(labels)
            if time.perf_counter() - started >= seconds:
                break
        synchronize(self.device)
        return done / (time.perf_counter() - started)


class OneBatch:
    """An epoch that is the same batch over and over."""

    def __init__(self, batch: tuple[Tensor, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch, as often as an epoch has steps."""
        return (self.batch for _ in range(self.steps))


class Ours:
    """What `run` does: (b) with its input, (c) on one batch."""

    def __init__(self, case: Case, data: DataSet, device: torch.device, precision: str) -> None:
        experiment = Experiment.from_flat(
            {
                "data": "tiny-imagenet",
                "augment": "crop-flip",
                "stem": case.stem,
                "batch_size": case.batch,
                "precision": precision,
                "epochs": 10_000,
            }
        )
        torch.backends.cudnn.benchmark = True  # as `run` has it on a GPU
        self.run = train.Run(experiment, data, device)
        self.run.begin()
        self.input = self.run.train
        self.one: Any = OneBatch(next(iter(self.input.epoch(0))), len(self.input))

    def measure(self, seconds: float, resident: bool) -> float:
        """Images a second of the training loop; as in the ordinary script, from a second batch on:
        the memory of a process that waited for its turn may have to be fetched again.
        """
        self.run.train = self.one if resident else self.input
        self.train(0.0)
        synchronize(self.run.device)
        started = time.perf_counter()
        steps = self.train(seconds)
        synchronize(self.run.device)
        return steps * self.run.experiment.schedule.batch_size / (time.perf_counter() - started)

    def train(self, seconds: float) -> int:
        """Steps of the training loop, one at least, until stopped as Ctrl-C would stop it."""
        run, steps = self.run, 0
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        while not (steps and stop.is_set()):
            run.epoch, run.step = run.epoch + 1, 0
            train.train_epoch(run, stop, lambda event: None)
            steps += run.step
        timer.cancel()
        return steps

    def read(self) -> float:
        """Seconds an image of the input alone, over an epoch of it."""
        started, images = time.perf_counter(), 0
        for _, labels in self.input.epoch(0):
            images += len(labels)
        synchronize(self.run.device)
        return (time.perf_counter() - started) / images


def precision_of(device: torch.device) -> str:
    """bfloat16 where the processor computes in it; emulated it would be slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    known = (
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")
    )
    return "bfloat16" if any(check and check() for check in known) else "float32"


_program: Any = None  # of the process that measures it
_open = ExitStack()


def _prepare(name: str, case: Case, paths: Sequence[Path], place: str, workers: int) -> None:
    global _program
    device = torch.device(place)
    if name == "ordinary":
        _program = Ordinary(case, paths, device, workers)
    else:
        _open.enter_context(memory.reused())
        _program = Ours(case, read(paths, case.size), device, precision_of(device))


def _measure(seconds: float, resident: bool) -> float:
    return _program.measure(seconds, resident)


def _read() -> float:
    return _program.read()


def compare(
    case: Case,
    paths: Sequence[Path],
    device: torch.device,
    workers: int,
    seconds: float,
    repeats: int,
    say: Callable[[str], None],
) -> Figures:
    """Images/s of the four variants of one case, in turns, and peak memory.

    Ours and the ordinary script live in a process each: what ours sets there does not help the
    other. Every other round goes backwards, so that none always follows the same one; a first is
    not counted: it finds caches and memory as the preparation left them.
    """
    precision, context = precision_of(device), get_context("spawn")
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with ExitStack() as stack:
        programs = {
            n: stack.enter_context(ProcessPoolExecutor(1, context)) for n in ("ordinary", "ours")
        }
        for name, program in programs.items():
            program.submit(_prepare, name, case, paths, str(device), workers).result()
        for turn in range(repeats + 1):
            for name in list(VARIANTS)[:: (-1) ** turn]:
                program = programs["ordinary" if name in "ad" else "ours"]
                rate = program.submit(_measure, seconds if turn else 0.0, name in "cd").result()
                if turn:
                    rates[name].append(rate)
            if turn:
                say("  ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()))
        read = programs["ours"].submit(_read).result()
        peaks = {n: program.submit(memory.peak, device).result() for n, program in programs.items()}
    flops = 3 * forward_flops(case)
    peak = matmul_flops(device, precision)
    best = {name: max(values) for name, values in rates.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "case": case.name,
        "stem": case.stem,
        "size": case.size,
        "batch": case.batch,
        "precision": precision,
        "rates": rates,
        "best": best,
        "median": median,
        "ratios": {pair: median[pair[0]] / median[pair[2]] for pair in GOALS},
        "ratios_of_best": {pair: best[pair[0]] / best[pair[2]] for pair in GOALS},
        "input_share": read * median["b"],
        "gflop_per_image": flops / 1e9,
        "share_of_matmul": {name: rate * flops / peak for name, rate in best.items()},
        "matmul_gflops": peak / 1e9,
        "peak_mib": {n: p.get("peak_gpu_mib", p.get("peak_rss_mib")) for n, p in peaks.items()},
    }


def forward_flops(case: Case) -> float:
    """Floating-point operations of one image's forward pass, by the definition."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain_model(case.stem).eval()(torch.zeros(1, 3, case.size, case.size))
    return counter.get_total_flops()


def matmul_flops(device: torch.device, precision: str, size: int = 1024) -> float:
    """Operations a second of a large matrix product: what this device does at best."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    size *= 8 if device.type == "cuda" else 1
    a = torch.randn(size, size, device=device, dtype=kind)
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# The rest -------------------------------------------------------------------------------------


def clock(function: Callable[[], Any], repeats: int = 1) -> list[float]:
    """Seconds of each of some calls."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return taken


def decode_rate(paths: Sequence[Path], workers: int) -> float:
    """Images a second of the decoder that fills the cache, in as many processes."""
    program = f"{inspect.getsource(_decode_paths)}\n{_decode_paths.__name__}()"
    blocks = ["\0".join(map(str, paths[i::workers])) for i in range(workers)]

    def decode() -> None:
        command = [sys.executable, "-c", program]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            for _ in blocks
        ]
        threads = [
            threading.Thread(target=p.communicate, args=(os.fsencode(b),))
            for p, b in zip(running, blocks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return len(paths) / min(clock(decode, 2))


def start_up(repeats: int) -> dict[str, float]:
    """The best of some starts of commands that train nothing, in seconds."""
    commands = {
        "dlops --help": ["-m", "dlops.cli", "--help"],
        "dlops list": ["-m", "dlops.cli", "list"],
        "dlops train, all in the store": ["-m", "dlops.cli", "train", "q1.1", "--roll-number", "1"],
        "import torch, for scale": ["-c", "import torch"],
    }

    def start(words: list[str]) -> None:
        subprocess.run([sys.executable, *words], capture_output=True, check=True)

    return {name: min(clock(partial(start, words), repeats)) for name, words in commands.items()}


def analysis(points: int, tsne: Sequence[int]) -> dict[str, float]:
    """Seconds of what is computed of embeddings [points, 512] after training."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 200, points)
    x = (rng.normal(size=(200, 512))[labels] + rng.normal(size=(points, 512))).astype(np.float32)
    tensor, index = torch.from_numpy(x), torch.from_numpy(labels)
    taken = {
        f"class means of {points:,}": min(
            clock(lambda: torch.zeros(200, 512).index_add_(0, index, tensor), 3)
        ),
        f"k-NN of {points:,} among {points:,}": clock(
            lambda: metrics.knn_accuracy(x, labels, x, labels)
        )[0],
    }
    metrics.tsne(x[:100], seed=0)  # imports, compiles
    for count in tsne:
        taken[f"t-SNE of {count:,}"] = clock(partial(metrics.tsne, x[:count], seed=0))[0]
    return taken


def share_cost(per_class: int | None, images: int, seconds: float, device: str) -> dict[str, float]:
    """Time and memory of one epoch: of Tiny ImageNet, or of so many images of noise.

    The whole epoch is read and augmented, "input"; its training is taken from some seconds of it.
    Run in a process of its own, for its peak of memory.
    """
    place = train.choose_device(device)
    started = time.perf_counter()
    if present("tiny-imagenet")[0]:
        data = load(Data("tiny-imagenet", per_class=per_class), 0)
    else:
        pixels = torch.randint(0, 256, (images, 3, 64, 64), dtype=torch.uint8)
        data = resident(pixels, torch.arange(images) % CLASSES, CLASSES)
    loaded = time.perf_counter() - started
    case = Case("imagenet", 64, min(128, len(data.train)))
    ours = Ours(case, data, place, precision_of(place))
    taken = {"images": len(data.train), "load": loaded, "input": len(data.train) * ours.read()}
    with memory.reused():
        ours.measure(0.0, False)
        taken["epoch"] = len(data.train) / ours.measure(seconds, False)
    taken |= memory.peak(place)
    return taken


def shares(images: int, seconds: float, device: str, repeats: int) -> list[dict[str, float]]:
    """`share_cost` of 1, 10 and 100 %, in turns: the median of each figure."""
    kinds = ((1, 5), (10, 50), (100, None))
    rows: dict[int, list[dict[str, float]]] = {percent: [] for percent, _ in kinds}
    for _ in range(repeats):
        for percent, per_class in kinds:
            count = max(CLASSES, images * percent // 100)
            call = f"share_cost({per_class}, {count}, {seconds}, {device!r})"
            code = f"import json; from dlops.bench import share_cost; print(json.dumps({call}))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            if done.returncode:
                said = done.stderr[-300:]
                raise DlopsError(f"The cost of {percent} % could not be measured: {said}")
            rows[percent].append(json.loads(done.stdout))
    return [
        {"percent": percent}
        | {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for percent, measured in rows.items()
    ]


def precision_cost(seeds: int) -> list[dict[str, Any]]:
    """Question 1.1 on digits in float32 and in bfloat16, from the store or trained."""
    rows = []
    for seed in range(seeds):
        row: dict[str, Any] = {"seed": seed}
        for precision in ("float32", "bfloat16"):
            experiment = Experiment.from_preset(
                "q1.1", preset="quick", seed=seed, precision=precision
            )
            row[precision] = train.run(experiment).metrics["test_top1"]
        rows.append(row)
    return rows


def batch_costs(
    sizes: Sequence[int], data: DataSet, device: torch.device, seconds: float
) -> list[dict[str, float]]:
    """Images/s and peak memory for each batch size, smallest first, imagenet stem at 64 px."""
    rows, ours = [], None
    for size in sorted(sizes):
        repeated = torch.arange(size) % len(data.train)
        images, labels = data.train.images[repeated], data.train.labels[repeated]
        whole = resident(images, labels, len(data.class_names))
        ours = None  # lets go of the last one's memory
        memory.reset_peak(device)
        with memory.reused():
            ours = Ours(Case("imagenet", 64, size), whole, device, precision_of(device))
            ours.measure(0.0, True)
            rows.append({"batch": size, "rate": ours.measure(seconds, True), **memory.peak(device)})
    return rows


# The report -----------------------------------------------------------------------------------


def findings(figures: Figures) -> list[str]:
    """What the measured ratios say, each beside its goal."""
    gpu = figures["machine"]["device"] != "cpu"
    said = []
    for case in figures["cases"]:
        words = []
        for pair, (by_stem, on_gpu) in GOALS.items():
            goal = on_gpu if gpu else by_stem.get(case["stem"])
            ratio, of_best = case["ratios"][pair], case["ratios_of_best"][pair]
            text = f"({pair[0]})/({pair[2]}) is {ratio:.2f} ({of_best:.2f} of the best)"
            if goal:
                text += f", {REACHED[ratio >= goal, of_best >= goal]} the goal of {goal:g}"
            if goal and min(ratio, of_best) < goal and pair == "b/a":
                text += (
                    f" (counted by the definition, (a) computes at"
                    f" {100 * case['share_of_matmul']['a']:.0f} % of the speed of a matrix product,"
                    f" ours at {100 * case['share_of_matmul']['b']:.0f} %)"
                )
            words.append(text)
        words.append(f"the input alone takes {_percent(case['input_share'])} of the time of (b)")
        said.append(f"{case['case']}: {'; '.join(words)}.")
    if not gpu:
        said.append("No GPU was measured here: its figures are missing from this report.")
    return said


def _table(frame: pd.DataFrame, caption: str) -> Any:
    form = "{:,.0f}".format, "{:.3g}".format
    html = frame.to_html(index=False, border=0, float_format=lambda x: form[int(abs(x) < 100)](x))
    about = {"text/html": {"caption": caption}}
    return new_output("display_data", data={"text/html": html}, metadata=about)


def _picture(figure: Any, caption: str, alt: str) -> Any:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    image = base64.b64encode(buffer.getvalue()).decode()
    about = {"image/png": {"alt": alt, "caption": caption}}
    return new_output("display_data", data={"image/png": image}, metadata=about)


def report(figures: Figures, page: Path) -> None:
    """Write the figures as a report like the others, beside its notebook and its record."""
    cases, machine = figures["cases"], figures["machine"]

    def cell(*outputs: Any) -> Any:
        return new_code_cell("...", outputs=list(outputs), metadata={"tags": ["hide-input"]})

    def text(source: str) -> Any:
        return new_markdown_cell(source)

    bars = {
        f"{case['case']}: {VARIANTS[name]}": (
            case["median"][name],
            min(case["rates"][name]),
            case["best"][name],
        )
        for case in cases
        for name in VARIANTS
    }
    pair = max((case["ratios"]["b/a"], case["case"]) for case in cases)
    title = f"Ours trains up to {pair[0]:.1f} times as fast as the ordinary script ({pair[1]})"
    rates = pd.DataFrame(
        [
            {
                "case": case["case"],
                **{
                    VARIANTS[n]: f"{_rate(case['median'][n])} ({_rate(case['best'][n])})"
                    for n in VARIANTS
                },
                **{p: f"{case['ratios'][p]:.2f}" for p in GOALS},
            }
            for case in cases
        ]
    )
    floor = pd.DataFrame(
        [
            {
                "case": case["case"],
                "precision": case["precision"],
                "GFLOP an image": case["gflop_per_image"],
                "GFLOP/s, product": case["matmul_gflops"],
                **{
                    f"({name})": f"{100 * share:.0f} %"
                    for name, share in case["share_of_matmul"].items()
                },
            }
            for case in cases
        ]
    )
    peaks = pd.DataFrame(
        [
            {"case": case["case"]}
            | {n: f"{peak:,.0f}" if peak else "" for n, peak in case["peak_mib"].items()}
            for case in cases
        ]
    )
    cells = [
        text(
            "# How fast training is here\n\nFour ways to train the same ResNet18, measured in one"
            " run, in turns: " + "; ".join(VARIANTS.values()) + "."
        ),
        text("## Findings\n\n" + "\n".join(f"- {line}" for line in findings(figures))),
        text(
            "## Images a second\n\nThe median of the repeats, and the best in brackets: the"
            " ratios are those of the medians, for on a machine that others use too the best of a"
            " few is luck."
        ),
        cell(
            _table(rates, "Images/s, median (best), and ratios of the medians."),
            _picture(
                plots.intervals(bars, title=title, xlabel="Images a second", percent=False),
                "Images a second: the median, and the range of the repeats.",
                f"A chart of the speed of each case and variant. {title}.",
            ),
        ),
        text(
            "## What holds it back\n\nOperations of a training image (three forward passes'), and"
            " how many a second a large matrix product reaches on the same device. They are"
            " counted by the definition of a convolution, of which ours takes fewer on a CPU."
        ),
        cell(
            _table(
                floor,
                "Operations of an image, of a large matrix product a second, and the share of that"
                " speed that each way reaches.",
            ),
            _table(
                peaks,
                "Peak memory in MiB of the process that measures (a) and (d), and of that which"
                " measures (b) and (c), or on a GPU there.",
            ),
        ),
        text(
            "## Cost against size\n\nAn epoch of so many images (the input in whole, the training"
            " from some seconds of it), and the training loop by batch size. Stem imagenet, 64 px."
        ),
        cell(*_costs(figures)),
        *_precisions(figures["precisions"]),
        text("## Start-up, decoding, and what is computed of embeddings"),
        cell(
            _table(
                pd.DataFrame(list(figures["seconds"].items()), columns=["what", "seconds"]),
                "Seconds: the best of the repeats of start-ups, one run of the others.",
            ),
            _table(
                pd.DataFrame(
                    [
                        ("images decoded a second", figures["decode_rate"]),
                        ("110,000 images at that rate, s", 110_000 / figures["decode_rate"]),
                    ],
                    columns=["what", "value"],
                ),
                "Decoding JPEGs with a process a core.",
            ),
        ),
        text(
            "## Limitations\n\n- Ratios hold for this machine and what else ran on it; take those"
            " of one run, and none across machines.\n- Images are read from the disk cache.\n"
            f"- {figures['source']}"
        ),
        text("## Provenance"),
        cell(
            _table(
                pd.DataFrame(list(machine.items()), columns=["what", "value"]).astype(str),
                "The machine, versions and settings.",
            )
        ),
    ]
    payload = {
        "id": "speed",
        "title": "Speed: side by side with the ordinary script",
        "assignment": "speed",
        "preset": page.parent.name,
        "parameters": {"cases": len(cases)},
        "headline": [
            [f"(b)/(a), {c['stem']} {c['size']} px", f"{c['ratios']['b/a']:.2f}"] for c in cases
        ],
        "commit": machine["commit"],
        "when": figures["when"],
    }
    cells.append(cell(new_output("display_data", data={export.SENTINEL: payload})))
    page.parent.mkdir(parents=True, exist_ok=True)
    notebook = page.with_suffix(".ipynb")
    nbformat.write(new_notebook(cells=cells), notebook)
    export.export(notebook, page)


def _precisions(rows: list[dict[str, Any]]) -> list[Any]:
    if not rows:
        return []
    frame = pd.DataFrame(rows)
    change = 100 * (frame["bfloat16"] - frame["float32"])
    said = (
        f"Over {len(rows)} seeds bfloat16 changes test top-1 by {change.mean():+.1f} points on"
        f" average (from {change.min():+.1f} to {change.max():+.1f}); the seeds in float32 lie"
        f" {100 * (frame['float32'].max() - frame['float32'].min()):.1f} apart."
    )
    return [
        new_markdown_cell(
            "## What mixed precision costs\n\nQuestion 1.1 on digits, the same runs but for the"
            f" precision. {said}"
        ),
        new_code_cell(
            "...",
            outputs=[_table(frame, "Test top-1 in float32 and with bfloat16 autocast.")],
            metadata={"tags": ["hide-input"]},
        ),
    ]


def _costs(figures: Figures) -> list[Any]:
    outputs = []
    if rows := figures["shares"]:
        frame = pd.DataFrame(rows).set_index("images")
        panels = {
            "Seconds an epoch": {"training": frame["epoch"], "its input": frame["input"]},
            "Peak memory, MiB": {"measured": frame["peak_rss_mib"]},
        }
        growth = (frame["epoch"].iloc[-1] / frame["epoch"].iloc[0]) / (
            frame.index[-1] / frame.index[0]
        )
        title = f"100 times the images: the time an image grows {growth:.2f}-fold"
        if frame.index[-1] != 100 * frame.index[0]:
            title = (
                f"{frame.index[-1] / frame.index[0]:.0f} times the images: the time an image"
                f" grows {growth:.2f}-fold"
            )
        outputs.append(
            _picture(
                plots.lines(panels, title=title, xlabel="Images"),
                "Time and memory of an epoch for 1, 10 and 100 % of the images.",
                f"Two panels of curves against the number of images. {title}.",
            )
        )
        outputs.append(_table(pd.DataFrame(rows), "Cost against the number of images."))
    if rows := figures["batches"]:
        frame = pd.DataFrame(rows).set_index("batch")
        memory = "peak_gpu_mib" if "peak_gpu_mib" in frame else "peak_rss_mib"
        panels = {
            "Images a second": {"ours": frame["rate"]},
            "Peak memory, MiB": {"ours": frame[memory]},
        }
        best = max(rows, key=lambda row: row["rate"])["batch"]
        title = f"Batches of {best} train fastest, at {frame['rate'].max():,.0f} images a second"
        outputs.append(
            _picture(
                plots.lines(panels, title=title, xlabel="Batch size"),
                "Speed and peak memory by batch size, stem imagenet at 64 px.",
                f"Two curves against the batch size. {title}.",
            )
        )
    return outputs


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.1f}"


def show(figures: Figures) -> None:
    """Print the table."""
    print(f"{'case':<28}" + "".join(f"{name:>16}" for name in VARIANTS) + "    b/a   b/c   c/d")
    for case in figures["cases"]:
        cells = (f"{_rate(case['median'][n])} ({_rate(case['best'][n])})" for n in VARIANTS)
        ratios = "".join(f"{case['ratios'][pair]:6.2f}" for pair in GOALS)
        print(f"{case['case']:<28}" + "".join(f"{c:>16}" for c in cells) + f" {ratios}")
    for name, seconds in figures["seconds"].items():
        print(f"{name:<34} {seconds:8.3f} s")
    print(f"{'decoding':<34} {figures['decode_rate']:8,.0f} images/s")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, store and report."""
    parser = argparse.ArgumentParser(prog="python -m dlops.bench", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="JPEGs of the comparison")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stems", nargs="+", default=["imagenet", "stride2", "cifar"])
    parser.add_argument("--size", nargs="+", type=int, default=[64, 224], help="224: imagenet only")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", nargs="*", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--points", type=int, default=10_000, help="embeddings to analyse")
    parser.add_argument("--tsne", nargs="*", type=int, default=[500, 1000, 2000])
    parser.add_argument("--seeds", type=int, default=3, help="of the comparison of precisions")
    parser.add_argument("--workers", type=int, help="of the DataLoader; default: one a core")
    parser.add_argument("--device", help="cpu or cuda; default: CUDA if there is one")
    parser.add_argument("--preset", default="quick", help="the folder of the report")
    a = parser.parse_args(words)
    for name in ("images", "repeats", "batch", "points"):
        if getattr(a, name) < 1:
            raise DlopsError(f"--{name} is {getattr(a, name)}, but must be at least 1.")
    if a.images // CLASSES * CLASSES < a.batch:
        raise DlopsError(f"--images is {a.images}, fewer than a batch of {a.batch}.")
    device = train.choose_device(a.device)
    machine = {**train.machine(device), **train.git_state()}
    workers = a.workers if a.workers is not None else int(machine["cores"] or 1)
    cases = [
        Case(stem, size, a.batch)
        for size in a.size
        for stem in a.stems
        if size == 64 or stem == "imagenet"
    ]
    print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads;"
        f" device {machine['device']}, {precision_of(device)}, {workers} workers"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = locate("tiny-imagenet") if present("tiny-imagenet")[0] else None
        source = "The images are Tiny ImageNet's."
        if folder is None:
            folder = Path(scratch) / "tiny-imagenet-200"
            make_images(folder, a.images)
            source = "The images are noise in Tiny ImageNet's layout: the data set is not here."
        paths = choose(folder, a.images)
        small = read(paths[:64], 64)
        figures: Figures = {
            "machine": {**machine, "workers": workers, "seconds": a.seconds, "repeats": a.repeats},
            "source": source,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "batches": batch_costs(a.batches, small, device, a.seconds),
            "shares": shares(a.images, a.seconds, device.type, a.repeats),
            "precisions": precision_cost(a.seeds),
            "seconds": {**start_up(a.repeats), **analysis(a.points, a.tsne)},
            "decode_rate": decode_rate(paths, workers),
            "cases": [],
        }
        for case in cases:
            print(case.name)
            figures["cases"].append(
                compare(
                    case,
                    paths,
                    device,
                    workers,
                    a.seconds,
                    a.repeats,
                    lambda line: print("  ", line),
                )
            )
    show(figures)
    place = reports_root() / a.preset
    write_json(place / "speed" / "figures.json", figures)
    report(figures, place / "speed.html")
    export.index(reports_root())
    print(f"{place / 'speed.html'}")


if __name__ == "__main__":
    try:
        main()
    except DlopsError as error:
        sys.exit(f"dlops.bench: {error}")
