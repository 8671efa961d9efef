"""Instructions about words and letters that stand in an answer, or do not."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from typing import ClassVar, Self

from pydantic import Field, field_validator

from triptych.instructions.instruction import EVERYTHING, Instruction, Relation, compare, draw_bound
from triptych.instructions.text import tokens


def occurrences(word: str, answer: str) -> int:
    """How often a text stands in the answer, capitals aside, also inside of longer words."""
    return len(re.findall(re.escape(word), answer, re.IGNORECASE))


class Existence(Instruction):
    """Every keyword stands in the answer."""

    kind = "keywords:existence"
    claims = frozenset({"words"})
    wordings = (
        "Make sure that {keywords} can be found in what you write.",
        "Use {keywords} somewhere in your answer.",
        "Your answer has to contain the following: {keywords}.",
        "Include {keywords} in the response.",
        "The keywords {keywords} must appear.",
    )
    keywords: tuple[str, ...] = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return all(occurrences(word, answer) for word in self.keywords)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One to three words."""
        return cls(keywords=tuple(rng.sample(words, k=rng.randint(1, 3))))


class Frequency(Instruction):
    """A keyword stands in the answer at least, or less than, so many times."""

    kind = "keywords:frequency"
    claims = frozenset({"words"})
    wordings: ClassVar[tuple[str, ...]] = (
        'Use the word "{keyword}" {relation} {frequency} times.',
        'The word "{keyword}" is to be found {relation} {frequency} times in your answer.',
        'Let "{keyword}" appear {relation} {frequency} times.',
    )
    keyword: str = Field(min_length=1)
    frequency: int
    relation: Relation

    def follows(self, answer: str) -> bool:
        """See the class."""
        return compare(occurrences(self.keyword.strip(), answer), self.relation, self.frequency)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """At least two or three times, or less than two to four."""
        relation, frequency = draw_bound(rng, (2, 3), (2, 3, 4))
        return cls(keyword=rng.choice(words), frequency=frequency, relation=relation)


class FrequencyByNumber(Frequency):
    """The same as open-instruct names it."""

    kind = "keywords:word_count_different_numbers"
    wordings = ()


class ForbiddenWords(Instruction):
    """None of the words stands in the answer as a word."""

    kind = "keywords:forbidden_words"
    claims = frozenset({"words"})
    wordings = (
        "Do without {forbidden_words}.",
        "Leave out {forbidden_words} in all that you write.",
        "Your answer must not use {forbidden_words}.",
        "Avoid {forbidden_words}.",
        "The words {forbidden_words} may not be part of the response.",
    )
    forbidden_words: tuple[str, ...] = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        words = (re.escape(word) for word in self.forbidden_words)
        return not any(re.search(rf"\b{word}\b", answer, re.IGNORECASE) for word in words)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One to three words."""
        return cls(forbidden_words=tuple(rng.sample(words, k=rng.randint(1, 3))))


class LetterFrequency(Instruction):
    """A letter stands in the answer at least, or less than, so many times, capitals aside."""

    kind = "keywords:letter_frequency"
    claims = frozenset({"letters"})
    wordings: ClassVar[tuple[str, ...]] = (
        'Write the letter "{letter}" {let_relation} {let_frequency} times.',
        'The letter "{letter}" may be counted {let_relation} {let_frequency} times in your answer.',
        "In your response, the letter {letter} is to occur {let_relation} {let_frequency} times.",
    )
    letter: str = Field(min_length=1, max_length=1)
    let_frequency: int
    let_relation: Relation

    def follows(self, answer: str) -> bool:
        """See the class."""
        return compare(answer.lower().count(self.letter.lower()), self.let_relation, self.let_frequency)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """A letter that is neither the commonest nor the rarest."""
        relation, frequency = draw_bound(rng, (2, 4, 6), (4, 6, 10))
        return cls(letter=rng.choice("bcdfghklmpuvwy"), let_frequency=frequency, let_relation=relation)


class LetterCount(LetterFrequency):
    """The same as open-instruct names it."""

    kind = "letters:letter_counting2"
    wordings = ()


class Once(Instruction):
    """A keyword stands in the answer once."""

    kind = "keywords:word_once"
    claims = frozenset({"words"})
    wordings = ('Use the word "{keyword}" exactly once.', 'Your answer has the word "{keyword}" in it one single time.')
    keyword: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return occurrences(self.keyword.strip(), answer) == 1

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One word."""
        return cls(keyword=rng.choice(words))


