"""Instructions about an answer's form: marks, lists, titles, JSON, capitals, punctuation, its ends."""

from __future__ import annotations

import json
import random
import re
from typing import ClassVar, Self

from pydantic import Field

from triptych.instructions.instruction import EVERYTHING, Instruction, Relation, compare, draw_bound
from triptych.instructions.text import holds_list, is_in, parts_of, points, sentences, tokens

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""What IFEval's constrained response chooses from."""

CLOSINGS = (
    "Let me know what you think.", "That is all there is to say.", "Have a nice day!", "Does this answer help you?",
    "Thank you for asking.", "I hope that this is useful.", "Do you have more questions?", "And that was it.",
    "Now it is your turn.", "What would you do?", "This is the whole story.", "Take good care of yourself.",
)
"""With what an answer may be asked to end."""

_BULLET = re.compile(r"^\s*(?:\*[^\*].*|-.*)$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*[^\n\*]*\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n\*]*)\*\*")
_PLACEHOLDER = re.compile(r"\[.*?\]")
_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
_TITLE = re.compile(r"<<[^\n]+>>")


def _marked(answer: str, count: int, mark: str) -> str:
    """The answer with its first long words each between marks."""
    for word in list(dict.fromkeys(re.findall(r"\b[A-Za-z]{6,}\b", answer)))[:count]:
        answer = re.sub(rf"\b{word}\b", mark.format(word), answer, count=1)
    return answer


class Placeholders(Instruction):
    """The answer has at least so many placeholders in square brackets."""

    kind = "detectable_content:number_placeholders"
    wordings = (
        "Leave at least {num_placeholders} placeholders in square brackets, such as [name], to be filled in.",
        "Use at least {num_placeholders} placeholders like [date] or [place].",
        "The response has to hold {num_placeholders} or more placeholders in square brackets, for instance [address].",
    )
    num_placeholders: int = Field(ge=0)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return len(_PLACEHOLDER.findall(answer)) >= self.num_placeholders

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return _marked(answer, self.num_placeholders, "[{}]")

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One to four."""
        return cls(num_placeholders=rng.randint(1, 4))


class Postscript(Instruction):
    """The answer has a postscript that begins with a given mark."""

    kind = "detectable_content:postscript"
    claims = frozenset({"end", "dots"})
    wordings = (
        "Add a postscript at the end that begins with {postscript_marker}",
        "After your answer, write a postscript. It starts with {postscript_marker}",
        "End the response with a postscript, marked by {postscript_marker}",
    )
    postscript_marker: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        marker = self.postscript_marker.strip()
        return bool(re.search(_POSTSCRIPTS.get(marker, re.escape(marker.lower())), answer.lower()))

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        answer = answer.rstrip()
        *_, last = sentences(answer.rpartition("\n")[2]) or [""]
        body = answer.removesuffix(last).rstrip()
        if holds_list(answer) or not re.search(r"\w", body.rpartition("\n")[2]):
            return answer  # a postscript stands behind something, and is no entry of a list
        return f"{body}\n\n{self.postscript_marker} {last}"

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One of the two usual marks."""
        return cls(postscript_marker=rng.choice(tuple(_POSTSCRIPTS)))


class Bullets(Instruction):
    """The answer has exactly so many lines that are bullet points of markdown."""

    kind = "detectable_format:number_bullet_lists"
    claims = frozenset({"layout"})
    wordings = (
        "Give exactly {num_bullets} bullet points in markdown, such as:\n* A point.",
        "List exactly {num_bullets} points, each on a line of its own that begins with *",
        "The response must have exactly {num_bullets} markdown bullets, like:\n* The first\n* The second",
    )
    num_bullets: int = Field(ge=0)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return len(_BULLET.findall(answer)) == self.num_bullets

    def rewrite(self, answer: str) -> str:
        """See `Instruction`. What is a list already stays one of as many points."""
        listed = points(answer)
        if holds_list(answer) and len(listed) != self.num_bullets:
            return answer
        return "\n".join(f"* {part}" for part in listed or parts_of(answer, self.num_bullets))

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """Two to six."""
        return cls(num_bullets=rng.randint(2, 6))


class ConstrainedResponse(Instruction):
    """The answer holds one of IFEval's three options."""

    kind = "detectable_format:constrained_response"
    claims = EVERYTHING

    def follows(self, answer: str) -> bool:
        """See the class."""
        return any(option in answer for option in OPTIONS)


