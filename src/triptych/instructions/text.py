"""What a text consists of, counted as IFEval counts it: words, sentences, paragraphs, its language."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

_WORD = re.compile(r"\w+")
_END = re.compile(r"(?<=[.!?])(?<!\.\.)[\"'”’)\]*]*\s+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[Mm]r|[Mm]rs|[Mm]s|[Dd]r|St|Jr|Sr|[Vv]s|Inc|Ltd|Co|Corp|Gen|Col|Sen|Rep|Gov|Lt|Sgt)|(?<!\.)\b[A-HJ-Z])\.$"
)
_PARAGRAPH = re.compile(r"\n\s*\n")
_MARK = re.compile(r"^(?:\(?\d{1,2}[.):]|[-*•–])\s+")
_PUNCTUATION = re.compile(r"\.\.\.|--|[;@#$%&?!,:\[\](){}<>\"“”«»`]|''|(?<=\w)'(?=(?:s|m|d|ll|re|ve)\b)", re.IGNORECASE)
_JOINED = re.compile(
    r"(?<=\bcan)(?=not\b)|(?<=\bgim)(?=me\b)|(?<=\bgon)(?=na\b)|(?<=\bgot)(?=ta\b)|(?<=\blem)(?=me\b)|(?<=\bwan)(?=na\s)"
    r"|(?<=[^'\s])(?=n't\b)", re.IGNORECASE
)
"""Where the Treebank cuts what is written as one word: can|not, gon|na, do|n't."""
_TRAILING = re.compile(r"(?<=[^.])\.(?=[\])}>\"'»”’ ]*(?:\s|$))")


def count_words(text: str) -> int:
    """The number of words: runs of letters, digits and _."""
    return len(_WORD.findall(text))


def sentences(text: str) -> list[str]:
    """The sentences of an English text, cut after `.`, `!` and `?`.

    IFEval takes the Punkt tokenizer, whose model is a download; of 4,396 answers 98.8% have as many sentences by it. As
    there a title, an initial and three dots end none, a number does, and an empty line by itself ends none.
    """
    parts, start = [], 0
    for end in _END.finditer(text):
        if not _ABBREVIATION.search(text, start, end.start()):
            parts.append(text[start : end.end()].strip())
            start = end.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def holds_list(text: str) -> bool:
    """Whether one of several lines is numbered or marked."""
    lines = _lines(text)
    return len(lines) > 1 and any(_MARK.match(line) for line in lines)


def parts_of(text: str, count: int) -> list[str]:
    """The text as so many parts: its paragraphs, where it has as many, else its lines or sentences in parts that are
    about equally long; fewer, where there is less to cut."""
    paragraphs = [paragraph.strip() for paragraph in _PARAGRAPH.split(text) if paragraph.strip()]
    if len(paragraphs) == count:
        return paragraphs
    cut, between = _pieces(text)
    bounds = [round(place * len(cut) / count) for place in range(count + 1)]
    return [between.join(cut[start:end]) for start, end in pairwise(bounds) if start < end]


def points(text: str) -> list[str]:
    """The entries of a text that is a list, one on each line and numbered or marked; none of another text."""
    lines = _lines(text)
    entries = [entry for line in lines if (entry := _MARK.sub("", line, count=1).strip()) != line]
    return entries if len(entries) == len(lines) > 1 and all(entries) else []


def shortened(text: str, fit: Callable[[str], bool]) -> str:
    """As many of the text's first sentences, or lines of a list, as fit; the text as it is, where not one does."""
    cut, between = _pieces(text)
    kept = (between.join(cut[:count]) for count in range(len(cut), 0, -1))
    return text if fit(text) else next(filter(fit, kept), text)


def tokens(text: str) -> list[str]:
    """Words and punctuation, near to what the Penn Treebank's tokenizer gives: hyphenated words are one."""
    spaced = _JOINED.sub(" ", _TRAILING.sub(" . ", text))
    return _PUNCTUATION.sub(lambda mark: f" {mark[0]} " if mark[0] != "'" else " '", spaced).split()


def is_in(language: str, text: str) -> bool:
    """Whether langdetect takes the text to be in a language (ISO 639-1); true where it has no letters to tell by."""
    import langdetect  # which few rules need

    langdetect.DetectorFactory.seed = 0  # else it draws by chance what it looks at
    try:
        return bool(langdetect.detect(text) == language)
    except langdetect.LangDetectException:
        return True


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _pieces(text: str) -> tuple[list[str], str]:
    """What a text can be cut into, and what stands between: the lines of one that holds a list, else the sentences."""
    if holds_list(text):
        return _lines(text), "\n"
    return [sentence for paragraph in _PARAGRAPH.split(text) for sentence in sentences(paragraph)], " "
