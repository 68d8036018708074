"""Pages printed by an installed browser: as PDF with an outline, tags and page numbers.

nbconvert's `webpdf` needs a browser that Playwright has downloaded, its `pdf` needs TeX; so any
Chrome, Chromium or Edge of the machine prints our HTML.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired

from bs4 import BeautifulSoup
from PIL import Image

from dlops.export.exporter import write
from dlops.export.page import made, words
from dlops.settings import DlopsError

TRY_SECONDS, PAGE_SECONDS = 60, 180
OPTIONS = "--headless --disable-gpu --no-first-run --disable-dev-shm-usage --no-pdf-header-footer"
OPTIONS += " --generate-pdf-document-outline"
_given_up: list[str] = []  # why no further page is tried: a browser that hung does so again


def _candidates() -> Iterator[str]:
    """The browsers that seem to be installed, in the order in which they are tried."""
    names = ("chromium", "google-chrome", "google-chrome-stable", "chrome", "chromium-browser")
    for name in (*names, "microsoft-edge", "microsoft-edge-stable", "msedge", "brave-browser"):
        if found := shutil.which(name):
            yield found
    for folder in ("/Applications", f"{Path.home()}/Applications"):
        for name in ("Google Chrome", "Chromium", "Microsoft Edge"):
            yield f"{folder}/{name}.app/Contents/MacOS/{name}"
    for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        for part in ("Google/Chrome/Application/chrome", "Microsoft/Edge/Application/msedge"):
            yield os.path.join(os.environ.get(variable, "/nowhere"), *f"{part}.exe".split("/"))


@functools.cache
def _tried(folder: Path | None) -> tuple[str | None, str]:
    """The first browser that prints a small page in a folder; without one, the last one's words."""
    why = "no Chrome, Chromium or Edge was found"
    with tempfile.TemporaryDirectory(prefix="print-", dir=folder) as place:
        page = Path(place, "page.html")
        page.write_text("<!doctype html><title>A</title><p>A", encoding="utf-8")
        for program in filter(os.path.isfile, _candidates()):
            try:
                _print(program, page, page.with_suffix(".pdf"), TRY_SECONDS)
                return program, ""
            except (DlopsError, TimeoutError) as error:
                why = str(error)
    return None, why


def browser(folder: Path | None = None) -> str | None:
    """The path of the first installed browser that prints, tried once a process, or None.

    A name alone says little: Ubuntu's `chromium-browser` is a stub, and a snap cannot write
    everywhere. folder: where PDFs will lie; default: that of temporary files.
    """
    return _tried(folder)[0]


def pdf(page: Path, pdf: Path) -> None:
    """Print an exported page as a tagged A4 PDF; what is folded in it becomes an appendix.

    Raises DlopsError without a browser that prints, or if it fails; an old PDF stays then. After
    a browser has hung, at once.
    """
    if not page.is_file():
        raise DlopsError(f"There is no page {page} to print; export the report first.")
    if _given_up:
        raise DlopsError(_given_up[0])
    pdf.parent.mkdir(parents=True, exist_ok=True)
    program, why = _tried(pdf.parent.resolve())
    if program is None:
        raise DlopsError(
            f"No PDF: {why}; install one that prints, or print {page} from any browser."
        )
    copy = pdf.resolve().with_name(f"{pdf.stem}-{os.getpid()}.tmp.html")  # a snap sees no hidden
    try:
        write(copy, printable(page.read_text(encoding="utf-8")))
        _print(program, copy, copy.with_suffix(".pdf"), PAGE_SECONDS)
        copy.with_suffix(".pdf").replace(pdf)
    except TimeoutError as error:
        _given_up.append(f"No PDF: {error}.")
        raise DlopsError(_given_up[0]) from None
    finally:
        for left_over in (copy, copy.with_suffix(".pdf")):
            left_over.unlink(missing_ok=True)


def printable(text: str) -> str:
    """A page as it is printed: folded parts stand in an appendix, links lead out or inside."""
    soup = BeautifulSoup(text, "html.parser")
    for source in soup.select("picture > source"):
        source.decompose()  # of dark and narrow pages
    for image in soup.select('img[src^="data:image/webp"]'):
        image["src"] = _jpeg(str(image["src"]))
    for link in soup.select("a[href]"):
        if not str(link["href"]).startswith(("#", "https:", "http:", "mailto:")):
            link.unwrap()  # to a file beside the page
    for article in soup.find_all("article"):
        level = 3 if "chapter" in article.get_attribute_list("class") else 2
        prefix = article.get("aria-labelledby", "")
        appendix = made(f'<section class="appendix"><h{level}>Appendix</h{level}></section>')
        for position, fold in enumerate(article.select("details.fold:has(> summary)"), 1):
            summary = fold.select("summary")[0]
            title, name = html.escape(words(summary)), f"{prefix}appendix-{position}"
            reference = f'<a href="#{name}">{title}: appendix A{position}</a>'
            fold.replace_with(made(f'<p class="folded">{reference}</p>'))
            heading = f'<h{level + 1} id="{name}">A{position}. {title}</h{level + 1}>'
            summary.replace_with(made(heading))
            fold.name = "div"
            appendix.append(fold)
        if appendix.div:
            article.append(appendix)
    return str(soup)


def _jpeg(uri: str) -> str:
    """A WebP as a JPEG, which a PDF can hold as it is; any other kind it would hold unpacked."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        image.convert("RGB").save(buffer := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _print(program: str, page: Path, made: Path, seconds: float) -> None:
    """Let a browser print, and end it with all its processes.

    Raises TimeoutError after so many seconds, and DlopsError with its last words if it fails.
    """
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as profile, tempfile.TemporaryFile() as said:
        command = [program, *OPTIONS.split(), f"--user-data-dir={profile}"]
        command += ["--no-sandbox"] if sys.platform != "win32" and os.geteuid() == 0 else []
        command += [f"--print-to-pdf={made}", page.resolve().as_uri()]
        no = DEVNULL
        try:
            process = Popen(command, stdin=no, stdout=no, stderr=said, start_new_session=True)
        except OSError as error:
            raise DlopsError(f"{program} could not print {page}: {error}") from None
        try:
            code = process.wait(seconds)
        except TimeoutExpired:
            raise TimeoutError(f"{program} did not print {page} in {seconds} s") from None
        finally:
            if sys.platform == "win32":
                process.kill()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    if code or not made.is_file():
        raise DlopsError(f"{program} could not print {page}: {words[-1]}")
