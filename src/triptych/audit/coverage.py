"""Which answers an audit measured: from the least reward, length and disagreement to the greatest."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.audit.record import Coverage
from triptych.engine.scoring import Disagreeing, Scorer
from triptych.records import Conversation


def coverage(answers: Sequence[Conversation], scores: Sequence[float] | None, scorer: Scorer) -> Coverage:
    """The ranges of the audited answers.

    Args:
        scores: the scorer's own of these answers, where it has not learnt them; None where others stood for it, whose
            scores may be in other units.
        scorer: the reward that is used.
    """
    lengths = [len(conversation.answer) for conversation in answers]
    covered = Coverage(answers=len(answers), length=(min(lengths), max(lengths)))
    if scores is not None:
        covered.score = min(scores), max(scores)
        covered.spread = max(scorer.spread(answers)) if isinstance(scorer, Disagreeing) else None
    return covered
