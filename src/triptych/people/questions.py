"""Questions to people: which of two answers of the champion is better? What they say becomes a comparison."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import faults_of, parse_comparison, write
from triptych.data.splits import fraction
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.feedback.prompts import prompts_to_ask
from triptych.people.questionnaire import Questionnaire
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison, Conversation, Question
from triptych.storage import Folder

FILE = "questions.jsonl"


class Asking(Config):
    """What people are asked in a round.

    Attributes:
        prompts: how many, each round the next ones of those that are improved on.
        answers: sampled for each; every two that differ are a question.
        max_tokens: an answer is cut there.
    """

    prompts: int = Field(default=200, ge=1)
    answers: int = Field(default=2, ge=2)
    max_tokens: int = Field(default=96, ge=1)


class QuestionsAsked(Result):
    """How many questions there are, about answers to how many prompts."""

    questions: int
    prompts: int


def ask(
    context: StageContext, config: Asking, data: Folder, author: Folder, round: int = 1, reward: Scorer | None = None
) -> QuestionsAsked:
    """Writes `questions.jsonl`: pairs of answers, in random order; those first of which a reward is least sure.

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
    found: list[Question] = []
    for group in policy.write(prompts, sampling, n=config.answers, progress=context.progress):
        said: dict[str, str] = {}  # of answers that look alike the first
        for each in group:
            said.setdefault(each.answer.strip(), each.answer)
        said.pop("", None)
        for place, (a, b) in enumerate(combinations(said.values(), 2)):
            turned = fraction("shown first", f"{place} {group[0].prompt.key}", context.seed) < 0.5
            found.append(Question(group[0].prompt, *((b, a) if turned else (a, b))))
    found = [question for question in found if not faults_of(question.compared(first_is_better=True))]
    if reward is not None:
        scores = reward.score([
            Conversation(each.prompt, answer) for each in found for answer in (each.first, each.second)
        ])
        unsure = [abs(a - b) for a, b in zip(scores[0::2], scores[1::2], strict=True)]
        found = [found[i] for i in sorted(range(len(found)), key=lambda i: unsure[i])]
    write(context.output / FILE, found)
    return QuestionsAsked(questions=len(found), prompts=len(prompts))


class Labels(Questionnaire[Comparison]):
    """Questions, and the file in which people's answers to them become comparisons; a tie teaches nothing."""

    choices = ("first", "second")

    def __init__(self, questions: Path, file: Path) -> None:
        super().__init__(questions, file, parse_comparison, key_of)

    def record(self, question: Question, better: str) -> Comparison:
        """The comparison that an answer makes of a question."""
        return question.compared(first_is_better=better == "first")


def key_of(row: Comparison) -> str:
    """Which question a comparison answers."""
    return Question(row.prompt, row.chosen, row.rejected).key
