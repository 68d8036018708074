"""A notebook executed headlessly by papermill, apart from the reader's own settings.

The kernel is this very interpreter; start-up files, kernelspecs and a matplotlibrc of the user's do
not reach it. The output is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from dlops.settings import DlopsError

CELL_SECONDS = 600  # a cell that takes longer hangs: reports never train
KERNEL = "dlops"


def execute(notebook: Path, parameters: Mapping[str, Any], output: Path) -> Path:
    """Execute a notebook from the store; parameters that it declares and are not given are None.

    A cell that fails leaves a notebook all the same, and the export says so. Raises DlopsError for
    a notebook that is not as it was committed, and when there is no output.
    """
    given = {**dict.fromkeys(declared(notebook)), **parameters}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    command = [sys.executable, "-m", "papermill", str(notebook), str(temporary)]
    command += ["--parameters_yaml", json.dumps(given), "--cwd", str(notebook.parent)]
    command += ["--kernel", KERNEL, "--no-progress-bar", "--autosave-cell-every", "2"]
    command += ["--execution-timeout", str(CELL_SECONDS)]
    try:
        with tempfile.TemporaryDirectory() as own:
            said = _run(command, _environment(Path(own)))
        if not temporary.exists():
            raise DlopsError(f"{notebook.name} could not be executed: {said}")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return output


def declared(notebook: Path) -> list[str]:
    """The parameters of a notebook as it was committed: without outputs, each None by default."""
    from papermill import inspect_notebook

    if not notebook.exists():
        raise DlopsError(f"There is no notebook {notebook}; run dlops from its checkout.")
    cells = nbformat.read(notebook, as_version=4).cells
    found = inspect_notebook(str(notebook))
    changed = [f"{name} = {p['default']}" for name, p in found.items() if p["default"] != "None"]
    if any(cell.get("outputs") for cell in cells):
        changed.append("outputs")
    if changed:
        raise DlopsError(
            f"{notebook.name} was saved with {', '.join(changed)}: a report is made from the"
            " committed notebook. Put it back with `git checkout`, use --set, and work on the copy"
            " that `make lab` opens."
        )
    return list(found)


def _environment(own: Path) -> dict[str, str]:
    """Ours, with a kernel of this interpreter, and empty folders for what users configure."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    kernel = own / "kernels" / KERNEL / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec), encoding="utf-8")
    (own / "matplotlibrc").touch()
    return {
        **os.environ,
        "DLOPS_TRAIN": "never",
        "JUPYTER_PATH": str(own),
        "IPYTHONDIR": str(own / "ipython"),
        "MATPLOTLIBRC": str(own / "matplotlibrc"),
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
    }


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Run a command to its end, and return the last line it wrote; whatever ends us ends it."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # its kernel is a process of its own, in the same group
    ) as process:
        try:
            said = process.communicate()[1]
        except BaseException:
            with contextlib.suppress(ProcessLookupError, AttributeError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
    return (said.strip().splitlines() or ["it said nothing"])[-1]
