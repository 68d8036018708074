"""Claims: a person writes the sentence with its threshold, this run judges it.

Holm corrects for all tested claims of a page. Of "above" and "not above" one is right, whatever
the truth, so one-sided tests at 5 % keep the risk of a wrong verdict at 5 %. What was not tested
over seeds is never more than undecided.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from IPython.display import HTML, Markdown, display

from dlops import metrics
from dlops.report.quantities import (
    ALPHA,
    LEVEL,
    Best,
    Quantity,
    best,
    difference,
    fact,
    ratio,
    score,
    spread,
    values,
)
from dlops.settings import DlopsError

__all__ = [
    "Best",
    "Claims",
    "Quantity",
    "best",
    "difference",
    "fact",
    "ratio",
    "score",
    "spread",
    "values",
]

CAPTION = "What is claimed, and whether this run supports it"


@dataclass(frozen=True)
class _Claim:
    sentence: str
    quantity: Quantity
    low: float
    high: float
    figure: str
    key: str

    @property
    def threshold(self) -> str:
        number = self.quantity.number
        if math.isinf(self.high):
            return f"above {number(self.low)}"
        if math.isinf(self.low):
            return f"below {number(self.high)}"
        return f"between {number(self.low, False)} and {number(self.high)}"

    def sides(self) -> tuple[float, float] | None:
        """p-values of lying within the claim's limits and of lying outside; None if untested."""
        test = self.quantity.test
        if test is None:
            return None
        (over_low, under_low), (over_high, under_high) = test(self.low), test(self.high)
        tails = math.isfinite(self.low) + math.isfinite(self.high)
        return max(over_low, under_high), min(1.0, tails * min(under_low, over_high))

    def untested(self) -> str:
        """The verdict where there is no test: a fact's, or none."""
        q = self.quantity
        if q.reason:
            return "not measured"
        if not q.text:
            return "undecided"  # one network each says nothing about the method
        closed = math.isfinite(self.low) and math.isfinite(self.high)  # between=: ends belong to it
        inside = self.low < q.estimate < self.high or closed and q.estimate in (self.low, self.high)
        return "supported" if inside else "refuted"


class Claims:
    """The claims of a page: added with their thresholds, judged together, shown in one table."""

    def __init__(self) -> None:
        self._claims: list[_Claim] = []

    def add(
        self,
        sentence: str,
        quantity: Quantity,
        *,
        above: float | None = None,
        below: float | None = None,
        between: tuple[float, float] | None = None,
        figure: str = "",
        key: str = "",
    ) -> None:
        """Claim that the quantity lies above, below or between what is given (exactly one).

        figure: the key of the figure that shows it; key: a short name for `verdict`. A threshold
        is in the unit of the metric: 0.05 of an accuracy is 5 points.
        """
        given = [x for x in (above, below, *(between or ())) if x is not None]
        low = -math.inf if above is None else above
        high = math.inf if below is None else below
        if between is not None:
            low, high = between
        usable = all(math.isfinite(x) for x in given) and low < high
        if len(given) != (1 if between is None else 2) or not usable:
            raise DlopsError(
                f'The claim "{sentence}" needs exactly one threshold: above=, below=, or'
                " between=(low, high) with low below high."
            )
        if {sentence, key} & {name for c in self._claims for name in (c.sentence, c.key) if name}:
            raise DlopsError(f'"{sentence}" is claimed twice; a sentence and a key stand once.')
        self._claims.append(_Claim(sentence, quantity, low, high, figure, key))

    def verdict(self, name: str) -> str:
        """supported, refuted, undecided or not measured, by a claim's sentence or key.

        Each further claim is one more to correct for: ask when all have been added.
        """
        for claim, (verdict, _) in zip(self._claims, self._judge()):
            if name in (claim.sentence, claim.key):
                return verdict
        raise DlopsError(f'There is no claim "{name}" on this page.')

    def payload(self) -> list[dict[str, str]]:
        """A dict a claim: sentence, verdict, quantity, interval, n, threshold, p, anchor, figure.

        anchor: the id of its row in the table; figure: that of its figure, or "".
        """
        return [
            {
                "sentence": claim.sentence,
                "verdict": verdict,
                "quantity": claim.quantity.measured,
                "interval": claim.quantity.bounds,
                "n": claim.quantity.n,
                "threshold": claim.threshold,
                "p": "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}",
                "anchor": f"claim-{i}",
                "figure": claim.figure and f"fig-{claim.figure}",
            }
            for i, (claim, (verdict, p)) in enumerate(zip(self._claims, self._judge()), 1)
        ]

    def show(self) -> None:
        """Display the table of all claims; nothing without a claim."""
        if self._claims:
            caption = f"{CAPTION}. {self._note()}"
            display(HTML(self._html(), metadata={"caption": caption}))
            display(Markdown(f"*{caption}*"), metadata={"live_only": True})

    def _judge(self) -> list[tuple[str, float | None]]:
        """The verdict on each claim, and of a tested one Holm's p of its likelier side."""
        sides = [claim.sides() for claim in self._claims]
        adjusted = iter(metrics.holm([min(pair) for pair in sides if pair]))
        found: list[tuple[str, float | None]] = []
        for claim, pair in zip(self._claims, sides):
            if pair:
                p, side = next(adjusted), "supported" if pair[0] < pair[1] else "refuted"
                found.append((side if p <= ALPHA else "undecided", p))
            else:
                found.append((claim.untested(), None))
        return found

    def _note(self) -> str:
        tested = sum(claim.quantity.test is not None for claim in self._claims)
        note = f"Intervals are of {100 * LEVEL:.0f} %, each bound one of {100 - 100 * ALPHA:.0f} %;"
        note += " not corrected."
        if tested:
            note += " p is one-sided, from Student's t over seeds"
            note += f", corrected for {tested} tested claims (Holm)." if tested > 1 else "."
        return note

    def _html(self) -> str:
        rows = []
        for claim in self.payload():
            row = {name: html.escape(text) for name, text in claim.items()}
            link = f' <a href="#{row["figure"]}">Figure</a>' if row["figure"] else ""
            mark = row["verdict"].replace(" ", "-")
            p = f"<br><small>{row['p']}</small>" if row["p"] else ""
            rest = (row[name] or "–" for name in ("quantity", "interval", "n", "threshold"))
            rows.append(
                f'<tr id="{row["anchor"]}"><td>{row["sentence"]}{link}</td>'
                f'<td class="verdict verdict-{mark}">{row["verdict"]}{p}</td>'
                f"<td>{'</td><td>'.join(rest)}</td></tr>"
            )
        names = ("Claim", "Verdict", "Measured", "Interval", "n", "Claimed")
        head = "".join(f'<th scope="col">{name}</th>' for name in names)
        return '<table class="claims"><thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table>'.format(
            head, "\n".join(rows)
        )
