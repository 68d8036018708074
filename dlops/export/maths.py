"""Markdown with formulas: nbconvert's parser, and MathML where nbconvert leaves TeX to MathJax."""

from __future__ import annotations

import html
import re
from typing import Any, ClassVar

from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

# What latex2mathml does not know, in words that it knows.
_REWRITES = (
    (r"\\(begin|end)\{(?:aligned|align|split|equation\*?|gathered)\}", r"\\\1{align*}"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
    (r"\\(math(?:cal|bb|bf)) +([a-zA-Z])", r"\\\1{\2}"),
    (r"\\[bB]ig[lr](?=\\)", ""),  # \bigl\lVert
)
_LIMITS = ("min", "max", "argmin", "argmax")


def mathml(tex: str, *, display: bool = False) -> str:
    """A formula as MathML, its TeX source as `alttext`; TeX in a code element if that fails."""
    source = rewritten = tex.strip()
    for pattern, replacement in _REWRITES:
        rewritten = re.sub(pattern, replacement, rewritten)
    try:
        text = convert(rewritten, display="block" if display else "inline")
    except Exception:  # the converter raises many types, IndexError among them
        text = "\\"
    if "\\" in text or "<mi>&</mi>" in text:  # an unknown command or a stray alignment mark
        return f'<code class="tex">{html.escape(source)}</code>'
    math = BeautifulSoup(text, "html.parser").math
    assert math is not None
    math["alttext"] = source
    for cell in math.find_all("mtd", columnalign=True):  # MathML Core has no columnalign
        cell["style"] = f"text-align: {cell.attrs.pop('columnalign')}"
    for token in math.find_all(["mi", "mo"]):
        _mend(token)
    return str(math)


def _mend(token: Tag) -> None:
    """Spaces around named functions, limits below them, bars that neither grow nor drift apart."""
    text, around = token.get_text(), token.parent
    if text in ("‖", "|"):
        token["stretchy"], token["lspace"], token["rspace"] = "false", "0", "0"
    elif re.fullmatch("[A-Za-z]{2,}", text):
        after = token.find_next_sibling()
        bracket = after is not None and after.get_text() in ("(", "[")
        token.name = "mo"
        token["lspace"], token["rspace"] = "0.1em", "0" if bracket else "0.167em"
    if around is not None and around.find(True) is token and (text in _LIMITS or text == "∑"):
        token["movablelimits"] = "true"
        under = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
        around.name = under.get(around.name, around.name)


class _Inline(MathInlineParser):
    """Prices stay prices: a dollar opens a formula only before a character that is no space, and
    closes it only after one and not before a digit; a formula holds no code span."""

    SPECIFICATION: ClassVar[dict[str, str]] = MathInlineParser.SPECIFICATION | {
        "inline_math_tex": r"(?<![$\\])\$(?![\s$])"
        r"(?P<math_inline_tex>(?:[^$\\`]|\\[\s\S])+?)(?<!\s)\$(?![\d$])"
    }


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        box = '<span class="formula" role="group" aria-label="Formula" tabindex="0">'
        return f"{box}{mathml(body, display=True)}</span>"

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def inline_math(self, body: str) -> str:
        return mathml(body)


def markdown(source: str, *, escape: bool = False, **options: Any) -> str:
    """Markdown with formulas, tables and highlighted code blocks as HTML.

    escape: whether HTML in it is shown instead of obeyed; options: see nbconvert's IPythonRenderer.
    """
    renderer = _Renderer(escape=escape, exclude_anchor_links=True, **options)
    return MarkdownWithMath(renderer, inline=_Inline(hard_wrap=False)).render(source)


def phrase(source: str) -> Markup:
    """One paragraph of Markdown without its `<p>`; HTML in it is shown, not obeyed."""
    return Markup(re.sub(r"^<p>|</p>$", "", markdown(source, escape=True).strip()))
