"""Which language a text is in: by its script, and among languages in Latin letters by their commonest words.

Enough to see that an answer is not in the language that was asked for; it does not tell close languages apart in
a few words, and says so by giving a half.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SCRIPTS = {
    "ar": ("ARABIC",), "el": ("GREEK",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",), "ru": ("CYRILLIC",), "th": ("THAI",), "uk": ("CYRILLIC",), "zh": ("CJK",),
}
"""The scripts of languages that are not written in Latin letters, by the first word of their letters' names."""

COMMON = {
    "de": "der die das und ist nicht ein eine ich du er sie es wir den dem zu mit auf für von im auch wie dass sind",
    "en": "the and is are was not a an of to in it you that for on with as this be i he she they have has by at from",
    "es": "el la los las y es no un una de que en por para con se su lo como más pero está son al del yo",
    "fr": "le la les et est ne pas un une de du des que qui en pour dans avec ce il elle nous vous au sur sont je",
    "it": "il lo la gli le e è non un una di che in per con si su come più ma sono al del della io nel questo",
    "nl": "de het een en is niet van ik je dat die in te op met voor zijn er aan maar ook als bij naar hij ze",
    "pl": "i w nie na się z do że to jest o jak ale po co tak za od czy są dla przez przy jego jej być",
    "pt": "o a os as e é não um uma de que em por para com se seu como mais mas está são ao do da no na eu",
    "sv": "och att det är en ett inte som jag du han hon vi på för med av den till har om men var de så",
    "tr": "bir ve bu da de için ile ne mi çok var ama daha gibi olan olarak o ben sen değil en kadar şey",
}
"""Common words of languages in Latin letters."""

LANGUAGES = tuple(sorted({*SCRIPTS, *COMMON}))

_WORD = re.compile(r"[^\W\d_]+")
_WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}


def share_in(language: str, text: str) -> float:
    """How far a text looks to be in a language, from 0 to 1; 1 where it has no letters.

    For a script of its own: the share of the letters that are in it. For Latin letters: that share, times how the
    language does among the others: 1 if no other has more of its common words in the text, a half if the text has
    none of any, else the ratio of its count to the best one's.
    """
    scripts = SCRIPTS.get(language, ("LATIN",))
    letters = {letter: count for letter, count in Counter(text).items() if letter.isalpha()}
    if not letters:
        return 1.0
    within = sum(count for letter, count in letters.items() if unicodedata.name(letter, "?").startswith(scripts))
    share = within / sum(letters.values())
    if language not in COMMON:
        return share
    words = Counter(word.lower() for word in _WORD.findall(text))
    counts = {name: sum(words[word] for word in common) for name, common in _WORDS.items()}
    best = max(counts.values())
    return share * (0.5 if best == 0 else counts[language] / best)
