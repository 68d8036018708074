"""`run(experiment)` returns its result from the store, or trains it: the one place that knows both.

`run_all` does so for many, each once, parents first, here or by any executor.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dlops import layerwise, machine
from dlops.data import DataSet, load
from dlops.data.weights import source_weights
from dlops.divergence import Diverged, check_finite
from dlops.evaluate import KEPT, compact, sample
from dlops.experiment import KEEP, Experiment
from dlops.settings import DATASETS, DlopsError
from dlops.store import Result, Store
from dlops.store.checkpoint import Checkpoint, Misfit
from dlops.train import Outcome, Progress, Training, finish, train_classifier


def _quiet(event: dict[str, Any]) -> None:
    pass


def run(
    experiment: Experiment,
    *,
    store: Store | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress = _quiet,
) -> Result:
    """The experiment's result: from the store, resumed from its checkpoint, or trained.

    device: see `machine.choose_device`; force: train again even if a result is there. progress is
    called with a dict of epoch, step, steps, rate (images/s), and after an epoch with its history
    row. Raises DlopsError if it cannot be trained (and notes why in the store), KeyboardInterrupt
    after Ctrl-C, when the next call continues.
    """
    store = store or Store()
    if not force and (result := store.get(experiment)):
        return result
    if os.environ.get("DLOPS_TRAIN") == "never":
        raise DlopsError(
            f"Result {experiment.id} ({experiment.title}) is missing, and reports never train;"
            " train it with `dlops train`, with the same preset and settings."
        )
    place = machine.choose_device(device)
    parent = None
    if experiment.parent:
        source = experiment.parent.with_(keep="weights")
        parent = run(source, store=store, device=device, progress=progress)
    with store.claim(experiment) as folder:
        before = store.get(experiment)  # another process may have finished it meanwhile
        if before and not force:
            return before
        replaces = before.digest if before else None
        checkpoint = Checkpoint(folder / "checkpoint.pt", experiment.id, replaces)
        return _train(experiment, store, checkpoint, place, parent, progress)


def _train(
    experiment: Experiment,
    store: Store,
    checkpoint: Checkpoint,
    device: torch.device,
    parent: Result | None,
    progress: Progress,
) -> Result:
    began = time.perf_counter()
    machine.reset_peak(device)
    progress({"experiment": experiment, "epochs": experiment.schedule.epochs})

    def decoding(done: int, total: int) -> None:
        progress({"what": "decoding images", "done": done, "total": total})

    data = load(experiment.data, experiment.seed, progress=decoding)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    train: Callable[..., Outcome] = partial(_train_network, parent=parent)
    if experiment.model.name == "autoencoder":
        train = layerwise.train
    with interruptible() as interrupt:
        settings = experiment, data, device, checkpoint, interrupt, progress
        try:
            try:
                outcome = train(*settings)
            except Misfit as error:
                checkpoint.set_aside(f"it does not fit this run ({error})")
                outcome = train(*settings)
            measures = outcome.metrics, outcome.history
            check_finite(experiment, measures, {**outcome.arrays, **outcome.weights})
        except Diverged as error:
            store.fail(experiment, str(error))
            raise
    provenance = {
        **machine.describe(device),
        **machine.git_state(),
        **machine.peak(device),
        **outcome.about,
        "checksum": DATASETS[experiment.data.name].checksum,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "train_seconds": outcome.seconds,
        "seconds": time.perf_counter() - began,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    result = store.save(
        experiment,
        metrics=outcome.metrics,
        history=outcome.history,
        provenance=provenance,
        arrays=outcome.arrays,
        weights=outcome.weights,
    )
    if interrupt.is_set():  # after the last step: it is saved, and no other run starts
        raise KeyboardInterrupt
    return result


def _train_network(
    experiment: Experiment,
    data: DataSet,
    device: torch.device,
    checkpoint: Checkpoint,
    interrupt: threading.Event,
    progress: Progress,
    parent: Result | None,
) -> Outcome:
    current = Training(experiment, data, device)
    if parent:
        own = {name: torch.from_numpy(value) for name, value in parent.weights.items()}
        current.start_from(own, parent.id)
    elif experiment.model.weights == "imagenet":
        found, _ = source_weights("imagenet")
        current.start_from({f"body.{k}": value for k, value in found.items()}, "ImageNet")
    arrays = {}
    wanted = experiment.keep != "metrics"
    if wanted and experiment.loss.name == "triplet":
        before = current.evaluation(current.test).points.cpu().numpy()
        arrays["embeddings_before"] = compact(before[sample(len(before))[:KEPT]])
    current.begin()
    if (state := checkpoint.load()) is not None:
        current.restore(state)
    train_classifier(current, checkpoint, interrupt, progress)
    if wanted and experiment.model.name == "stacked":
        network = current.averaged or current.network
        arrays |= layerwise.views(network.body, data, device)
    return finish(current, arrays)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets: a run then stops after the step, and saves itself."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    asked = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: event.set()) for number in asked]
    try:
        yield event
    finally:
        for number, handler in zip(asked, previous):
            signal.signal(number, handler)


def run_all(
    experiments: Iterable[Experiment],
    executor: Executor | None = None,
    *,
    on_result: Callable[[Experiment, Result | Exception], None] | None = None,
    progress: Progress = _quiet,
    **options: Any,
) -> list[Result]:
    """The results of all experiments, each trained once, the parents of missing ones first.

    executor: any concurrent.futures.Executor (processes, Dask's Client.get_executor(), ...);
    without one they run here, one after another. A failure does not stop the others; the first is
    raised at the end, what nobody expected before a DlopsError. options go to `run`.
    """
    wanted = list(experiments)
    unique = {e.id: e for e in sorted(wanted, key=lambda e: KEEP.index(e.keep))}  # what keeps most
    there = options.get("store") or Store()
    missing = wanted if options.get("force") else [e for e in wanted if not there.find(e)]
    parents = {e.parent.id: e.parent.with_(keep="weights") for e in missing if e.parent}
    results: dict[str, Result] = {}
    errors: list[Exception] = []

    def settle(experiment: Experiment, outcome: Callable[[], Result]) -> None:
        result: Result | Exception
        try:
            result = results[experiment.id] = outcome()
        except Exception as error:
            errors.append(result := error)
        if on_result:
            on_result(experiment, result)

    others = {e.id: unique[e.id] for e in wanted if e.id not in parents}
    for wave in (parents, others):
        if executor is not None:
            futures = {executor.submit(run, e, **options): e for e in wave.values()}
            for future in as_completed(futures):
                settle(futures[future], future.result)
        else:
            for experiment in wave.values():
                settle(experiment, partial(run, experiment, progress=progress, **options))
    if errors:
        raise min(errors, key=lambda error: isinstance(error, DlopsError))
    return [results[experiment.id] for experiment in wanted]
