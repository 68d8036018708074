"""Downloads from a server on this machine: resumed, verified, unpacked with suspicion."""

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dlops.data import COUNTS, fetch, layouts, locate, present
from dlops.settings import DATASETS, DlopsError


class Server(ThreadingHTTPServer):
    """Serves `content`; closes the connection after `cut` bytes, as often as `cuts` says."""

    content, cut, cuts, ranges, status = b"", 0, 0, True, 200
    redirect = ""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.redirect or server.status != 200:
            self.send_response(302 if server.redirect else server.status)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        start = 0
        if server.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.end_headers()
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name, classes, counts in (
        ("tiny-imagenet", 1, (1, 1, 0)),
        ("cifar100", 5, (5, 5, 0)),
    ):
        monkeypatch.setitem(COUNTS, name, counts)
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], num_classes=classes))
    monkeypatch.setenv("DLOPS_DATA", str(tmp_path / "data"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data"


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def publish(server, monkeypatch):
    """Serves an archive as a data set, with its true checksum."""

    def serve(content, name="tiny-imagenet", file="tiny.zip"):
        server.content = content
        info = replace(
            DATASETS[name],
            url=f"http://127.0.0.1:{server.server_port}/{file}",
            checksum=f"md5:{hashlib.md5(content).hexdigest()}",
            size=len(content),
        )
        monkeypatch.setitem(DATASETS, name, info)

    return serve


TINY = {
    "tiny-imagenet-200/wnids.txt": b"n01\n",
    "tiny-imagenet-200/words.txt": b"n01\t" + b"x" * 20_000,
    "tiny-imagenet-200/train/n01/a.JPEG": b"x",
    "tiny-imagenet-200/val/n01/val_0.JPEG": b"x",
}
CIFAR = {
    "train.bin": bytes(5 * 3074),
    "test.bin": bytes(5 * 3074),
    "fine_label_names.txt": b"a\nb\nc\nd\ne\n",
    "coarse_label_names.txt": b"all\n",
}


def cifar(**changed):
    return tarred(
        *((tarfile.TarInfo(f"cifar-100-binary/{n}"), c) for n, c in {**CIFAR, **changed}.items())
    )


def test_zip_is_unpacked_and_nothing_else_stays(root, publish, server):
    publish(zipped(TINY))
    heard = []
    folder = fetch.fetch("tiny-imagenet", progress=lambda *done: heard.append(done))
    assert folder == root / "tiny-imagenet-200" == locate("tiny-imagenet")
    assert (folder / "words.txt").read_bytes() == TINY["tiny-imagenet-200/words.txt"]
    assert heard[-1] == (len(server.content), len(server.content))
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == [
        folder.name
    ]
    fetch.fetch("tiny-imagenet")
    assert len(server.asked) == 1


def test_tar_is_unpacked(root, publish):
    publish(cifar(), "cifar100", "cifar.tar.gz")
    assert (fetch.fetch("cifar100") / "train.bin").read_bytes() == CIFAR["train.bin"]
    assert not [path for path in root.iterdir() if "cifar.tar.gz" in path.name]


def test_cut_connection_is_taken_up_again(root, publish, server):
    publish(zipped(TINY))
    server.cut, server.cuts = 4000, 3
    assert (fetch.fetch("tiny-imagenet") / "wnids.txt").exists()
    assert server.asked == [None, "bytes=4000-", "bytes=8000-", "bytes=12000-"]


def test_later_call_continues_what_an_earlier_one_kept(root, publish, server):
    publish(zipped(TINY))
    server.cut, server.cuts = 4000, 1
    server.content, whole = server.content[:4000], server.content
    root.mkdir()
    (root / "tiny.zip.part").write_bytes(whole[:4000])
    server.status = 503
    with pytest.raises(DlopsError, match="answered 503 .* 4,000 bytes are kept.* run the same"):
        fetch.fetch("tiny-imagenet")
    server.status, server.content, server.cuts, server.asked = 200, whole, 0, []
    assert fetch.fetch("tiny-imagenet").is_dir()
    assert server.asked == ["bytes=4000-"]


def test_server_without_ranges_starts_over(root, publish, server):
    publish(zipped(TINY))
    server.ranges, server.cut, server.cuts = False, 4000, 1
    assert fetch.fetch("tiny-imagenet").is_dir()
    server.cuts = 99


def test_connection_that_never_gets_further_gives_up(root, publish, server):
    publish(zipped(TINY))
    server.ranges, server.cut, server.cuts = False, 4000, 99
    with pytest.raises(DlopsError, match="4,000 bytes are kept"):
        fetch.fetch("tiny-imagenet")
    assert len(server.asked) == 2


def test_whole_part_left_by_a_killed_run_is_verified_and_used(root, publish, server):
    publish(zipped(TINY))
    (root / ".tiny-imagenet.killed.tmp").mkdir(parents=True)
    (root / "tiny.zip.part").write_bytes(server.content)
    assert fetch.fetch("tiny-imagenet").is_dir()
    assert not list(root.glob(".*.tmp"))


@pytest.mark.parametrize("left_over", ["", "tiny.zip.part"])
def test_wrong_checksum_is_set_aside(root, publish, server, left_over):
    publish(zipped(TINY))
    right = server.content
    server.content = right[:-1] + b"?"
    if left_over:
        root.mkdir()
        (root / left_over).write_bytes(server.content)
    with pytest.raises(
        DlopsError, match="sent has the MD5 checksum .* but must have .* set aside as"
    ):
        fetch.fetch("tiny-imagenet")
    assert (root / "tiny.zip.bad").read_bytes() == server.content
    assert not present("tiny-imagenet")[0]
    server.content = right
    assert fetch.fetch("tiny-imagenet").is_dir()


def test_the_users_own_archive_is_left_alone(root, publish, server):
    publish(zipped(TINY))
    right, own = server.content, root / "tiny.zip"
    root.mkdir()
    own.write_bytes(right[:-1] + b"?")
    with pytest.raises(DlopsError, match=f"^{own} has the MD5 .* it is damaged, or not what") as e:
        fetch.fetch("tiny-imagenet")
    assert "server" not in str(e.value) and not server.asked
    assert own.read_bytes() == right[:-1] + b"?"
    own.write_bytes(right)
    assert fetch.fetch("tiny-imagenet").is_dir()
    assert own.read_bytes() == right and not server.asked


def test_without_a_connection_it_says_where_to_put_which_file(root, publish, monkeypatch):
    publish(zipped(TINY))
    url = "http://127.0.0.1:9/tiny.zip"
    monkeypatch.setitem(DATASETS, "tiny-imagenet", replace(DATASETS["tiny-imagenet"], url=url))
    with pytest.raises(DlopsError, match=f"{url} could not .* that file .* at {root}/tiny.zip"):
        fetch.fetch("tiny-imagenet")


def test_a_folder_that_is_not_whole_is_not_called_ready(root, publish, server):
    publish(zipped(TINY))
    folder = fetch.fetch("tiny-imagenet")
    (folder / "wnids.txt").write_text("n01\nn02\n")
    assert not present("tiny-imagenet")[0]
    with pytest.raises(DlopsError, match="wnids.txt names 2 classes.* [Mm]ove .* away, and fetch"):
        fetch.fetch("tiny-imagenet")
    assert (folder / "wnids.txt").read_text() == "n01\nn02\n" and len(server.asked) == 1


def test_an_archive_that_is_not_whole_is_not_unpacked(root, publish):
    publish(cifar(**{"test.bin": b"half"}), "cifar100", "cifar.tar.gz")
    with pytest.raises(DlopsError, match="test.bin has 4 bytes, but must have 15,370"):
        fetch.fetch("cifar100")
    assert not (root / "cifar-100-binary").exists() and not list(root.glob("*.tmp"))


def encrypted():
    """A zip whose first member says that it is encrypted."""
    raw = bytearray(zipped(TINY))
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    return bytes(raw)


@pytest.mark.parametrize(
    "content, name, file",
    [
        (b"<html>Sign in</html>" * 99, "tiny-imagenet", "tiny.zip"),
        (b"", "tiny-imagenet", "tiny.zip"),
        (zipped(TINY)[:-3000], "tiny-imagenet", "tiny.zip"),
        (zipped(TINY).replace(b"x" * 99, b"y" * 99), "tiny-imagenet", "tiny.zip"),
        (encrypted(), "tiny-imagenet", "tiny.zip"),
        (cifar()[:-30], "cifar100", "cifar.tar.gz"),
        (cifar()[:40] + bytes(40) + cifar()[80:], "cifar100", "cifar.tar.gz"),
    ],
    ids=["page", "empty", "cut", "crc", "encrypted", "cut tar", "garbled tar"],
)
def test_what_cannot_be_unpacked_is_one_sentence(root, publish, content, name, file):
    publish(content, name, file)
    root.mkdir()
    (root / file).write_bytes(content)
    with pytest.raises(DlopsError, match=f"{file} cannot be unpacked .*: get it again") as error:
        fetch.fetch(name)
    assert "\n" not in str(error.value)
    assert not present(name)[0] and not list(root.glob("*.tmp"))


@pytest.mark.parametrize("limit", [{"MOST": 3}, {"LARGEST": 20_000}])
def test_bombs_are_refused(root, publish, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(fetch, name, value)
    publish(zipped(TINY))
    with pytest.raises(DlopsError, match="tiny.zip.part unpacks to more than .*: refused"):
        fetch.fetch("tiny-imagenet")
    publish(cifar(), "cifar100", "cifar.tar.gz")
    with pytest.raises(DlopsError, match="cifar.tar.gz.part unpacks to more than .*: refused"):
        fetch.fetch("cifar100")
    for name, value in limit.items():
        monkeypatch.setattr(fetch, name, 10 * value)
    assert fetch.fetch("tiny-imagenet") and fetch.fetch("cifar100")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_zip_that_leads_outside_is_refused(root, publish, name):
    publish(zipped({**TINY, name: b"evil"}))
    with pytest.raises(DlopsError, match="leads outside: refused"):
        fetch.fetch("tiny-imagenet")
    assert not present("tiny-imagenet")[0]
    assert not list(root.parent.rglob("*evil*"))


def symbolic_link():
    link = zipfile.ZipInfo("tiny-imagenet-200/link")
    link.external_attr = 0o120777 << 16
    return link


def test_links_are_refused(root, publish):
    publish(zipped({symbolic_link(): b"/etc/passwd", **TINY}))
    with pytest.raises(DlopsError, match="link or leads outside"):
        fetch.fetch("tiny-imagenet")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("cifar-100-binary/link")
        member.type, member.linkname = kind, "/etc/passwd"
        publish(tarred((member, b"")), "cifar100", "cifar.tar.gz")
        with pytest.raises(DlopsError, match="link or leads outside"):
            fetch.fetch("cifar100")
        (root / "cifar.tar.gz.part").unlink()
    outside = tarfile.TarInfo("../evil")
    publish(tarred((outside, b"x")), "cifar100", "cifar.tar.gz")
    with pytest.raises(DlopsError, match="leads outside"):
        fetch.fetch("cifar100")
    assert not (root.parent / "evil").exists() and not (root / "evil").exists()


def test_archive_without_the_folder(root, publish):
    publish(zipped({"other/file": b""}))
    with pytest.raises(DlopsError, match="does not hold a folder tiny-imagenet-200"):
        fetch.fetch("tiny-imagenet")


def test_full_disk_is_told_before_the_download(root, publish, monkeypatch):
    publish(zipped(TINY))
    usage = layouts.shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(layouts.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DlopsError, match="has only 0.0 GB free: make room, or set DLOPS_DATA"):
        fetch.fetch("tiny-imagenet")
    assert not (root / "tiny.zip.part").exists()


def test_only_https_or_this_machine(root, publish, server, monkeypatch):
    for url in ("http://example.org/a.zip", "ftp://example.org/a.zip", "file:///etc/passwd"):
        monkeypatch.setitem(DATASETS, "stl10", replace(DATASETS["stl10"], url=url))
        with pytest.raises(DlopsError, match="refused: data come over https only"):
            fetch.fetch("stl10")
    publish(zipped(TINY))
    server.redirect = "ftp://127.0.0.1/a.zip"
    with pytest.raises(DlopsError):
        fetch.fetch("tiny-imagenet")


def test_redirect_may_not_leave_https(root):
    redirected = fetch._Redirects()
    with pytest.raises(DlopsError, match="https only"):
        redirected.redirect_request(None, None, 302, "", {}, "http://example.org/a.zip")


def test_published_addresses_are_https():
    urls = [info.url for info in DATASETS.values() if info.url]
    assert len(urls) == 3 and all(url.startswith("https://") for url in urls)
    assert all(DATASETS[name].checksum.startswith("md5:") for name in COUNTS)


def test_what_cannot_be_fetched(root):
    with pytest.raises(DlopsError, match="nothing to fetch"):
        fetch.fetch("digits")
    with pytest.raises(DlopsError, match="no data set 'mnist'"):
        fetch.fetch("mnist")


def test_folder_that_cannot_be_made(root):
    root.write_text("in the way")
    with pytest.raises(DlopsError, match="cannot be written .* set DLOPS_DATA"):
        fetch.fetch("tiny-imagenet")


def test_fetching_does_without_torch():
    program = """if True:
        import sys
        from dlops.data import COUNTS, present, root
        from dlops.data.fetch import fetch
        sys.exit("torch" in sys.modules or "numpy" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
