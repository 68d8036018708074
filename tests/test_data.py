"""Data sets from tiny hand-made files in the official layouts, splits, and batches."""

import hashlib
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dlops.data import COUNTS, Batches, Split, cache, class_batches, layouts, load, locate, present
from dlops.settings import DATASETS, Data, DlopsError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DLOPS_DATA", str(tmp_path))
    return tmp_path


def jpeg(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG")


@pytest.fixture
def tiny(root, monkeypatch):
    """Three classes with five training and two validation images, the first one grey."""
    published(monkeypatch, "tiny-imagenet", 3, (15, 6, 0))
    rng = np.random.default_rng(0)
    folder = root / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]
    lines = []
    for wnid in wnids:
        for i in range(5):
            grey = wnid == "n03" and i == 0
            pixels = rng.integers(0, 256, (64, 64) if grey else (64, 64, 3), dtype=np.uint8)
            jpeg(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels)
        for _ in range(2):
            name = f"val_{len(lines)}.JPEG"
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            jpeg(folder / "val" / "images" / name, pixels)
            lines.append(f"{name}\t{wnid}\t0\t0\t1\t1\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01\tcat, house cat\nn02\tdog\nn03\treel\nn04\tother\n")
    return folder


@pytest.fixture
def cifar(root, monkeypatch):
    published(monkeypatch, "cifar100", 10, (40, 20, 0))
    folder = root / "cifar-100-binary"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name, count in (("train.bin", 40), ("test.bin", 20)):
        records = rng.integers(0, 256, (count, 3074), dtype=np.uint8)
        records[:, 1] = np.arange(count) % 10
        records[:, 0] = records[:, 1] // 5
        (folder / name).write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n\n")
    (folder / "coarse_label_names.txt").write_text("one\ntwo\n\n")
    return folder


@pytest.fixture
def stl(root, monkeypatch):
    monkeypatch.setitem(COUNTS, "stl10", (30, 20, 7))
    folder = root / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for name, count in (("train", 30), ("test", 20), ("unlabeled", 7)):
        pixels = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{name}_X.bin").write_bytes(pixels.tobytes())
        if name != "unlabeled":
            labels = (np.arange(count) % 10 + 1).astype(np.uint8)
            (folder / f"{name}_y.bin").write_bytes(labels.tobytes())
    folds = [" ".join(map(str, rng.permutation(30)[:20])) for _ in range(10)]
    (folder / "fold_indices.txt").write_text("\n".join(folds) + "\n")
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    return folder


FINE = ["apple", "bear", "cloud", "dove", "elm", "fox", "girl", "house", "iris", "jar"]


def published(monkeypatch, name, classes, counts):
    """A data set is as small as the test's."""
    monkeypatch.setitem(COUNTS, name, counts)
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], num_classes=classes))


def as_set(split):
    return {image.numpy().tobytes() for image in split.images}


def as_set_of(split, label):
    return {image.numpy().tobytes() for image in split.images[split.labels == label]}


# Digits, for real


def test_digits_split_is_stratified_disjoint_and_complete():
    digits = load(Data(), seed=0)
    assert digits.train.shape[1:] == (3, 16, 16) and digits.train.images.dtype == torch.uint8
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert digits.class_names == tuple("0123456789")
    for split, share in ((digits.test, 0.2), (digits.val, 0.08)):
        counts = np.bincount(split.labels, minlength=10)
        assert np.allclose(counts, 179.7 * share, atol=3)
    everything = torch.cat([digits.train.images, digits.val.images, digits.test.images])
    assert len({image.numpy().tobytes() for image in everything}) == 1797
    pixels = digits.train.images.double() / 255
    assert np.allclose(digits.mean, pixels.mean((0, 2, 3)), rtol=1e-9)
    assert np.allclose(digits.std, pixels.std((0, 2, 3), correction=0), rtol=1e-9)


def test_digits_are_the_published_ones():
    from sklearn.datasets import load_digits

    published = load_digits()
    digits = load(Data(), seed=3)
    whole = torch.cat([digits.train.images, digits.val.images, digits.test.images])
    assert int(whole.max()) == 255 and int(whole.min()) == 0
    assert abs(float(whole.float().mean()) - published.images.mean() * 255 / 16) < 0.5


def test_seed_changes_validation_but_neither_test_nor_subset():
    one, two = load(Data(per_class=40), seed=1), load(Data(per_class=40), seed=2)
    assert torch.equal(one.test.images, two.test.images)
    assert as_set(one.val) != as_set(two.val)
    assert as_set(one.train) | as_set(one.val) == as_set(two.train) | as_set(two.val)
    again = load(Data(per_class=40), seed=1)
    assert torch.equal(one.train.images, again.train.images)
    assert torch.equal(one.train.labels, again.train.labels)


