"""Results are whole or not there, have a state, and can be published; nothing here trains."""

import json
import threading

import numpy as np
import pytest
from filelock import FileLock

from dlops.experiment import Experiment
from dlops.settings import DlopsError
from dlops.store import Store, publish, reports_root
from dlops.store.disk import write_json

EXPERIMENT = Experiment.from_preset("q1.1", "test")
ARRAYS = {
    "predictions": np.array([[1, 0], [0, 1]], dtype=np.uint8),
    "labels": np.array([1, 1], dtype=np.uint8),
    "embeddings": np.ones((2, 4), dtype=np.float16),
}
WEIGHTS = {"body.fc.weight": np.arange(6.0).reshape(2, 3)}
HISTORY = [{"epoch": 1, "train_loss": 0.1 + 0.2}, {"epoch": 2, "train_loss": 1 / 3}]


def save(keep="arrays", store=None, **changes):
    whole = {
        "metrics": {"test_top1": 0.5},
        "history": HISTORY,
        "provenance": {"when": "2026-01-02T03:04:05Z"},
        "arrays": ARRAYS,
        "weights": WEIGHTS,
    }
    return (store or Store()).save(EXPERIMENT.with_(keep=keep), **(whole | changes))


def status():
    return Store().status(EXPERIMENT)


def folder():
    return Store().folder(EXPERIMENT)


def test_a_result_comes_back_as_it_was_saved():
    save()
    result = Store().get(EXPERIMENT)
    assert result.id == EXPERIMENT.id
    assert result.experiment == EXPERIMENT
    assert result.metrics == {"test_top1": 0.5}
    assert result.history.train_loss.tolist() == [0.1 + 0.2, 1 / 3]  # to the last bit
    for name in ("predictions", "labels", "embeddings"):
        np.testing.assert_array_equal(getattr(result, name), ARRAYS[name])
    assert sorted(p.name for p in folder().iterdir()) == ["arrays.npz", "result.json"]


@pytest.mark.parametrize(
    "changes", [{"history": []}, {"metrics": {"test_top1": 1e999}}], ids=["empty", "infinite"]
)
def test_what_would_not_be_believed_is_not_saved(changes):
    with pytest.raises(ValueError):
        save(**changes)
    assert Store().get(EXPERIMENT) is None and not folder().exists()


def test_another_experiment_has_no_result():
    save()
    assert Store().get(EXPERIMENT.with_(seed=1)) is None


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": 1})
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


# States ---------------------------------------------------------------------------------------


def test_states_from_missing_to_complete():
    assert status() == "missing"
    with Store().claim(EXPERIMENT) as place:
        assert status() == "running"
        (place / "checkpoint.pt").write_bytes(b"...")
    assert status() == "interrupted"
    Store().fail(EXPERIMENT, "it diverged")
    assert status() == "failed"
    assert Store().failure(EXPERIMENT) == "it diverged"
    assert not (place / "checkpoint.pt").exists()
    (place / "checkpoint.pt").write_bytes(b"...")
    save()
    assert status() == "complete"
    assert Store().failure(EXPERIMENT) is None
    assert not place.exists()


def test_a_claim_waits_for_the_one_before():
    order = []

    def second():
        with Store().claim(EXPERIMENT) as place:
            order.append("second")
            (place / "checkpoint.pt").write_bytes(b"...")

    with Store().claim(EXPERIMENT):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_a_claim_that_leaves_nothing_leaves_no_folder():
    with Store().claim(EXPERIMENT) as place:
        assert place.is_dir()
    assert not place.exists() and not folder().exists()


def test_a_claim_that_breaks_off_leaves_no_folder_and_no_lock():
    with pytest.raises(DlopsError), Store().claim(EXPERIMENT) as place:
        raise DlopsError("no such data")
    assert not place.exists() and not folder().exists()
    assert status() == "missing"


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(DlopsError, match=r"cannot be written.*DLOPS_STORE"):
        with store.claim(EXPERIMENT):
            pass


# What is kept, and published ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "files", "serves"),
    [
        ("metrics", ["result.json"], ["metrics"]),
        ("arrays", ["arrays.npz", "result.json"], ["metrics", "arrays"]),
        (
            "weights",
            ["arrays.npz", "result.json", "weights.npz"],
            ["metrics", "arrays", "weights"],
        ),
    ],
)
def test_a_result_serves_who_asks_for_no_more_than_it_keeps(kept, files, serves):
    save(keep=kept)
    assert sorted(path.name for path in folder().iterdir()) == files
    for wanted in ("metrics", "arrays", "weights"):
        found = Store().get(EXPERIMENT.with_(keep=wanted))
        assert (found is not None) == (wanted in serves)


def test_what_is_not_kept_is_told():
    result = save(keep="metrics")
    with pytest.raises(DlopsError, match="keeps no predictions"):
        _ = result.predictions
    assert result.arrays == {} and result.weights == {}


def test_a_published_result_is_read_when_the_store_has_none():
    publish(save(keep="weights"), "lite")
    place = reports_root() / "lite" / "results" / EXPERIMENT.id
    assert sorted(path.name for path in place.iterdir()) == ["arrays.npz", "result.json"]
    Store().forget(EXPERIMENT)
    result = Store().get(EXPERIMENT)
    assert result.folder == place
    np.testing.assert_array_equal(result.labels, ARRAYS["labels"])
    assert Store().get(EXPERIMENT.with_(keep="weights")) is None
    assert status() == "complete"


def test_publishing_again_replaces_the_copy():
    publish(save(), "lite")
    place = reports_root() / "lite" / "results"
    publish(save(metrics={"test_top1": 0.9}), "lite")
    assert [path.name for path in place.iterdir()] == [EXPERIMENT.id]
    record = json.loads((place / EXPERIMENT.id / "result.json").read_text())
    assert record["metrics"] == {"test_top1": 0.9}


def test_the_store_comes_before_what_is_published():
    publish(save(), "lite")
    save(metrics={"test_top1": 0.75})
    assert Store().get(EXPERIMENT).metrics == {"test_top1": 0.75}


def test_a_lock_of_another_experiment_says_nothing():
    other = EXPERIMENT.with_(seed=1)
    Store().root.mkdir(exist_ok=True)
    with FileLock(Store().root / f"{other.id}.lock"):
        assert Store().status(other) == "running"
        assert status() == "missing"
