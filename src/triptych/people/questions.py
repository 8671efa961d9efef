"""Questions to people about what the champion writes; what they say becomes the feedback of the next round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any, ClassVar, Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import parse_conversation, parse_label, parse_question, parse_thumb, write
from triptych.data.splits import fraction
from triptych.data.votes import BOTH_BAD
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.feedback.labelling import CUT
from triptych.feedback.prompts import prompts_to_ask
from triptych.people.questionnaire import Choice, Q, Questionnaire
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison, Conversation, Prompt, Question, Thumb, Verdict
from triptych.storage import Folder

FILE = "questions.jsonl"

Form = Literal["comparisons", "thumbs"]
"""In which form people say what they prefer."""


class Asking(Config):
    """What people are asked in a round.

    Attributes:
        ask_for: "comparisons" of two answers, or "thumbs" up or down on one; by default thumbs where the method of
            improvement learns from them, else comparisons.
        prompts: how many, each round the next ones of those that are improved on.
        answers: sampled for each; every two that differ are a question, or, where thumbs are asked for, every one.
        max_tokens: an answer is cut there, and nobody is asked about a cut one.
    """

    ask_for: Form | None = None
    prompts: int = Field(default=200, ge=1)
    answers: int = Field(default=2, ge=2)
    max_tokens: int = Field(default=96, ge=1)


class QuestionsAsked(Result):
    """How many questions there are, about answers to how many prompts, and how many answers were cut and left out."""

    questions: int
    prompts: int
    cut: int = 0


class FeedbackQuestionnaire(Questionnaire[Q]):
    """Questions about what the champion wrote, and the file in which answers to them become feedback.

    Attributes:
        unit: what one of the file's records is called.
    """

    unit: ClassVar[str]

    @staticmethod
    @abstractmethod
    def pose(prompt: Prompt, answers: Sequence[str], seed: int) -> list[Q]:
        """The questions about different answers to a prompt."""


class Labels(FeedbackQuestionnaire[Question]):
    """Two answers, of which one is better; where both are bad there is nothing to learn, and it is counted."""

    title = "Which answer is better?"
    choices = (
        Choice("first", "1", "The first is better"), Choice("second", "2", "The second is better"),
        Choice(BOTH_BAD, "b", "Both are bad"),
    )
    unit = "comparison"
    parse = staticmethod(parse_label)
    parse_question = staticmethod(parse_question)

    @staticmethod
    def record(question: Question, choice: str, annotator: str | None = None) -> Comparison | Verdict:
        """The comparison that an answer makes of a question; of one that prefers neither a verdict."""
        if choice == BOTH_BAD:
            return Verdict(question, choice, annotator)
        return question.compared(choice == "first", annotator)

    @staticmethod
    def pose(prompt: Prompt, answers: Sequence[str], seed: int) -> list[Question]:
        """Every two answers, in random order."""
        return [
            Question(prompt, *((b, a) if fraction("shown first", f"{place} {prompt.key}", seed) < 0.5 else (a, b)))
            for place, (a, b) in enumerate(combinations(answers, 2))
        ]


class Thumbs(FeedbackQuestionnaire[Conversation]):
    """One answer, which somebody likes or does not."""

    title = "Is the answer good?"
    choices = (Choice("up", "u", "👍 Good"), Choice("down", "d", "👎 Not good"))
    unit = "thumb"
    parse = staticmethod(parse_thumb)
    parse_question = staticmethod(parse_conversation)

    @staticmethod
    def record(question: Conversation, choice: str, annotator: str | None = None) -> Thumb:
        """The thumb that an answer makes of a question."""
        return Thumb(question.prompt, question.answer, choice == "up", annotator)

    @staticmethod
    def pose(prompt: Prompt, answers: Sequence[str], seed: int) -> list[Conversation]:
        """Every answer."""
        return [Conversation(prompt, answer) for answer in answers]


FORMS: Mapping[Form, type[FeedbackQuestionnaire[Any]]] = {"comparisons": Labels, "thumbs": Thumbs}


def ask(
    context: StageContext, config: Asking, data: Folder, author: Folder, round: int = 1, reward: Scorer | None = None
) -> QuestionsAsked:
    """Writes `questions.jsonl`; those first of which a reward is least sure.

    Args:
        author: the champion, who writes the answers.
        reward: the last round's, if there is one.
    """
    pool = prompts_to_ask(data)
    first = (round - 1) * config.prompts
    policy = Policy.open(author / "model")
    drawn = [pool[i % len(pool)] for i in range(first, first + min(config.prompts, len(pool)))]
    prompts = policy.fitting(drawn, config.max_tokens, context.progress)
    sampling = Sampling(config.max_tokens, seed=context.seed * 1000 + round)
    form = FORMS[config.ask_for or "comparisons"]
    questions: list[Any] = []
    cut = 0
    for prompt, group in zip(
        prompts, policy.write(prompts, sampling, n=config.answers, progress=context.progress), strict=True
    ):
        answers: dict[str, str] = {}  # of answers that look alike the first
        for rollout in group:
            cut += not rollout.finished
            if rollout.finished:  # what learns a cut answer learns to end there
                answers.setdefault(rollout.answer.strip(), rollout.answer)
        answers.pop("", None)
        questions += filter(form.is_answerable, form.pose(prompt, list(answers.values()), context.seed))
    if cut > CUT * len(prompts) * config.answers:
        context.progress.say(f"questions: {cut:,} of {len(prompts) * config.answers:,} answers were cut at max_tokens, "
                             "and nobody is asked about them: raise it")
    if reward is not None and questions:
        shown = [Conversation(question.prompt, answer) for question in questions for answer in question.answers]
        scores = iter(reward.score(shown))
        sureness = distances([[next(scores) for _ in question.answers] for question in questions])
        questions = [questions[i] for i in sorted(range(len(questions)), key=lambda i: sureness[i])]
    write(context.output / FILE, questions)
    return QuestionsAsked(questions=len(questions), prompts=len(prompts), cut=cut)


def distances(scores: Sequence[Sequence[float]]) -> list[float]:
    """How far a reward tells the answers of each question apart: one that is alone from the median of all."""
    middle = median(score for answers in scores for score in answers)
    return [abs(first - (rest[0] if rest else middle)) for first, *rest in scores]