def test_smaller_subset_is_part_of_larger():
    small, large = load(Data(per_class=20), seed=0), load(Data(per_class=40), seed=0)
    assert len(small.train) + len(small.val) == 200
    assert as_set(small.train) | as_set(small.val) < as_set(large.train) | as_set(large.val)
    few = load(Data(per_class=20, classes=3, test_per_class=5), seed=0)
    assert few.class_names == ("0", "1", "2") and len(few.test) == 15
    assert set(few.train.labels.tolist()) == {0, 1, 2}
    assert as_set(few.train) | as_set(few.val) < as_set(small.train) | as_set(small.val)


def test_classes_are_the_first_or_drawn_by_their_own_seed():
    everything = load(Data(), seed=0)
    drawn = load(Data(classes=4, class_seed=1), seed=0)
    assert len(drawn.class_names) == 4 and drawn.class_names != ("0", "1", "2", "3")
    assert list(drawn.class_names) == sorted(drawn.class_names)
    assert set(drawn.train.labels.tolist()) == {0, 1, 2, 3}
    for label, name in enumerate(drawn.class_names):  # names and labels go together
        own = as_set_of(drawn.test, label)
        assert own and own == as_set_of(everything.test, int(name))
    fewer = load(Data(classes=3, class_seed=1), seed=5)
    assert set(fewer.class_names) < set(drawn.class_names)
    assert load(Data(classes=4, class_seed=2), seed=0).class_names != drawn.class_names
    first = load(Data(classes=4), seed=0)
    assert first.class_names == ("0", "1", "2", "3")
    assert as_set(first.test) == set().union(*(as_set_of(everything.test, c) for c in range(4)))


def test_label_fraction_is_a_stratified_nested_share():
    tenth = load(Data(label_fraction=0.1), seed=0)
    half = load(Data(label_fraction=0.5), seed=0)
    assert len(load(Data(), seed=0).labelled) == len(tenth.train)
    assert set(tenth.labelled.tolist()) < set(half.labelled.tolist())
    counts = np.bincount(tenth.train.labels[tenth.labelled], minlength=10)
    assert np.allclose(counts, 13, atol=1)


# Transforms


def test_grayscale_equals_pillow_and_inverted_is_the_negative(cifar):
    colour = load(Data(name="cifar100"), seed=0).train
    grey = load(Data(name="cifar100", grayscale=True), seed=0).train
    negative = load(Data(name="cifar100", inverted=True), seed=0).train
    assert grey.shape[1:] == (1, 32, 32)
    for before, after in zip(colour.images, grey.images, strict=True):
        expected = Image.fromarray(before.permute(1, 2, 0).numpy()).convert("L")
        assert np.array_equal(after[0].numpy(), np.asarray(expected))
    assert torch.equal(negative.images, 255 - colour.images)