class Highlights(Instruction):
    """The answer highlights at least so many parts with stars."""

    kind = "detectable_format:number_highlighted_sections"
    wordings = (
        "Highlight at least {num_highlights} parts of your answer in markdown, like *this part*.",
        "At least {num_highlights} passages are to be set between stars, as in *a passage*.",
        "Use markdown to emphasise {num_highlights} or more sections, i.e. *an emphasised section*.",
    )
    num_highlights: int = Field(ge=0)

    def follows(self, answer: str) -> bool:
        """See the class."""
        single = sum(bool(part.strip("*").strip()) for part in _HIGHLIGHT.findall(answer))
        double = sum(bool(part.strip()) for part in _DOUBLE_HIGHLIGHT.findall(answer))
        return single + double >= self.num_highlights

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return _marked(answer, self.num_highlights, "*{}*")

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One to three."""
        return cls(num_highlights=rng.randint(1, 3))


class Sections(Instruction):
    """The answer has at least so many sections, each begun by a word and a number."""

    kind = "detectable_format:multiple_sections"
    claims = frozenset({"layout", "case"})
    wordings = (
        "Divide your answer into {num_sections} sections, and begin each with {section_spliter} and its number, as in "
        "{section_spliter} 1",
        "Your response must have {num_sections} sections. Mark where one begins with {section_spliter} X, where X is "
        "1, 2 and so on.",
    )
    section_spliter: str = Field(min_length=1)
    num_sections: int = Field(ge=0)

    def follows(self, answer: str) -> bool:
        """See the class."""
        marks = re.findall(rf"{re.escape(self.section_spliter.strip())}\s?\d+", answer)
        return len(marks) >= self.num_sections

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        parts = parts_of(answer, self.num_sections)
        return "\n\n".join(f"{self.section_spliter} {place}\n{part}" for place, part in enumerate(parts, start=1))

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """Two or three."""
        return cls(section_spliter=rng.choice(("Section", "SECTION", "Part", "Day")), num_sections=rng.randint(2, 3))


class JsonFormat(Instruction):
    """The answer is JSON, between marks of code or not."""

    kind = "detectable_format:json_format"
    claims = frozenset({"begin", "end", "layout", "case", "dots"})
    wordings = (
        "Give all of your answer as JSON.",
        "Write your whole answer in JSON, and nothing around it.",
        "The response is to be one JSON object, in a markdown code block or not.",
    )

    def follows(self, answer: str) -> bool:
        """See the class."""
        content = answer.strip()
        for mark in ("```json", "```Json", "```JSON", "```"):
            content = content.removeprefix(mark)
        try:
            json.loads(content.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return json.dumps({"answer": answer}, ensure_ascii=False)


class Title(Instruction):
    """The answer has a title in double angular brackets."""

    kind = "detectable_format:title"
    claims = frozenset({"begin"})
    wordings = (
        "Give your answer a title in double angular brackets, such as <<a day at sea>>.",
        "Put a title between << and >> into your answer.",
        "The response needs a title that stands in << >>, for example <<a day at sea>>.",
    )

    def follows(self, answer: str) -> bool:
        """See the class."""
        return any(title.lstrip("<").rstrip(">").strip() for title in _TITLE.findall(answer))

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        words = re.findall(r"[A-Za-z]+", answer)[:5]
        return f"<<{' '.join(words).title()}>>\n\n{answer}"


class TwoResponses(Instruction):
    """The answer is two that differ, divided by six stars."""

    kind = "combination:two_responses"
    claims = frozenset({"layout", "begin", "end", "length"})
    wordings = (
        "Give two answers that differ, with six stars between them: ******",
        "Write two different responses, and nothing but ****** between the one and the other.",
    )

    def follows(self, answer: str) -> bool:
        """See the class."""
        responses = answer.split("******")
        if any(not response.strip() for response in responses[1:-1]):
            return False
        given = [response.strip() for response in responses if response.strip()]
        return len(given) == 2 and given[0] != given[1]

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return "\n******\n".join(parts_of(answer, 2))


class RepeatedPrompt(Instruction):
    """The answer begins with a given text, capitals aside."""

    kind = "combination:repeat_prompt"
    claims = EVERYTHING
    wordings = (
        "First repeat the request above word for word, then answer it.",
        "Before you answer, write the request once more, without a change and with nothing before it.",
        "Begin with my words from above as they are; your answer comes after them.",
    )
    prompt_to_repeat: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return answer.strip().lower().startswith(self.prompt_to_repeat.strip().lower())

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return f"{self.prompt_to_repeat}\n\n{answer}"

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """The request itself."""
        return cls(prompt_to_repeat=request)


class EndPhrase(Instruction):
    """The answer ends with a given phrase, capitals aside."""

    kind = "startend:end_checker"
    claims = frozenset({"end", "dots"})
    wordings = (
        "Close with these very words, and write nothing behind them: {end_phrase}",
        "The last thing that you write is: {end_phrase}",
        'Finish your response with the exact phrase "{end_phrase}" and no other words after it.',
    )
    end_phrase: str = Field(min_length=1)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return answer.strip().strip('"').lower().endswith(self.end_phrase.strip().lower())

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return f"{answer} {self.end_phrase}"

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """One of the closings."""
        return cls(end_phrase=rng.choice(CLOSINGS))


class Quotation(Instruction):
    """The whole answer stands between double quotation marks."""

    kind = "startend:quotation"
    claims = frozenset({"begin", "end"})
    wordings = (
        "Put double quotation marks around your whole answer.",
        'Your answer begins with " and ends with "',
        "The entire response is to be wrapped in double quotation marks.",
    )

    def follows(self, answer: str) -> bool:
        """See the class."""
        text = answer.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return '"' + answer.replace('"', "'") + '"'


class CapitalWords(Instruction):
    """The answer has at least, or less than, so many words in capitals."""

    kind = "change_case:capital_word_frequency"
    claims = frozenset({"case"})
    wordings = (
        "Write {capital_relation} {capital_frequency} words in capital letters only.",
        "The number of words that are all in capitals is to be {capital_relation} {capital_frequency}.",
        "Words in all capital letters should appear {capital_relation} {capital_frequency} times.",
    )
    capital_frequency: int = Field(ge=0)
    capital_relation: Relation

    def follows(self, answer: str) -> bool:
        """See the class."""
        capitals = sum(word.isupper() for word in tokens(answer))
        return compare(capitals, self.capital_relation, self.capital_frequency)

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        if self.capital_relation == "less than":
            return answer
        for word in re.findall(r"\b[a-z]{5,}\b", answer)[: self.capital_frequency]:
            answer = re.sub(rf"\b{word}\b", word.upper(), answer, count=1)
        return answer

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """At least one to four, or less than two to five."""
        relation, count = draw_bound(rng, (1, 2, 3, 4), (2, 3, 5))
        return cls(capital_frequency=count, capital_relation=relation)


class InCapitals(Instruction):
    """The answer is English and has capitals only."""

    kind = "change_case:english_capital"
    claims = frozenset({"case"})
    wordings = (
        "Write your whole answer in English and in capital letters only.",
        "Use capital letters for all of your answer, which is to be in English.",
        "The entire response is to be in English, in all capital letters.",
    )

    def follows(self, answer: str) -> bool:
        """See the class."""
        return answer.isupper() and is_in("en", answer)

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return answer.upper()


class InLowercase(Instruction):
    """The answer is English and has no capitals."""

    kind = "change_case:english_lowercase"
    claims = frozenset({"case"})
    wordings = (
        "Write your whole answer in English and without a single capital letter.",
        "Use lowercase letters only, in English.",
        "The entire response is to be in English, all lowercase; capital letters are not allowed.",
    )

    def follows(self, answer: str) -> bool:
        """See the class."""
        return answer.islower() and is_in("en", answer)

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return answer.lower()


class LowercaseWords(Instruction):
    """The answer has at most so many words in small letters."""

    kind = "count:lowercase_counting"
    claims = frozenset({"case", "length"})
    wordings = ("Use at most {N} words that are in small letters.",)
    N: int = Field(ge=0)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return len(re.findall(r"\b[a-z]+\b", answer)) <= self.N

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """Five to twenty."""
        return cls(N=rng.choice((5, 10, 20)))


class ResponseLanguage(Instruction):
    """The answer is in a language (ISO 639-1), as langdetect takes it."""

    kind = "language:response_language"
    claims = EVERYTHING
    language: str = Field(pattern=r"^[a-z]{2}(-[a-z]{2})?$")

    def follows(self, answer: str) -> bool:
        """See the class."""
        return is_in(self.language, answer)


class _Without(Instruction):
    """A mark does not stand in the answer."""

    mark: ClassVar[str]
    instead: ClassVar[str] = ""

    def follows(self, answer: str) -> bool:
        """See the class."""
        return self.mark not in answer

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return answer.replace(self.mark, self.instead)


class NoComma(_Without):
    """No comma stands in the answer."""

    kind = "punctuation:no_comma"
    mark = ","
    wordings = (
        "Use no commas at all.",
        "Write without any comma.",
        "There must be no comma in your answer.",
        "Do not use a comma anywhere in the response.",
    )


class NoDot(_Without):
    """No dot stands in the answer."""

    kind = "punctuation:punctuation_dot"
    mark = "."
    claims = frozenset({"dots"})
    wordings = ("Use no dots (.) at all.", "Write without any dot, also at the end of sentences.")


class NoExclamation(_Without):
    """No exclamation mark stands in the answer."""

    kind = "punctuation:punctuation_exclamation"
    mark, instead = "!", "."
    claims = frozenset({"dots"})
    wordings = ("Use no exclamation marks.", "There must be no exclamation mark in your answer.")


class SquareBrackets(Instruction):
    """Every word stands in square brackets of its own."""

    kind = "detectable_format:square_brackets"
    claims = EVERYTHING
    wordings = ("Put every single word into square brackets, [like] [this].",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        return all(word.startswith("[") and word.endswith("]") for word in answer.split())

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        return " ".join(f"[{word}]" for word in answer.split())


class WrappedPairs(Instruction):
    """Words stand two by two in double angular brackets."""

    kind = "detectable_format:bigram_wrapping"
    claims = EVERYTHING
    wordings = ("Put your words two by two into double angular brackets, <<like this>> <<one here>>.",)

    def follows(self, answer: str) -> bool:
        """See the class."""
        words = answer.split()
        pairs = zip(words[::2], words[1::2], strict=False)  # a last word alone is left out
        return all(first.startswith("<<") and second.endswith(">>") for first, second in pairs)

    def rewrite(self, answer: str) -> str:
        """See `Instruction`."""
        words = answer.split()
        return " ".join(f"<<{' '.join(words[place : place + 2])}>>" for place in range(0, len(words), 2))
