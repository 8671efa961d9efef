"""Numbers as people, models and LaTeX write them: `1,234.5`, `−.5`, `3 1/2`, `\\frac{1}{2}`, `12\\,000`, `5 km`.

A text may hold several; what counts in an answer is the last, or what stands in its last `\\boxed{}`. A reference must
be one number wholly, with a unit or a currency at most: anything else is not what a number can be compared with.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

DIGITS = 400
"""How long a number may be, and with it any whole number or fraction that is computed with."""

EXPONENT = 308
"""How far from 0 an exponent may be: about as far as a float's."""

_MINUS = dict.fromkeys(map(ord, "\u2212\ufe63\uff0d"), "-")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_PLAIN: tuple[tuple[re.Pattern[str], str], ...] = tuple((re.compile(pattern), plain) for pattern, plain in (
    # What stands between thousands: `{,}`, LaTeX's small spaces, and those of Unicode.
    (r"(?<=\d)(?:\{,\}|\\[,!;:]|~|[\u00a0\u2007-\u2009\u202f])(?=\d{3}(?!\d))", ""),
    (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[()\[\]]", ""),
    (r"\\[,!;: ]|~|[\u00a0\u2007-\u2009\u202f]", " "),
    (r"\\?\^?\{?\\(?:circ|degree)\}?|\^\{?°\}?", "°"),
    (r"\\%", "%"),
    (r"[ ]?\\(?:text|textbf|textrm|mathrm|mathbf|mbox)[ ]?\{[ ]?([^{}]*)\}", r" \1"),
    (r"(?<=\d)[ ]?\\[dtc]?frac", r" \\frac"),
    (r"\\[dtc]?frac[ ]?\{[ ]?(-?[\d.]+)[ ]?\}[ ]?\{[ ]?([\d.]+)[ ]?\}", r"\1/\2"),
    (r"\\[dtc]?frac[ ]?(\d)[ ]?(\d)(?!\d)", r"\1/\2"),
    (r"(?<=\d)[ ]?(?:\\times|\\cdot|[×·*x])[ ]?10[ ]?\^(?:\{[ ]?([-+]?\d+)[ ]?\}|([-+]?\d+))", r"e\1\2"),
    (r"(?<![\w.^])10[ ]?\^(?:\{[ ]?([-+]?\d+)[ ]?\}|([-+]?\d+))", r"1e\1\2"),
    (r"\\?\$", "$"),
))
"""What LaTeX writes, and the same in plain text."""

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}°%])[-+][ ]?[$€£¥₹]?)?"
    # Not within a word (H2O), nor an exponent or an index (m^2, x_{1}), nor behind a point (1.2.3).
    r"(?<![\w^])(?<!\d\.)(?<!\^\{)(?<!_\{)(?<!\^-)(?<!\^\{-)(?<!\d/)"
    r"(?:(?P<units>\d{1,3})[ ](?P<top>\d+)[ ]?/[ ]?(?P<bottom>\d+)"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)(?P<exponent>[eE][-+]?\d+)?"
    r"(?:[ ]?/[ ]?(?P<divisor>\d+(?:\.\d+)?))?)"
)
_BESIDE = re.compile(
    r"[ ]?(?:\\sqrt|\\pi|[π√^]|[xyzniπe](?![^\W_]|\.\w)|[+=/]|\*(?=[ ]?[\w\\])|-[ ]?\d)"
)
"""What makes of a number before it a part of an expression."""
_UNIT = re.compile(
    r"[ ]*[%‰°$€£¥₹]?(?:[ ]*[^\W\d_]+(?:\^\{?-?\d\}?|[23²³](?!\d))?\.?(?:[ ]?(?:/|·|\*|-)[ ]?)?){0,4}[ ]?[.]?"
)
_CURRENCY = re.compile(r"(?:[A-Z]{0,3}[$€£¥₹]|[A-Z]{3} )?")


def number_in(text: str) -> Fraction | None:
    """The number that an answer gives: the last one, of its last `\\boxed{}` where it has one.

    None where there is none, where it is a part of an expression (`5\\sqrt{2}`), or of no reasonable size.
    """
    plain = _plain(_inside(text))
    last = deque(_NUMBER.finditer(plain), maxlen=1)
    if not last or _BESIDE.match(plain, last[0].end()) or plain.endswith("\\sqrt{", 0, last[0].start()):
        return None
    return _value(last[0], plain[last[0].end() :])


def number_of(text: str) -> Fraction | None:
    """The number that a text wholly is, with a unit or a currency at most; else None."""
    plain = _plain(_inside(text)).strip()
    if plain.startswith("$") and plain.endswith("$"):
        plain = plain[1:-1].strip()
    while plain[:1] in ("{", "(") and plain[-1:] == {"{": "}", "(": ")"}[plain[:1]]:
        plain = plain[1:-1].strip()
    currency = _CURRENCY.match(plain)
    start = currency.end() if currency else 0
    match = _NUMBER.match(plain, start)
    if match is None or _BESIDE.match(plain, match.end()) or not _UNIT.fullmatch(plain, match.end()):
        return None
    return _value(match, plain[match.end() :])


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}` of a text, or None."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin, depth = text.index("{", start), 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place].strip()
    return None


def _inside(text: str) -> str:
    inner = boxed(text)
    return text if inner is None else inner


def _plain(text: str) -> str:
    text = text.translate(_MINUS)
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return text


def _value(match: re.Match[str], rest: str) -> Fraction | None:
    if len(match[0]) > DIGITS:
        return None
    if match["units"] is not None:
        top, bottom = int(match["top"]), int(match["bottom"])
        if not bottom:
            return None
        # `12 3/2` is no mixed number but two numbers.
        value = Fraction(top, bottom) + (int(match["units"]) if top < bottom else 0)
    else:
        exponent, divisor = match["exponent"] or "", Fraction(match["divisor"] or 1)
        if (exponent and abs(int(exponent[1:])) > EXPONENT) or not divisor:
            return None
        value = Fraction(match["number"].replace(",", "") + exponent) / divisor
    word = re.match(r"[ ](\w+)", rest)
    value *= _SCALES.get(word[1].lower(), 1) if word else 1
    return -value if (match["sign"] or "").startswith("-") else value