@pytest.mark.parametrize("size", [16, 48])
def test_resize_is_pillows_antialiased_bilinear(cifar, size):
    before = load(Data(name="cifar100"), seed=0).train.images
    after = load(Data(name="cifar100", image_size=size), seed=0).train.images
    for small, image in zip(after, before, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(pillow.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(small.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("prefetch", [False, True])
def test_large_split_stays_mapped_and_gives_the_same(stl, monkeypatch, prefetch):
    wanted = Data(name="stl10", grayscale=True, image_size=32)
    memory = load(wanted, seed=0)
    monkeypatch.setattr("dlops.data.batches.IN_MEMORY", 0)
    mapped = load(wanted, seed=0)
    assert memory.train.rows is None and mapped.train.rows is not None
    assert torch.equal(memory.train.images, mapped.train.images)
    assert torch.equal(memory.unlabelled.images, mapped.unlabelled.images)
    assert memory.mean == mapped.mean
    settings = {"batch_size": 5, "seed": 0, "augment": "crop-flip"}
    for split in ("train", "unlabelled"):
        a = Batches(getattr(memory, split), memory.mean, memory.std, **settings)
        b = Batches(getattr(mapped, split), mapped.mean, mapped.std, **settings)
        assert b.resident is None and not b.prefetch  # on a CPU
        b.prefetch = prefetch
        assert all(
            torch.equal(x, y)
            for x, y in zip(a.epoch(2), b.epoch(2), strict=True)
            for x, y in zip(x, y)
        )


# Official layouts


def test_tiny_imagenet(tiny, root):
    heard = []
    found = load(Data(name="tiny-imagenet"), seed=0, progress=lambda *done: heard.append(done))
    assert heard[-1] == (21, 21)
    assert found.class_names == ("reel", "cat", "dog")
    assert found.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    files = sorted(tiny.glob("train/*/images/*.JPEG"))
    pillow = {}
    for path in files:
        pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
        pillow[pixels.tobytes()] = ["n03", "n01", "n02"].index(path.parent.parent.name)
    for split in (found.train, found.val):
        for image, label in zip(split.images, split.labels, strict=True):
            assert pillow.pop(image.numpy().tobytes()) == label
    assert not pillow
    assert not list(root.glob("cache/*.tmp"))


def test_tiny_imagenet_is_decoded_once(tiny, monkeypatch):
    first = load(Data(name="tiny-imagenet"), seed=0)
    monkeypatch.setattr(cache, "_decode", None)
    again = load(Data(name="tiny-imagenet"), seed=0)
    assert torch.equal(first.train.images, again.train.images)
    again.test.source[:] = 0  # a caller's scribbles do not reach the cache
    assert torch.equal(load(Data(name="tiny-imagenet"), seed=0).test.images, first.test.images)


def test_two_that_start_together_decode_once(tiny, monkeypatch):
    decode, calls, both = cache._decode, [], threading.Barrier(2)

    def counted(*arguments):
        calls.append(1)
        decode(*arguments)

    def start(_):
        both.wait()
        return load(Data(name="tiny-imagenet"), seed=0).train.images

    monkeypatch.setattr(cache, "_decode", counted)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(start, range(2))
    assert torch.equal(one, two) and len(calls) == 1


def test_interrupted_decoding_leaves_no_cache(tiny, root):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(Data(name="tiny-imagenet"), seed=0, progress=interrupt)
    assert not [path for path in root.glob("cache/*") if path.is_dir()]
    left_over = root / "cache" / "tiny-imagenet-90528d7c.killed.tmp"
    left_over.mkdir()
    load(Data(name="tiny-imagenet"), seed=0)
    assert not left_over.exists()


def damage(folder, kind):
    victim = folder / "train" / "n01" / "images" / "n01_2.JPEG"
    if kind == "cut":
        victim.write_bytes(victim.read_bytes()[:-500])
    elif kind == "empty":
        victim.write_bytes(b"")
    elif kind == "size":
        jpeg(victim, np.zeros((32, 64, 3), dtype=np.uint8))
    elif kind == "missing":
        victim.unlink()
    elif kind == "class":
        for path in victim.parent.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    "kind, words",
    [
        ("cut", "n01_2.JPEG is not a readable JPEG"),
        ("empty", "n01_2.JPEG is not a readable JPEG"),
        ("size", "n01_2.JPEG is not a readable JPEG image of 64 x 64"),
        ("missing", "train holds 4 images of n01, but must hold 5"),
        ("class", "train holds 0 images of n01, but must hold 5"),
    ],
)
def test_damaged_tiny_imagenet_is_named(tiny, root, kind, words):
    damage(tiny, kind)
    with pytest.raises(DlopsError, match=words) as error:
        load(Data(name="tiny-imagenet"), seed=0)
    assert "\n" not in str(error.value)
    assert not [path for path in root.glob("cache/*") if path.is_dir()]


@pytest.mark.parametrize(
    "file, change, words",
    [
        ("images.npy", lambda raw: raw[:1000], "cannot|size|mmap"),
        ("images.npy", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "its sha256 is not what"),
        ("labels.npy", lambda raw: raw[:-8] + b"\1" + raw[-7:], "its sha256 is not what"),
        ("manifest.json", lambda raw: raw.replace(b"md5:9", b"md5:8"), "its source is not what"),
        ("manifest.json", lambda raw: b"[]", "is not what the manifest says"),
        ("manifest.json", lambda raw: b"{", "Expecting"),
        ("manifest.json", None, "No such file .*manifest.json"),
    ],
)
def test_a_damaged_cache_is_set_aside_and_made_again(tiny, root, file, change, words):
    right = load(Data(name="tiny-imagenet"), seed=0).train.images
    path = root / "cache" / "tiny-imagenet-90528d7c" / file
    if change:
        damaged = change(path.read_bytes())
        path.unlink()  # tensors of before stay mapped
        path.write_bytes(damaged)
    else:
        path.unlink()
    with pytest.warns(UserWarning, match=f"is damaged .*({words}).* set aside as") as told:
        again = load(Data(name="tiny-imagenet"), seed=0)
    assert len(told) == 1
    assert torch.equal(again.train.images, right)
    assert (root / "cache" / "tiny-imagenet-90528d7c.bad").is_dir()
    load(Data(name="tiny-imagenet"), seed=0)  # without another warning


@pytest.mark.parametrize("kind", [np.zeros((21, 3, 32, 32), "u1"), np.zeros((21, 3, 64, 64), "f4")])
def test_a_cache_of_another_size_or_type_is_not_taken(tiny, root, kind):
    load(Data(name="tiny-imagenet"), seed=0)
    folder = root / "cache" / "tiny-imagenet-90528d7c"
    (folder / "images.npy").unlink()
    np.save(folder / "images.npy", kind)
    told = json.loads((folder / "manifest.json").read_text())
    told |= {"shape": list(kind.shape), "dtype": str(kind.dtype)}
    told["sha256"]["images.npy"] = hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.warns(UserWarning, match=f"it holds {kind.dtype}"):
        assert load(Data(name="tiny-imagenet"), seed=0).train.shape[1:] == (3, 64, 64)


def test_missing_folder_says_how_to_get_it(root):
    for name, folder in (("tiny-imagenet", "tiny-imagenet-200"), ("stl10", "stl10_binary")):
        with pytest.raises(DlopsError, match=f"dlops data fetch {name}`, or set DLOPS_DATA") as e:
            load(Data(name=name), seed=0)
        assert str(root / folder) in str(e.value)
        assert present(name) == (False, str(e.value))


def test_unwritable_data_folder_moves_the_cache(tiny, root, tmp_path_factory, monkeypatch):
    """As /kaggle/input, or a cluster's shared folder."""
    (root / "cache").write_text("in the way")
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert len(load(Data(name="tiny-imagenet"), seed=0).test) == 6
    cached = home / "dlops" / "data" / "cache" / "tiny-imagenet-90528d7c"
    assert (cached / "manifest.json").exists()
    monkeypatch.setattr(cache, "_decode", None)
    load(Data(name="tiny-imagenet"), seed=0)  # found there
    shutil.rmtree(home)
    home.write_text("in the way")
    with pytest.raises(DlopsError, match="cannot be written .* set DLOPS_DATA"):
        load(Data(name="tiny-imagenet"), seed=0)


def everything(found):
    return [x for part in (found.train, found.val, found.test) for x in (part.images, part.labels)]


def as_tutorials_leave_it(folder, kind):
    """github.com/TsingZ0/PFLlib/pull/230, and many scripts like that one"""
    val = folder / "val"
    annotations = val / "val_annotations.txt"
    for line in annotations.read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        to = val / wnid / "images" if "images" in kind else val / wnid
        to.mkdir(parents=True, exist_ok=True)
        (val / "images" / name).rename(to / name)
    (val / "images").rmdir()
    if "gone" in kind:
        annotations.unlink()
    if "flat" in kind:
        for images in folder.glob("train/*/images"):
            for path in images.iterdir():
                path.rename(images.parent / path.name)
            images.rmdir()
    if "nested" in kind:
        folder.rename(folder.with_name("away"))
        folder.mkdir()
        folder.with_name("away").rename(folder / folder.name)


@pytest.mark.parametrize("kind", ["", "gone", "images", "images gone", "flat", "gone flat nested"])
def test_tiny_imagenet_as_tutorials_leave_it(tiny, root, kind):
    official = everything(load(Data(name="tiny-imagenet"), seed=0))
    shutil.rmtree(root / "cache")
    as_tutorials_leave_it(tiny, kind)
    assert present("tiny-imagenet") == (True, str(locate("tiny-imagenet")))
    found = everything(load(Data(name="tiny-imagenet"), seed=0))
    assert all(torch.equal(a, b) for a, b in zip(official, found, strict=True))


def test_val_images_keep_the_official_order_without_annotations(root, monkeypatch):
    published(monkeypatch, "tiny-imagenet", 1, (1, 11, 0))
    folder = root / "tiny-imagenet-200"
    (folder / "train" / "n1").mkdir(parents=True)
    (folder / "train" / "n1" / "a.JPEG").touch()
    (folder / "val" / "n1").mkdir(parents=True)
    for i in range(11):
        (folder / "val" / "n1" / f"val_{i}.JPEG").touch()
    (folder / "wnids.txt").write_text("n1\r\n")
    (folder / "words.txt").write_text("n1\tcat\n")
    _, files = layouts.image_files(folder)
    assert [path.rpartition("/")[2] for path, _ in files] == [f"val_{i}.JPEG" for i in range(11)]


def test_what_systems_leave_among_the_images_is_ignored(tiny):
    """github.com/python-pillow/Pillow/issues/4807, github.com/apple/turicreate/issues/641"""
    for folder in (tiny, tiny / "train", tiny / "val", tiny / "train" / "n01" / "images"):
        for name in (".DS_Store", "Thumbs.db", "._n01_0.JPEG", "desktop.ini"):
            (folder / name).write_bytes(b"\0\5\x16\7")
        for name in ("__MACOSX", ".ipynb_checkpoints"):
            (folder / name).mkdir()
            jpeg(folder / name / "n01_0.JPEG", np.zeros((64, 64, 3), np.uint8))
    assert present("tiny-imagenet")[0]
    assert len(load(Data(name="tiny-imagenet"), seed=0).test) == 6


TINY_DAMAGE = {
    "a class too few": ("wnids.txt", "n03\nn01\n", "names 2 classes, but must name 3"),
    "a class twice": ("wnids.txt", "n03\nn01\nn01\n", "line 3: 'n01' stands there twice"),
    "an unknown class": ("wnids.txt", "n03\nn01\nn99\n", "does not know 'n99'"),
    "a path": ("wnids.txt", "n03\nn01\n../n02\n", "does not know '../n02'"),
    "words without a tab": ("words.txt", "n01\tcat\nn02 dog\n", "line 2: 'n02 dog' has no tab"),
    "not UTF-8": ("words.txt", b"n01\tcat\nn02\td\xf6g\n", "line 2: not UTF-8"),
    "no tab": ("val/val_annotations.txt", "val_0.JPEG n03\n", "line 1: .* has no tab"),
    "unknown": ("val/val_annotations.txt", "val_0.JPEG\tn77\t0\n", "line 1: .* no class 'n77'"),
    "outside": ("val/val_annotations.txt", "../val_0.JPEG\tn03\n", "no image '../val_0.JPEG'"),
    "twice": (
        "val/val_annotations.txt",
        "val_0.JPEG\tn03\nval_0.JPEG\tn03\n",
        "line 2: val_0.JPEG stands there twice",
    ),
    "one left out": (
        "val/val_annotations.txt",
        "".join(f"val_{i}.JPEG\tn03\n" for i in range(5)),
        "has no line for val_5.JPEG",
    ),
    "another class": (
        "val/val_annotations.txt",
        "".join(f"val_{i}.JPEG\tn03\n" for i in range(6)),
        "val holds 6 images of n03, but must hold 2",
    ),
}


@pytest.mark.parametrize("kind", TINY_DAMAGE)
def test_damaged_text_of_tiny_imagenet_is_named(tiny, kind):
    file, content, words = TINY_DAMAGE[kind]
    (tiny / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DlopsError, match=f"{file}.*{words}|{words}") as error:
        load(Data(name="tiny-imagenet"), seed=0)
    assert "\n" not in str(error.value) and str(tiny) in str(error.value)
    assert present("tiny-imagenet") == (False, str(error.value))


def test_a_folder_that_cannot_be_read_is_one_sentence(tiny, cifar, monkeypatch):
    listdir = os.listdir

    def refuse(path, *arguments, **others):
        if "tiny-imagenet" in str(path) and not str(path).endswith("n03/images"):
            return listdir(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dlops.data.readers.np.memmap", refuse)
    with pytest.raises(DlopsError, match="train.bin cannot be read .Permission denied"):
        load(Data(name="cifar100"), seed=0)
    monkeypatch.setattr("os.listdir", refuse)
    ready, sentence = present("tiny-imagenet")
    assert not ready and "n03/images cannot be read (Permission denied)" in sentence


def test_labels_and_folders_must_agree(tiny):
    as_tutorials_leave_it(tiny, "")
    (tiny / "val" / "n03" / "val_0.JPEG").rename(tiny / "val" / "n01" / "val_0.JPEG")
    with pytest.raises(DlopsError, match="line 1: val_0.JPEG is of class n03, but lies in n01"):
        load(Data(name="tiny-imagenet"), seed=0)
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DlopsError, match="val holds 1 images of n03, but must hold 2"):
        load(Data(name="tiny-imagenet"), seed=0)


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_folder_of_no_class_is_named(tiny, where):
    (tiny / where / "n04").mkdir()
    with pytest.raises(DlopsError, match=f"{where}/n04 is of no class"):
        load(Data(name="tiny-imagenet"), seed=0)


def test_many_equal_images_are_not_trained_on(root, monkeypatch):
    published(monkeypatch, "tiny-imagenet", 1, (20, 1, 0))
    folder = root / "tiny-imagenet-200"
    for i in range(20):
        jpeg(folder / "train" / "n1" / f"{i}.JPEG", np.zeros((64, 64, 3), np.uint8))
    jpeg(folder / "val" / "n1" / "val_0.JPEG", np.zeros((64, 64, 3), np.uint8))
    (folder / "wnids.txt").write_text("n1\n")
    (folder / "words.txt").write_text("n1\tcat\n")
    with pytest.raises(DlopsError, match="images 1 to 16, and perhaps more, are the same"):
        load(Data(name="tiny-imagenet"), seed=0)
    assert not [path for path in root.glob("cache/*") if path.is_dir()]


# A preallocated download that stopped, and what a flipped bit makes of labels


def rewrite(path, change):
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)


def zero(first, last):
    def change(raw):
        raw[first:last] = bytes(last - first)

    return change


def put(position, value):
    def change(raw):
        raw[position] = value

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (zero(20 * 3074, 40 * 3074), "train.bin has 4 images of class 0"),
        (put(5 * 3074 + 1, 200), "train.bin: image 5 has the label 200, but labels are 0 to 9"),
        (put(5 * 3074, 2), "train.bin: image 5 has the label 2, but labels are 0 to 1"),
        (put(5 * 3074 + 1, 6), "train.bin has 3 images of class 5, but must have 4"),
    ],
)
@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_damaged_cifar100_is_named(cifar, change, words, labels):
    load(Data(name="cifar100"), seed=0)  # what was right once is looked at again when it changes
    rewrite(cifar / "train.bin", change)
    with pytest.raises(DlopsError, match=words if "class 0" not in words else "train.bin has"):
        load(Data(name="cifar100", labels=labels), seed=0)


