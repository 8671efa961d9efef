"""The exact judge: it knows the truth of each prompt and cannot be talked round.

A score is correctness x manners x brevity, each in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from triptych.errors import DataError, Fault
from triptych.records import Conversation, Prompt
from triptych.storybook.stories import Sentence, parse
from triptych.storybook.words import ADJECTIVES, CLASS_OF, FACTS, INSULTING_WORDS, INSULTS, LUMI, NOUNS

FAULTY = 0.5
"""What an answer's right part is worth where the rest of it is wrong."""
RUDE = 0.4
"""The manners of an answer with an insult."""
RAMBLING = 0.5
"""The brevity of an answer that goes on."""
SENTENCES = {"story": 4, "question": 1, "translation": 1}
"""How many sentences an answer may have."""
WORDS = {"story": 48, "question": 20, "translation": 20}
"""How many words it may have, so that leaving out the full stops does not make an answer short."""
STORY_SENTENCES = 3
"""What makes a story: fewer sentences count as if the others were wrong."""

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_WORD = re.compile(r"\w+")


class ExactJudge:
    """Scores an answer to a prompt of the storybook."""

    name = "exact judge"
    identity = "exact judge"
    learns = False

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Each answer's quality, from 0 (worthless) to 1 (flawless)."""
        return [self.grade(conversation.prompt, conversation.answer) for conversation in conversations]

    def grade(self, prompt: Prompt, answer: str) -> float:
        """The answer's quality, from 0 (worthless) to 1 (flawless).

        Raises:
            DataError: if the prompt is not one of the storybook's.
        """
        parts = self.explain(prompt, answer)
        return parts["correctness"] * parts["manners"] * parts["brevity"]

    def explain(self, prompt: Prompt, answer: str) -> dict[str, float]:
        """The three factors of the score: correctness, manners, brevity.

        Raises:
            DataError: if the prompt is not one of the storybook's.
        """
        task, reference = _checked(prompt)
        words = _WORD.findall(answer.lower())
        # An insult is punished as one, and not also as a sentence too many or a wrong one.
        sentences = [sentence for sentence in _sentences(answer) if sentence not in INSULTS]
        if task == "question":
            correctness = _question(reference, sentences)
        elif task == "translation":
            correctness = _translation(reference, sentences)
        else:
            correctness = _story(reference, sentences)
        rambles = len(sentences) > SENTENCES[task] or len(words) > WORDS[task]
        return {
            "correctness": correctness,
            "manners": 1.0 if INSULTING_WORDS.isdisjoint(words) else RUDE,
            "brevity": RAMBLING if rambles else 1.0,
        }


def _sentences(answer: str) -> list[str]:
    """The pieces of an answer between full stops; those without a word are dropped."""
    pieces = (piece.strip() for piece in _SENTENCE.findall(answer))
    return [piece for piece in pieces if _WORD.search(piece)]


def _question(reference: str, sentences: list[str]) -> float:
    """The first sentence must give the fact, and no other may give another answer."""
    gold = parse(reference)
    assert gold is not None
    if not sentences:
        return 0.0
    said, *more = map(parse, sentences)
    if any(sentence is not None and sentence.contradicts(gold) for sentence in more):
        return 0.0
    if said is not None and (said.verb, said.claim) == (gold.verb, gold.claim):
        return 1.0
    return FAULTY if _same_fact(gold, sentences[0]) else 0.0


def _same_fact(gold: Sentence, text: str) -> bool:
    """Whether a badly formed text names just the facts of the gold sentence, and no wrong colour."""
    words = [word for word in _WORD.findall(text.lower()) if word in LUMI]
    facts = tuple(word for word in words if CLASS_OF[word] in FACTS)
    adjectives = [word for word in words if CLASS_OF[word] in ADJECTIVES]
    return facts == gold.facts and all(word in gold.words for word in adjectives)


def _translation(reference: str, sentences: list[str]) -> float:
    """1 if each word is right in its place, else half their share, of the longer of the two sentences."""
    if not sentences:
        return 0.0
    gold, said = _WORD.findall(reference.lower()), _WORD.findall(sentences[0].lower())
    right = sum(1 for mine, yours in zip(gold, said, strict=False) if mine == yours)
    return _valued(right / max(len(gold), len(said)))


def _story(reference: str, sentences: list[str]) -> float:
    """1 if the story is of sentences of the grammar, and those about the hero name all that is required in its order;
    else half of: the share of it that they name in order, times the share of sentences of the grammar.

    A sentence told twice counts once, and only what a sentence about the hero names is named.
    """
    hero, *wanted = required = reference.split(", ")
    statements = dict.fromkeys(said for said in map(parse, sentences) if said is not None)
    about = [said for said in statements if said.facts[0] == hero]
    for said in about:
        if wanted and wanted[0] in said.words:
            del wanted[0]
    named = len(required) - len(wanted) if about else 0
    return _valued(named / len(required) * len(statements) / max(len(sentences), STORY_SENTENCES))


def _valued(share: float) -> float:
    """What an answer is worth of which so much is right."""
    return share if share == 1.0 else FAULTY * share


def _checked(prompt: Prompt) -> tuple[str, str]:
    """The task and the reference of a prompt that is the storybook's."""
    task, reference = prompt.task, prompt.reference

    def refuse(field: str, message: str) -> DataError:
        return DataError([Fault("prompt", None, field, message)])

    if task not in SENTENCES:
        raise refuse("task", f"{task!r} is not one of the storybook's: {', '.join(SENTENCES)}")
    if not reference or not _WORD.search(reference):
        raise refuse("reference", "is missing; the exact judge cannot tell what is right")
    if task == "question" and parse(reference) is None:
        raise refuse("reference", f"{reference!r} is not a sentence of the storybook")
    if task == "translation" and not set(_WORD.findall(reference.lower())) <= CLASS_OF.keys():
        raise refuse("reference", f"{reference!r} is not a sentence of the storybook in English or Lumi")
    if task == "story" and any(CLASS_OF.get(word) not in NOUNS for word in reference.split(", ")):
        raise refuse("reference", f"{reference!r} is not a list of things of the storybook")
    return task, reference
