"""Many runs: parallel slots, sweeps that go on where they stopped, one source for twenty."""

import json
import subprocess
import sys

import pytest

from dlops import cli
from dlops.experiment import Experiment
from dlops.report import lab3
from dlops.runs import run_all
from dlops.settings import DlopsError
from dlops.slots import Slots
from dlops.store import Store
from dlops.watch import Watch


def small(**settings):
    """A tenth of a second of training."""
    base = Experiment.from_preset("lab3.source", "test", per_class=3, test_per_class=1, epochs=1)
    return base.with_(keep="metrics", **settings)


def test_an_interrupted_sweep_repeats_no_finished_run():
    experiments = [small(lr=lr) for lr in (0.1, 0.01, 0.001)]
    finished, trained = [], []

    def stop_after_two(experiment, result):
        finished.append(experiment.id)
        if len(finished) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(experiments, on_result=stop_after_two)
    times = {id_: (Store().root / id_ / "result.json").stat().st_mtime_ns for id_ in finished}
    results = run_all(experiments, progress=lambda event: trained.append(event.get("experiment")))
    assert [e.id for e in trained if e] == [e.id for e in experiments if e.id not in finished]
    assert [r.id for r in results] == [e.id for e in experiments]
    for id_, time in times.items():
        assert (Store().root / id_ / "result.json").stat().st_mtime_ns == time


TWENTY = """
import json, os, sys
from multiprocessing import get_context
import torch
torch.set_num_threads(1)
from dlops import run
from dlops.experiment import Experiment

def ask(number, barrier, out):
    source = Experiment.from_json(json.loads(sys.argv[1])).with_(keep="weights")
    trained = []
    barrier.wait()
    result = run(source, progress=lambda event: trained.append("experiment" in event))
    out.put((any(trained), result.id, (result.folder / "weights.npz").exists()))

context = get_context("fork")
barrier, out = context.Barrier(20), context.Queue()
children = [context.Process(target=ask, args=(i, barrier, out)) for i in range(20)]
for child in children: child.start()
answers = [out.get(timeout=120) for _ in children]
for child in children: child.join()
print(json.dumps(answers))
"""


def test_twenty_that_ask_for_one_source_train_it_once():
    source = small()
    command = [sys.executable, "-c", TWENTY, json.dumps(source.to_json())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == 20
    assert [trained for trained, _, _ in answers].count(True) == 1
    assert {id_ for _, id_, _ in answers} == {source.id}
    assert all(weights for _, _, weights in answers)


def test_slots_train_in_parallel_and_tell_of_it():
    source = small()
    target = Experiment.from_flat(
        {"weights": "run", "inverted": False}, defaults=source.settings, parent=source
    )
    wanted = [target.with_(seed=seed, keep="metrics") for seed in range(2)]
    events, told = [], []
    with Slots(2, events.append) as executor:
        results = run_all(wanted, executor, on_result=lambda e, r: told.append(e.id))
    assert [r.id for r in results] == [e.id for e in wanted]
    assert told[0] == source.id and set(told[1:]) == {e.id for e in wanted}
    began = [event for event in events if "experiment" in event]
    assert sorted(event["experiment"].id for event in began) == sorted(told)
    assert {event["slot"] for event in events} <= {0, 1}
    assert all(r.provenance["threads"] == 1 for r in results)
    history = results[0].history
    for kind in ("gradient", "step", "moment"):
        assert {f"{kind}_{stage}" for stage in lab3.STAGES} <= set(history)


def test_no_slots_is_refused():
    with pytest.raises(DlopsError, match="at least 1"):
        Slots(0, print)


def test_the_table_counts_what_was_missing(capsys):
    board = Watch(cli.console, {small().id, small(lr=0.1).id}, jobs=2)
    board({"experiment": small(), "epochs": 2, "slot": 1})
    board({"row": {}, "epoch": 1, "slot": 1})
    run = run_all([small()])[0]
    board.result(small(), run)
    board.result(small(lr=0.01), run)  # was in the store
    board.result(small(lr=0.1), DlopsError("The loss was not finite."))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["1/2", "2/2"]
    assert rows[1][1] == "failed" and rows[1][-2:] == ["lr", "0.1"]


def test_a_member_of_a_sweep_that_diverged_is_settled():
    member = small(lr=0.1)
    assert not cli.settled(Store(), member)
    Store().fail(member, "The loss was not finite.")
    assert cli.settled(Store(), member)
    assert not cli.settled(Store(), member.with_(keep="arrays"))