def test_zero_pixels_with_right_labels_are_named(cifar):
    def change(raw):
        records = np.frombuffer(raw, np.uint8).reshape(-1, 3074)
        records[20:, 2:] = 0

    rewrite(cifar / "train.bin", change)
    with pytest.raises(DlopsError, match="train.bin: images 21 to 36, .* incomplete or damaged"):
        load(Data(name="cifar100"), seed=0)


def test_a_few_equal_images_are_no_damage(cifar):
    def change(raw):
        records = np.frombuffer(raw, np.uint8).reshape(-1, 3074)
        records[20:36, 2:] = 0  # the first of them was not there before

    rewrite(cifar / "train.bin", change)
    assert load(Data(name="cifar100"), seed=0)


@pytest.mark.parametrize("content", ["apple\nbear\n", "\n".join([*FINE[:9], "apple"])])
def test_class_names_are_as_many_as_published(cifar, content):
    (cifar / "fine_label_names.txt").write_text(content)
    with pytest.raises(DlopsError, match="names 2 classes, but must name 10|line 10: 'apple'"):
        load(Data(name="cifar100"), seed=0)


@pytest.mark.parametrize("label", [0, 11])
def test_stl10_labels_are_1_to_10(stl, label):
    rewrite(stl / "train_y.bin", put(3, label))
    with pytest.raises(DlopsError, match=f"image 3 has the label {label}, but labels are 1 to 10"):
        load(Data(name="stl10"), seed=0)