class OnceAndTwice(Instruction):
    """One keyword stands in the answer once, another one twice."""

    kind = "count:count_increment_word"
    claims = frozenset({"words"})
    wordings = ('Use the word "{keyword1}" once and the word "{keyword2}" twice.',)
    keyword1: str = Field(min_length=1)
    keyword2: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return occurrences(self.keyword1.strip(), answer) == 1 and occurrences(self.keyword2.strip(), answer) == 2

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """Two words."""
        first, second = rng.sample(words, k=2)
        return cls(keyword1=first, keyword2=second)


class ExcludedWord(Instruction):
    """A keyword does not stand in the answer with a blank on both sides; capitals count."""

    kind = "keywords:exclude_word_harder"
    claims = frozenset({"words"})
    wordings = ('Do not write the word "{keyword}".',)
    keyword: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return f" {self.keyword.strip()} " not in answer

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One of the likelier words."""
        return cls(keyword=rng.choice(words[:5]))


class Palindrome(Instruction):
    """A word of the answer is the same read backwards; a single letter is one too."""

    kind = "keywords:palindrome"
    wordings = ("Put a palindrome into your answer.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return any(word == word[::-1] for word in answer.split())


class NoConsecutiveInitials(Instruction):
    """No word begins with the letter that follows, in the alphabet, the first letter of the word before."""

    kind = "keywords:no_adjacent_consecutive"
    claims = frozenset({"words"})
    wordings = ("No two words in a row may begin with letters that follow each other in the alphabet.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        initials = [word[0].lower() for word in answer.split()]
        if any(len(initial) != 1 for initial in initials) and len(initials) > 1:
            return False  # a letter whose small form is two
        return all(ord(second) - ord(first) != 1 for first, second in pairwise(initials))


class UniqueWords(Instruction):
    """No word, and no mark of punctuation, stands in the answer twice."""

    kind = "count:count_unique"
    claims = frozenset({"words", "length", "dots"})
    wordings = ("Never use a word twice.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        words = tokens(answer)
        return len(words) == len(set(words))


class FirstWord(Instruction):
    """The answer's first word, with what stands at it, is a given one; capitals aside."""

    kind = "first_word:first_word_answer"
    claims = frozenset({"begin", "words"})
    wordings = ('Begin with the word "{first_word}".', 'The first word of your answer is "{first_word}".')
    first_word: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return answer.split()[0].lower() == self.first_word.strip().lower()

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One word."""
        return cls(first_word=rng.choice(words))


class LastWord(Instruction):
    """The answer's last word, without punctuation, is a given one; capitals aside."""

    kind = "last_word:last_word_answer"
    claims = frozenset({"end", "words"})
    wordings = ('End with the word "{last_word}".', 'The last word of your answer is "{last_word}".')
    last_word: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return re.sub(r"[^\w\s]", "", answer.split()[-1]).lower() == self.last_word.strip().lower()

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One word."""
        return cls(last_word=rng.choice(words))


class SameWordAtBothEnds(Instruction):
    """The answer begins and ends with the same word, capitals aside, and nothing follows it."""

    kind = "keywords:start_end"
    claims = frozenset({"begin", "end"})
    wordings = ("Let your first and your last word be the same, with nothing behind the last one.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        words = tokens(answer)
        return len(words) > 1 and words[0].lower() == words[-1].lower()

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        words = tokens(answer)
        return f"{answer.rstrip('.!?')}. {words[0]}" if words else answer


class Copied(Instruction):
    """The answer is a given text, and nothing else; capitals aside."""

    kind = "copy:copy"
    claims = EVERYTHING
    prompt_to_repeat: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return answer.strip().lower() == self.prompt_to_repeat.strip().lower()


class CopiedSimply(Copied):
    """The same under open-instruct's other name."""

    kind = "copy:copying_simple"


class LetterTotal(Instruction):
    """The answer has at least, or less than, so many letters from a to z."""

    kind = "letters:letter_counting"
    claims = frozenset({"length"})
    wordings = ("Write {relation} {N} letters.",)
    N: int
    relation: Relation

    def follows(self, answer: str) -> bool:
        """See the class."""
        return compare(len(re.findall("[a-zA-Z]", answer)), self.relation, self.N)

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """At least a line, or less than a few."""
        relation, count = draw_bound(rng, (40, 80, 120), (100, 200, 300))
        return cls(N=count, relation=relation)

    @field_validator("N")
    @classmethod
    def _not_negative(cls, count: int) -> int:
        if count < 0:
            raise ValueError(f"must be at least 0, got {count}")
        return count
