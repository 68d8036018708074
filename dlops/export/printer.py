"""Pages printed by an installed browser: as PDF with an outline, tags and page numbers.

nbconvert's `webpdf` needs a browser that Playwright has downloaded, its `pdf` needs TeX; so any
Chrome, Chromium or Edge of the machine prints our HTML.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from dlops.export.exporter import write
from dlops.settings import DlopsError

TRY_SECONDS, PAGE_SECONDS = 60, 180
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


def pdf(html: Path, pdf: Path) -> None:
    """Print an exported page as a tagged A4 PDF; what is folded in it becomes an appendix.

    Raises DlopsError without a browser that prints, or if it fails; an old PDF stays then. After
    a browser has hung, at once.
    """
    if not html.is_file():
        raise DlopsError(f"There is no page {html} to print; export the report first.")
    if _given_up:
        raise DlopsError(_given_up[0])
    pdf.parent.mkdir(parents=True, exist_ok=True)
    program, why = _tried(pdf.parent.resolve())
    if program is None:
        raise DlopsError(
            f"No PDF: {why}; install one that prints, or print {html} from any browser."
        )
    copy = pdf.resolve().with_name(f"{pdf.stem}-{os.getpid()}.tmp.html")  # a snap sees no hidden
    made = copy.with_suffix(".pdf")
    try:
        write(copy, printable(html.read_text(encoding="utf-8")))
        _print(program, copy, made, PAGE_SECONDS)
        os.replace(made, pdf)
    except TimeoutError as error:
        _given_up.append(f"No PDF: {error}.")
        raise DlopsError(_given_up[0]) from None
    finally:
        copy.unlink(missing_ok=True)
        made.unlink(missing_ok=True)


def printable(text: str) -> str:
    """A page as it is printed: folded parts stand in an appendix, links lead out or inside."""
    soup = BeautifulSoup(text, "html.parser")
    for link in soup.select("a[href]"):
        if not str(link["href"]).startswith(("#", "https:", "http:", "mailto:")):
            link.unwrap()  # to a file beside the page
    for article in soup.find_all("article"):
        level = 3 if "chapter" in article.get_attribute_list("class") else 2
        appendix = soup.new_tag("section", attrs={"class": "appendix"})
        for position, fold in enumerate(article.select("details.fold"), 1):
            summary = fold.find("summary")
            assert isinstance(summary, Tag)
            name = f"{article.get('aria-labelledby', '')}appendix-{position}"
            heading = soup.new_tag(f"h{level + 1}", id=name)
            heading.string = f"A{position}. {summary.get_text().strip()}"
            link = soup.new_tag("a", href=f"#{name}")
            link.string = f"{summary.get_text().strip()}: appendix A{position}"
            line = soup.new_tag("p", attrs={"class": "folded"})
            line.append(link)
            fold.replace_with(line)
            summary.replace_with(heading)
            fold.name = "div"
            appendix.append(fold)
        if appendix.contents:
            title = soup.new_tag(f"h{level}")
            title.string = "Appendix"
            appendix.insert(0, title)
            article.append(appendix)
    return str(soup)


def _print(program: str, html: Path, pdf: Path, seconds: float) -> None:
    """Let a browser print, and end it with all its processes.

    Raises TimeoutError after so many seconds, and DlopsError with its last words if it fails.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--disable-gpu", "--no-first-run"]
        command += ["--disable-dev-shm-usage", "--no-pdf-header-footer"]
        command += ["--generate-pdf-document-outline", f"--user-data-dir={profile}"]
        command += [f"--print-to-pdf={pdf}"]
        if sys.platform != "win32" and os.geteuid() == 0:
            command.append("--no-sandbox")
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            try:
                process = subprocess.Popen(
                    [*command, html.resolve().as_uri()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                )
            except OSError as error:
                raise DlopsError(f"{program} could not print {html}: {error}") from None
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{program} did not print {html} in {seconds} s") from None
            finally:
                _end(process)
            said.seek(0)
            words = said.read().strip().splitlines() or ["it said nothing"]
    if code or not pdf.is_file():
        raise DlopsError(f"{program} could not print {html}: {words[-1]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of its group."""
    if sys.platform == "win32":
        process.kill()
    else:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()