def test_stl10_zeros_are_named(stl):
    rewrite(stl / "train_X.bin", zero(10 * 27648, 30 * 27648))
    with pytest.raises(DlopsError, match="train_X.bin: images 11 to 26"):
        load(Data(name="stl10"), seed=0)


@pytest.mark.parametrize("line", ["1 2 30", "1 2 2", "1 two", "1 -2"])
def test_stl10_folds_are_in_range(stl, line):
    (stl / "fold_indices.txt").write_text("0 1\n" * 3 + line + "\n" + "0 1\n" * 6)
    with pytest.raises(DlopsError, match="fold_indices.txt, line 4: not different numbers below"):
        load(Data(name="stl10", fold=3), seed=0)
    (stl / "fold_indices.txt").write_text("0 1\n")
    with pytest.raises(DlopsError, match="has 1 folds, but must have 10"):
        load(Data(name="stl10", fold=3), seed=0)


def test_cifar100_binary(cifar):
    found = load(Data(name="cifar100"), seed=0)
    records = np.frombuffer((cifar / "test.bin").read_bytes(), np.uint8).reshape(-1, 3074)
    assert found.class_names == tuple(FINE)
    assert found.test.labels.tolist() == records[:, 1].tolist()
    assert np.array_equal(found.test.images[3, 2, 1], records[3, 2 + 2048 + 32 : 2 + 2048 + 64])
    coarse = load(Data(name="cifar100", labels="coarse"), seed=0)
    assert coarse.class_names == ("one", "two")
    assert coarse.test.labels.tolist() == records[:, 0].tolist()


