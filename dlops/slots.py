"""Parallel local slots: an executor of processes, each with its own share of threads or GPU."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from dlops.settings import DlopsError

_events: Any = None
_slot = 0
_stopped = False


class Slots(ProcessPoolExecutor):
    """`jobs` processes that train; what they tell of their progress reaches `progress` here.

    The processor's threads are divided among them, and with several GPUs each gets one. Every
    event carries its "slot". Ctrl-C lets each save its checkpoint and starts nothing more.
    """

    def __init__(self, jobs: int, progress: Callable[[dict[str, Any]], None]) -> None:
        if jobs < 1:
            raise DlopsError(f"jobs is {jobs}, but must be at least 1.")
        context = get_context("spawn")  # a fork of a process that has used torch may hang
        self.jobs, self.progress = jobs, progress
        self.events, numbers = context.Queue(), context.Queue()
        for number in range(jobs):
            numbers.put(number)
        super().__init__(jobs, context, _start, (jobs, numbers, self.events))
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn(*args, progress=..., **kwargs)` in a slot."""
        return super().submit(_work, fn, *args, **kwargs)

    def _listen(self) -> None:
        while (event := self.events.get()) is not None:
            self.progress(event)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is KeyboardInterrupt:  # a terminal tells all processes, a plain kill only this one
            for child in active_children():
                os.kill(child.pid or 0, signal.SIGINT)
        self.shutdown(wait=True, cancel_futures=True)
        self.events.put(None)
        self.listener.join()


def _start(jobs: int, numbers: Any, events: Any) -> None:
    """Once in each process, before it imports torch."""
    global _events, _slot
    _events, _slot = events, numbers.get()
    share = max(1, (os.cpu_count() or 1) // jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    signal.signal(signal.SIGINT, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(min(share, torch.get_num_threads()))
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(_slot % torch.cuda.device_count())


def _end_with_parent() -> None:
    """A killed parent leaves no process behind that waits for work for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _stop(*_: object) -> None:
    global _stopped
    _stopped = True


def _work(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    def tell(event: dict[str, Any]) -> None:
        _events.put({**event, "slot": _slot})

    if _stopped:
        raise KeyboardInterrupt
    try:
        return fn(*args, progress=tell, **kwargs)
    except KeyboardInterrupt:
        _stop()
        raise
