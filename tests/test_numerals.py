"""Numbers as they are written: which one an answer gives, and whether a reference is one."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from triptych.data.numerals import boxed, number_in, number_of

ALONE = [
    ("4", 4), ("-4", -4), ("+7", 7), ("\u22125", -5), (".5", "1/2"), ("-.5", "-1/2"), ("4.", 4), ("(4)", 4), ("$4$", 4),
    ("1,234", 1234), ("1{,}234", 1234), (r"12\,000", 12000), (r"12\!000{,}000", 12_000_000), ("12\u2009000", 12000),
    ("12\u202f000\u00a0000", 12_000_000), ("1,234,567.5", "2469135/2"), ("1e3", 1000), ("10^3", 1000),
    (r"3 \times 10^{5}", 300_000), ("3×10^-2", "3/100"), ("3.5 million", 3_500_000),
    ("3/4", "3/4"), ("3 / 4", "3/4"), ("1/2.5", "2/5"), (r"\frac{1}{2}", "1/2"), (r"-\dfrac{1}{2}", "-1/2"),
    (r"\frac12", "1/2"), (r"\boxed{\frac{3}{4}}", "3/4"), (r"$\boxed{-7}$", -7),
    ("3 1/2", "7/2"), ("-3 1/2", "-7/2"), (r"3\frac{1}{2}", "7/2"), (r"\left(4\right)", 4),
    ("5 km", 5), ("5 km/h", 5), ("12 m^2", 12), ("12 m²", 12), ("12 cm3", 12), (r"12\text{ cm}", 12),
    (r"20 \text{ m/s}", 20), ("$5.50", "11/2"), (r"\$5.50", "11/2"), ("-$5", -5), ("€5", 5), ("USD 5", 5), ("50%", 50),
    (r"50\%", 50), (r"90^\circ", 90), (r"90^{\circ}", 90), ("30°", 30), ("42 square metres", 42), ("1/2 cup", "1/2"),
]
NOT_ALONE = [
    "3 or 4", "4, 5", "10-12", "2+2=4", "2+2=4\n#### 4", "x=5", "3x", "5i", r"5\sqrt{2}", r"2\pi", "2^{10}", "1,5",
    "the answer is 4", "4 (four)", "1/2/2024", "2024-01-02", "12:30", "1 234", "v1.2.3", "inf", "nan", "", "1/0",
    "3 0/0", "1e400", "-1e400", "9" * 500, r"\boxed{x}", "H2O", "four",
]


@pytest.mark.parametrize(("text", "number"), ALONE)
def test_a_reference_that_is_one_number(text: str, number: int | str) -> None:
    assert number_of(text) == Fraction(number)
    assert number_in(f"First 77, and then: {text}\n") == Fraction(number)


@pytest.mark.parametrize("text", NOT_ALONE)
def test_a_reference_that_is_not_wholly_one_number(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize(("text", "number"), [
    ("-3.5e2", -350), ("a 1, b 2.", 2), ("12 or 13", 13), ("1,000,000", 10**6), ("no", None), ("1/0", None),
    ("so it is 1,234.50 in all", "2469/2"), ("2 + 3 = 5", 5), ("from 3-4", 4), ("x = -4", -4), ("**12**", 12),
    ("`12`", 12), ("12*", 12), ("The area is 12 m^2", 12), ("x_{1} = 7, m^{-2}", 7), ("60 e.g. minutes", 60),
    (r"\boxed{5}, for 3 < 4", 5), (r"\boxed{1}, no: \boxed{2}", 2), (r"so \boxed{x}, not 3", None), ("it is H2O", None),
    (r"so 5\sqrt{2}", None), ("so 3x", None), ("5 =", None), (r"\[ 5 \]", 5), ("half, i.e. 1/2.", "1/2"),
    ("5 km per 2 hours", 2), ("it costs $1{,}000.", 1000), ("2 million people", 2_000_000),
])
def test_the_number_that_an_answer_gives(text: str, number: int | str | None) -> None:
    assert number_in(text) == (None if number is None else Fraction(number))


def test_what_stands_in_the_last_box() -> None:
    assert boxed(r"\boxed{1} and \fbox{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1") is None
    assert boxed("1") is None


@pytest.mark.attack("rules")
@pytest.mark.parametrize("part", ["1", "1,", "1/", "1 ", r"\frac{1}{", "1{,}", r"\boxed{", "-", "1e", "10^", " ", "."])
def test_reading_takes_no_longer_than_the_text_is(part: str) -> None:
    text = part * (1_000_000 // len(part))
    started = time.process_time()
    number_in(text)
    number_of(text)
    assert time.process_time() - started < 5
