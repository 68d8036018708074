"""Executed notebooks become self-contained HTML, PDF, an index, and one document to hand in.

Here belongs what turns a notebook that has run into something to read; what the notebook says is
made by `dlops.report`. Pages carry no script and load nothing: figures are `data:` URIs, formulas
are MathML, and the content security policy forbids the rest. What a notebook says about itself is
the JSON payload of its last cell's output (MIME type `SENTINEL`); a notebook without it did not
finish, whatever its execution counts claim.
"""

from dlops.export.document import hand_in
from dlops.export.exporter import SENTINEL, ReportExporter, export, verdict
from dlops.export.front import index
from dlops.export.printer import browser, pdf

__all__ = ["SENTINEL", "ReportExporter", "browser", "export", "hand_in", "index", "pdf", "verdict"]
