"""Every kind of instruction by its name: the 25 of IFEval, and those of open-instruct that are checked here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from triptych.instructions import formats, keywords, lengths
from triptych.instructions.instruction import Instruction

IFEVAL: tuple[type[Instruction], ...] = (
    keywords.Existence, keywords.Frequency, keywords.ForbiddenWords, keywords.LetterFrequency,
    formats.ResponseLanguage,
    lengths.NumberOfSentences, lengths.NumberOfParagraphs, lengths.NumberOfWords, lengths.FirstWordOfParagraph,
    formats.Placeholders, formats.Postscript,
    formats.Bullets, formats.ConstrainedResponse, formats.Highlights, formats.Sections, formats.JsonFormat,
    formats.Title,
    formats.TwoResponses, formats.RepeatedPrompt,
    formats.EndPhrase, formats.Quotation,
    formats.CapitalWords, formats.InCapitals, formats.InLowercase,
    formats.NoComma,
)
"""Zhou et al. 2023, table 1."""

OPEN_INSTRUCT: tuple[type[Instruction], ...] = (
    keywords.Once, keywords.FrequencyByNumber, keywords.OnceAndTwice, keywords.ExcludedWord, keywords.Palindrome,
    keywords.NoConsecutiveInitials, keywords.UniqueWords, keywords.FirstWord, keywords.LastWord,
    keywords.SameWordAtBothEnds, keywords.Copied, keywords.CopiedSimply, keywords.LetterTotal, keywords.LetterCount,
    lengths.TwoParagraphs, lengths.TwoParagraphsByBlankLine, lengths.FirstWordOfSentences, lengths.LastWordOfSentences,
    formats.SquareBrackets, formats.WrappedPairs, formats.LowercaseWords, formats.NoDot, formats.NoExclamation,
)
"""Those that open-instruct added for RLVR (Pyatkin et al. 2025, IFBench, appendix)."""

INSTRUCTIONS: Mapping[str, type[Instruction]] = {cls.kind: cls for cls in (*IFEVAL, *OPEN_INSTRUCT)}
"""Each by its name."""

DRAWN: tuple[str, ...] = tuple(kind for kind, cls in INSTRUCTIONS.items() if cls.wordings)
"""Those that can be added to any prompt; the others need a prompt that was written for them, or are another's twin."""


COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    name: tuple(cls.kind for cls in kinds if cls.wordings)
    for name, kinds in (("ifeval", IFEVAL), ("open-instruct", OPEN_INSTRUCT))
}
"""Those of `DRAWN` by who made them; such a name stands for all of them where kinds are listed."""


def require_kind(kind: str, among: Iterable[str] = INSTRUCTIONS) -> type[Instruction]:
    """The kind of instruction that bears the name.

    Args:
        among: the names that could have been meant.

    Raises:
        ValueError: there is none, with the nearest name.
    """
    if kind in INSTRUCTIONS:
        return INSTRUCTIONS[kind]
    names = {written: name for name in among for written in (name, name.rpartition(":")[2])}
    near = difflib.get_close_matches(kind, names, n=1)
    hint = f"; did you mean {names[near[0]]!r}?" if near else f"; known are {', '.join(among)}"
    raise ValueError(f"{kind!r} is no kind of instruction{hint}")


def instruction(kind: str, arguments: Mapping[str, Any]) -> Instruction:
    """The instruction with its arguments; one that is None counts as not given, as in IFEval's rows.

    Raises:
        ValueError: there is no such kind, or an argument is missing, unknown or not as it must be.
    """
    cls = require_kind(kind)
    try:
        return cls.model_validate({name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{kind}: {field}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