def test_cifar100_equals_torchvisions_reader(cifar, root, monkeypatch):
    """The published Python version has the same rows, in the same order, as the binary one."""
    import pickle

    from torchvision.datasets import CIFAR100

    (root / CIFAR100.base_folder).mkdir()
    for name in ("train", "test"):
        records = np.frombuffer((cifar / f"{name}.bin").read_bytes(), np.uint8).reshape(-1, 3074)
        entry = {"data": records[:, 2:], "fine_labels": records[:, 1].tolist()}
        (root / CIFAR100.base_folder / name).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names": FINE}
    (root / CIFAR100.base_folder / "meta").write_bytes(pickle.dumps(meta))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    theirs = CIFAR100(root, train=False)
    ours = load(Data(name="cifar100"), seed=0)
    assert np.array_equal(ours.test.images.permute(0, 2, 3, 1), theirs.data)
    assert ours.test.labels.tolist() == theirs.targets
    assert list(ours.class_names) == theirs.classes


@pytest.mark.parametrize("fold", [None, 0, 9])
def test_stl10_equals_torchvisions_reader(stl, root, monkeypatch, fold):
    from torchvision.datasets import STL10

    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *args: True)
    found = load(Data(name="stl10", fold=fold), seed=0)
    assert len(found.train) + len(found.val) == (30 if fold is None else 20)
    ours = torch.cat([found.train.images, found.val.images])
    labels = torch.cat([found.train.labels, found.val.labels]).tolist()
    theirs = STL10(root, "train", folds=fold)
    expected = {x.tobytes(): int(y) for x, y in zip(theirs.data, theirs.labels, strict=True)}
    assert {x.numpy().tobytes(): y for x, y in zip(ours, labels, strict=True)} == expected
    assert np.array_equal(found.test.images, STL10(root, "test").data)
    assert np.array_equal(found.unlabelled.images, STL10(root, "unlabeled").data)
    assert set(found.unlabelled.labels.tolist()) == {-1}
    assert list(found.class_names) == theirs.classes


