"""Instructions about how long an answer is, in words, sentences and paragraphs."""

from __future__ import annotations

import random
import re
from typing import Self

from pydantic import Field

from triptych.instructions.instruction import Instruction, Relation, compare, draw_bound
from triptych.instructions.text import count_words, parts_of, sentences, shortened

OPENINGS = (
    "However", "Then", "Indeed", "Well", "Moreover", "Finally", "Today", "Often", "Still", "Besides", "Meanwhile",
    "Firstly",
)
"""Words that can stand before nearly any sentence."""

_DIVIDER = re.compile(r"\s?\*\*\*\s?")


def count_parts(parts: list[str]) -> int | None:
    """How many parts there are, an empty first or last one aside; None where one between others is empty."""
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return sum(bool(part.strip()) for part in parts)


class NumberOfWords(Instruction):
    """The answer has at least, or less than, so many words."""

    kind = "length_constraints:number_words"
    claims = frozenset({"length"})
    wordings = (
        "Answer in {relation} {num_words} words.",
        "Your answer needs to have {relation} {num_words} words.",
        "Write {relation} {num_words} words.",
        "The length of the response: {relation} {num_words} words.",
        "Use {relation} {num_words} words in total.",
    )
    num_words: int = Field(ge=0)
    relation: Relation

    def follows(self, answer: str) -> bool:
        """See the class."""
        return compare(count_words(answer), self.relation, self.num_words)

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return answer if self.relation == "at least" else shortened(answer, self.follows)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """At least 20 to 150 words, or less than 20 to 120."""
        relation, count = draw_bound(rng, (20, 30, 50, 70, 100, 120, 150), (20, 30, 40, 60, 80, 120))
        return cls(num_words=count, relation=relation)


class NumberOfSentences(Instruction):
    """The answer has at least, or less than, so many sentences."""

    kind = "length_constraints:number_sentences"
    claims = frozenset({"length", "dots"})
    wordings = (
        "Answer in {relation} {num_sentences} sentences.",
        "The number of your sentences is to be {relation} {num_sentences}.",
        "Write {relation} {num_sentences} sentences.",
        "Your response must consist of {relation} {num_sentences} sentences.",
    )
    num_sentences: int = Field(ge=0)
    relation: Relation

    def follows(self, answer: str) -> bool:
        """See the class."""
        return compare(len(sentences(answer)), self.relation, self.num_sentences)

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return answer if self.relation == "at least" else shortened(answer, self.follows)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """At least 2 to 8 sentences, or less than 2 to 6."""
        relation, count = draw_bound(rng, (2, 3, 4, 5, 6, 8), (2, 3, 4, 6))
        return cls(num_sentences=count, relation=relation)


class NumberOfParagraphs(Instruction):
    """The answer has so many paragraphs, divided by `***`."""

    kind = "length_constraints:number_paragraphs"
    claims = frozenset({"layout"})
    wordings = (
        "Write {num_paragraphs} paragraphs and put *** between them.",
        "Your answer consists of {num_paragraphs} paragraphs, with the divider *** between one and the next.",
        "There should be {num_paragraphs} paragraphs, separated by three stars: ***",
    )
    num_paragraphs: int = Field(ge=0)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return count_parts(_DIVIDER.split(answer)) == self.num_paragraphs

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return "\n***\n".join(parts_of(answer, self.num_paragraphs))

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """Two to four."""
        return cls(num_paragraphs=rng.randint(2, 4))


class TwoParagraphs(Instruction):
    """The answer has two paragraphs, divided by `***`."""

    kind = "paragraphs:paragraphs"
    claims = frozenset({"layout"})
    wordings = ("Write two paragraphs and put the markdown divider *** between them.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return count_parts(_DIVIDER.split(answer)) == 2

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return "\n***\n".join(parts_of(answer, 2))


class TwoParagraphsByBlankLine(Instruction):
    """The answer has two paragraphs, divided by a blank line."""

    kind = "paragraphs:paragraphs2"
    claims = frozenset({"layout"})
    wordings = ("Write two paragraphs with a blank line between them, and no other blank line.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return count_parts(answer.split("\n\n")) == 2

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return "\n\n".join(parts_of(answer, 2))


class FirstWordOfParagraph(Instruction):
    """The answer has so many paragraphs, divided by blank lines, and one of them begins with a given word."""

    kind = "length_constraints:nth_paragraph_first_word"
    claims = frozenset({"layout", "begin"})
    wordings = (
        'Write {num_paragraphs} paragraphs with a blank line between them. Paragraph {nth_paragraph} begins with the '
        'word "{first_word}".',
        "Your response has {num_paragraphs} paragraphs, separated by an empty line, and paragraph {nth_paragraph} "
        "starts with {first_word}.",
    )
    num_paragraphs: int = Field(ge=1)
    nth_paragraph: int = Field(ge=1)
    first_word: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        paragraphs = answer.split("\n\n")
        if sum(bool(paragraph.strip()) for paragraph in paragraphs) != self.num_paragraphs:
            return False
        words = paragraphs[self.nth_paragraph - 1].split() if self.nth_paragraph <= self.num_paragraphs else []
        if not words:
            return False
        first = re.split("[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
        return first.lower() == self.first_word.lower()

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        paragraphs = parts_of(answer, self.num_paragraphs)
        if self.nth_paragraph <= len(paragraphs):
            begun = paragraphs[self.nth_paragraph - 1]
            paragraphs[self.nth_paragraph - 1] = f"{self.first_word}, {begun[:1].lower()}{begun[1:]}"
        return "\n\n".join(paragraphs)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """Two to four paragraphs, and a word that a sentence may begin with."""
        count = rng.randint(2, 4)
        return cls(num_paragraphs=count, nth_paragraph=rng.randint(1, count), first_word=rng.choice(OPENINGS))


class FirstWordOfSentences(Instruction):
    """Every sentence begins with a given word; capitals aside."""

    kind = "first_word:first_word_sent"
    claims = frozenset({"begin", "words"})
    wordings = ('Begin every sentence with the word "{first_word}".',)
    first_word: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        wanted = self.first_word.strip().lower()
        return all(sentence.split()[0].lower() == wanted for sentence in sentences(answer))

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """A word that sentences begin with."""
        return cls(first_word=rng.choice(("The", "We", "You", "It", "Some", "Many", "Today")))


class LastWordOfSentences(Instruction):
    """Every sentence ends with a given word before its punctuation; capitals aside."""

    kind = "last_word:last_word_sent"
    claims = frozenset({"end", "words"})
    wordings = ('End every sentence with the word "{last_word}", before the punctuation.',)
    last_word: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        wanted = self.last_word.strip().lower()
        return all(re.sub(r"[^\w\s]", "", sentence.split()[-1]).lower() == wanted for sentence in sentences(answer))

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One word."""
        return cls(last_word=rng.choice(words))