@pytest.mark.parametrize("file", ["train_X.bin", "test_y.bin", "unlabeled_X.bin"])
def test_wrong_size_names_file_and_sizes(stl, file):
    size = (stl / file).stat().st_size
    with open(stl / file, "ab") as out:
        out.write(b"x")
    with pytest.raises(DlopsError, match=f"{file} has {size + 1:,} bytes, but must have {size:,}"):
        load(Data(name="stl10"), seed=0)


def test_stl10_without_unlabelled_images(stl):
    (stl / "unlabeled_X.bin").unlink()
    assert load(Data(name="stl10"), seed=0).unlabelled is None


# Batches


@pytest.fixture
def split():
    """20 images of 16 px, 4 classes; image i has i in its red channel."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (20, 3, 16, 16), dtype=np.uint8))
    images[:, 0] = torch.arange(20, dtype=torch.uint8)[:, None, None]
    return Split(images, torch.arange(20) % 4)


PLAIN = {"mean": [0.0] * 3, "std": [1 / 255] * 3, "seed": 0}  # pixels come out as they are


def identities(batches, epoch):
    return [images[:, 0, 0, 0].round().int().tolist() for images, _ in batches.epoch(epoch)]


def test_epoch_is_a_permutation_that_seed_and_epoch_decide(split):
    batches = Batches(split, **PLAIN, batch_size=5)
    first = identities(batches, 0)
    assert len(first) == len(batches) == 4 and sorted(sum(first, [])) == list(range(20))
    assert identities(batches, 1) != first
    assert identities(Batches(split, **PLAIN, batch_size=5), 0) == first
    assert identities(Batches(split, **{**PLAIN, "seed": 1}, batch_size=5), 0) != first


def test_labels_go_with_images(split):
    for images, labels in Batches(split, **PLAIN, batch_size=6, augment="crop-flip").epoch(3):
        assert torch.equal(images[:, 0, 0, 0].round().long() % 4, labels)


def test_last_batch_is_dropped_unless_it_is_the_only_one(split):
    for batch_size, sizes in ((6, [6, 6, 6]), (64, [20])):
        batches = Batches(split, **PLAIN, batch_size=batch_size)
        assert [len(labels) for _, labels in batches.epoch(0)] == sizes
        assert len(sizes) == len(batches)


def test_ordered_yields_everything_as_it_is(split):
    batches = Batches(split, **PLAIN, batch_size=4, augment="crop-flip")
    found = list(batches.ordered(7))
    assert [len(labels) for _, labels in found] == [7, 7, 6]
    assert torch.equal(torch.cat([labels for _, labels in found]), split.labels)
    images = torch.cat([images for images, _ in found])
    assert torch.allclose(images, split.images.float(), atol=1e-4)


def test_indices_choose_and_keep_their_order(split):
    batches = Batches(split, **PLAIN, batch_size=4, indices=torch.tensor([7, 3, 11]))
    ((images, labels),) = batches.ordered(8)
    assert images[:, 0, 0, 0].round().tolist() == [7, 3, 11] and labels.tolist() == [3, 3, 3]
    assert sorted(identities(batches, 0)[0]) == [3, 7, 11]


def test_normalisation_and_layout(split):
    mean, std = (0.1, 0.4, 0.6), (0.2, 0.3, 0.5)
    ((images, _),) = Batches(split, mean, std, batch_size=20, seed=0).ordered(20)
    shape = (1, 3, 1, 1)
    expected = (split.images / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert torch.allclose(images, expected, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
def test_augmentation_is_a_random_crop_of_the_reflect_padded_image(split, augment):
    padded = np.pad(split.images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    seen = set()
    batches = Batches(split, **PLAIN, batch_size=20, augment=augment)
    for epoch in range(12):
        for image in next(iter(batches.epoch(epoch)))[0].round().to(torch.uint8).numpy():
            source = padded[image[0, 0, 0]]
            crops = {
                (y, x, flip): source[:, y : y + 16, x : x + 16][:, :, :: -1 if flip else 1]
                for y in range(5)
                for x in range(5)
                for flip in (False, True)
            }
            found = [move for move, crop in crops.items() if np.array_equal(crop, image)]
            assert len(found) == 1
            seen.update(found)
    flips = {False, True} if augment == "crop-flip" else {False}
    assert {flip for *_, flip in seen} == flips
    assert len(seen) == 25 * len(flips)


def test_augmentation_resumes_without_state(split):
    settings = dict(**PLAIN, batch_size=5, augment="crop-flip")
    went_on = Batches(split, **settings)
    for epoch in range(3):
        last = list(went_on.epoch(epoch))
    resumed = list(Batches(split, **settings).epoch(2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(last, resumed, strict=True))


@pytest.mark.parametrize("p, k", [(2, 3), (4, 2), (3, 5)])
def test_p_classes_of_k_distinct_images(split, p, k):
    batches = Batches(split, **PLAIN, batch_size=99, groups=(p, k))
    assert len(batches) == max(1, 20 // (p * k))
    used = set()
    for epoch in range(40):
        found = list(batches.epoch(epoch))
        assert len(found) == len(batches)
        for images, labels in found:
            names = images[:, 0, 0, 0].round().int().tolist()
            assert np.unique(labels, return_counts=True)[1].tolist() == [k] * p
            assert len(set(names)) == p * k
            used.update(names)
    assert used == set(range(20))


def test_class_with_few_images_repeats_them(split):
    few = torch.tensor([0, 4, 1, 5, 9])  # class 0: two images; class 1: three
    batches = Batches(split, **PLAIN, batch_size=1, groups=(2, 3), indices=few)
    for images, labels in batches.epoch(0):
        assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
        names = images[:, 0, 0, 0].round().int()
        assert set(names[labels == 0].tolist()) == {0, 4}
        assert len(set(names[labels == 1].tolist())) == 3


def test_an_image_is_no_positive_pair_of_itself():
    labels, rng = np.array([0, 1, 1, 2, 2, 2]), np.random.default_rng(0)
    for _ in range(20):
        batches = class_batches(labels, 3, 2, rng)
        assert batches.shape == (1, 4) and 0 not in batches  # of the two classes that have pairs
    assert class_batches(np.arange(4), 2, 3, rng).shape == (0, 6)


def test_too_few_images_for_triplets_are_told_before_training(split):
    settings = dict(**PLAIN, batch_size=1, groups=(2, 2))
    for few, enough in (([0, 1, 5], False), ([0, 4, 1, 5], True)):
        if enough:
            Batches(split, indices=torch.tensor(few), **settings)
            continue
        with pytest.raises(DlopsError, match="two labelled training images .* per_class .3 or"):
            Batches(split, indices=torch.tensor(few), **settings)


def test_more_classes_than_there_are(split):
    with pytest.raises(DlopsError, match="classes_per_batch is 5, .* only 4 classes: set it to 4"):
        Batches(split, **PLAIN, batch_size=1, groups=(5, 2))


def test_abandoned_streaming_epoch_ends(split, monkeypatch):
    monkeypatch.setattr("dlops.data.batches.IN_MEMORY", 0)
    batches = Batches(split, **PLAIN, batch_size=5)
    batches.prefetch = True
    epoch = batches.epoch(0)
    next(epoch)
    epoch.close()
    assert sorted(sum(identities(batches, 0), [])) == list(range(20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(split):
    settings = dict(**PLAIN, batch_size=5, augment="crop-flip")
    there = Batches(split, device="cuda", **settings)
    here = Batches(split, **settings)
    for (x, y), (images, labels) in zip(there.epoch(1), here.epoch(1), strict=True):
        assert x.is_cuda and torch.allclose(x.cpu(), images) and torch.equal(y.cpu(), labels)
