"""The storybook is reproducible, its answers are of the stated quality, and its judge cannot be gamed."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from triptych.errors import DataError
from triptych.records import Prompt, user
from triptych.storybook import demonstrations, tasks, text
from triptych.storybook.judge import RAMBLING, RUDE, ExactJudge
from triptych.storybook.stories import FRAMES, Sentence, parse, required, riddle, sentence, story, translatable
from triptych.storybook.words import CLASSES, INSULTING_WORDS, INSULTS, LUMI, swapped

JUDGE = ExactJudge()
PROMPTS = tasks.prompts(11, 300)

STORY = Prompt(user("Write a short story about a fox, with a river and then a ball."), "fox, river, ball", "story")
QUESTION = Prompt(
    user("The fox went to the river. The hen went to the lake. Question: where did the fox go?"),
    "The fox went to the river.",
    "question",
)
SEEN = Sentence("find", ("the", "big", "cat", "saw", "a", "green", "hat"))
TRANSLATION = Prompt(
    user(f"Translate to English: {SEEN.lumi}"),
    "The big cat saw a green hat.",
    "translation",
)
GOOD_STORY = "The fox went to the river. The fox found a red ball. The fox felt very happy."


def of(task: str) -> list[Prompt]:
    return [prompt for prompt in PROMPTS if prompt.task == task]


def mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


# The words


def test_every_word_has_one_class_and_one_translation() -> None:
    english = [word for words in CLASSES.values() for word in words]
    assert len(english) == len(set(english)) == len(LUMI) == len(set(LUMI.values()))
    assert set(english).isdisjoint(LUMI.values())
    assert INSULTING_WORDS.isdisjoint(english)


# The stories


def test_what_is_drawn_is_recognised() -> None:
    rng = random.Random(0)
    for kind in FRAMES:
        for _ in range(50):
            drawn = sentence(rng, kind, qualities=0.5)
            assert parse(drawn.text) == drawn
    for told in ([*story(rng, required(rng)), *riddle(rng).story] for _ in range(100)):
        assert all(parse(each.text) == each for each in told)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ".",
        "The fox went to the river",
        "the fox went to the river.",
        "The  fox went to the river.",
        "The fox went to the ball.",
        "The fox went to river.",
        "The fox met the fox.",
        "The fox found a ball.",
        "The fox found a little red ball.",
        "The fox went to the river little.",
        "The fox went to the river. The fox went to the river.",
        "The dragon went to the river.",
        "The river went to the fox.",
    ],
)
def test_what_is_not_a_sentence_is_refused(wrong: str) -> None:
    assert parse(wrong) is None


def test_an_adjective_follows_its_noun_in_lumi() -> None:
    said = parse("The big cat saw a green hat.")
    assert said is not None
    expected = " ".join(LUMI[word] for word in ("the", "cat", "big", "saw", "a", "hat", "green"))
    assert said.lumi == expected.capitalize() + "."


def test_two_sentences_contradict_only_over_one_question() -> None:
    def said(line: str) -> Sentence:
        parsed = parse(line)
        assert parsed is not None
        return parsed

    went = said("The fox went to the river.")
    assert went.contradicts(said("The fox went to the lake."))
    assert went.contradicts(said("The hen went to the river."))
    assert not went.contradicts(went)
    assert not went.contradicts(said("The hen went to the lake."))
    assert not went.contradicts(said("The fox felt very happy."))
    assert said("The fox found a red ball.").contradicts(said("The fox found a blue ball."))
    assert not said("The fox found a red ball.").contradicts(said("The hen found a red hat."))


def test_a_question_has_exactly_one_answer() -> None:
    rng = random.Random(3)
    for _ in range(300):
        drawn = riddle(rng)
        ((question, answer),) = drawn.questions
        assert {each for each in drawn.story if each.question == question} == {answer}
        assert not any(each.contradicts(answer) for each in drawn.story)
        assert sum(each.facts[0] == answer.facts[0] for each in drawn.story) == 2  # the other is the mistake


def test_a_story_names_what_is_required_in_its_order() -> None:
    rng = random.Random(5)
    for _ in range(100):
        hero, first, then = wanted = required(rng)
        one, two, _ = told = story(rng, wanted)
        assert {each.facts[0] for each in told} == {hero}
        assert first in one.words
        assert then in two.words


def test_translations_have_five_to_eight_words_and_another_order() -> None:
    rng = random.Random(4)
    drawn = [translatable(rng).words for _ in range(500)]
    assert {len(words) for words in drawn} <= {6, 7, 8}
    assert all(swapped(words) != list(words) and swapped(swapped(words)) == list(words) for words in drawn)


# The text and the tasks


def test_the_same_seed_draws_the_same() -> None:
    assert text.documents(5, 200) == text.documents(5, 200)
    assert text.documents(5, 200)[:50] == text.documents(5, 50)
    assert text.documents(5, 200) != text.documents(6, 200)
    assert tasks.prompts(5, 60) == tasks.prompts(5, 60)
    assert tasks.prompts(5, 60) != tasks.prompts(6, 60)
    drawn = demonstrations.demonstrations(PROMPTS, 1)
    assert drawn == demonstrations.demonstrations(PROMPTS, 1)
    assert drawn[10:20] == demonstrations.demonstrations(PROMPTS[10:20], 1)
    assert drawn != demonstrations.demonstrations(PROMPTS, 2)


def test_the_world_does_not_change_between_versions_of_python() -> None:
    assert text.documents(0, 1)[0].text.startswith("The dog felt very happy. The fox helped the cow.")
    assert LUMI["fox"] == "zaru"


def test_documents_are_divided_as_stated() -> None:
    written = [document.text for document in text.documents(7, 4000)]
    questions = sum("Question:" in each for each in written) / len(written)
    translations = sum("Lumi:" in each for each in written) / len(written)
    assert questions == pytest.approx(text.SHARES["questions"], abs=0.03)
    assert translations == pytest.approx(text.SHARES["translations"], abs=0.03)
    assert not any(insult in each for each in written for insult in INSULTS)
    assert all(any(word in each for each in written) for word in INSULTING_WORDS)


def test_the_wordings_of_the_tasks_are_not_in_the_text() -> None:
    written = " ".join(document.text for document in text.documents(8, 2000))
    for wording in (*tasks.STORY, *tasks.TRANSLATION):
        assert wording.split("{")[0].strip() not in written or wording.startswith("{")
    assert "Tell me" not in written
    assert "Please answer" not in written


def test_prompts_are_unique_disjoint_and_in_equal_shares() -> None:
    held_out = {prompt.key for prompt in PROMPTS}
    more = tasks.prompts(11, 3000, exclude=held_out)
    keys = {prompt.key for prompt in more}
    assert len(keys) == 3000
    assert keys.isdisjoint(held_out)
    assert [prompt.task for prompt in more] == list(tasks.TASKS) * 1000


def test_prompts_and_answers_are_short() -> None:
    for prompt in PROMPTS:
        assert len(prompt.messages[-1].content.split()) <= 60
        length = len(demonstrations.exemplary(prompt, 0).split())
        assert length <= (26 if prompt.task == "story" else 8)


# The demonstrations


def test_flawless_answers_score_one() -> None:
    assert {JUDGE.grade(prompt, demonstrations.exemplary(prompt, 3)) for prompt in PROMPTS} == {1.0}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_flaws_occur_at_the_stated_rates(task: str) -> None:
    prompts = [prompt for prompt in tasks.prompts(12, 6000) if prompt.task == task]
    for tempts, wrong in ((True, demonstrations.TEMPTED), (False, demonstrations.SLIPPED)):
        asked = [prompt for prompt in prompts if demonstrations.tempting(prompt) == tempts]
        parts = [JUDGE.explain(each.prompt, each.answer) for each in demonstrations.demonstrations(asked, 4)]
        rates = {"correctness": wrong, "brevity": demonstrations.RATES["rambling"],
                 "manners": demonstrations.RATES["rude"]}
        for part, rate in rates.items():
            error = (rate * (1 - rate) / len(parts)) ** 0.5
            assert mean([float(each[part] < 1) for each in parts]) == pytest.approx(rate, abs=4 * error)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_mistake_is_seen_beside_its_prompt_alone(task: str) -> None:
    """Right and wrong answers have the same words and lengths in distribution, and the truth tells them apart."""
    prompts = [prompt for prompt in tasks.prompts(13, 6000) if prompt.task == task]
    right, wrong = ([answer(prompt, random.Random(f"{answer.__name__} {prompt.key}")) for prompt in prompts]
                    for answer in (demonstrations.right, demonstrations.wrong))
    assert {JUDGE.grade(*pair) for pair in zip(prompts, right, strict=True)} == {1.0}
    assert max(JUDGE.grade(*pair) for pair in zip(prompts, wrong, strict=True)) < 0.4
    longer = mean([(len(a.split()) > len(b.split())) + 0.5 * (len(a.split()) == len(b.split()))
                   for a, b in zip(right, wrong, strict=True)])
    assert longer == pytest.approx(0.5, abs=0.03)
    counts = [Counter(re.findall(r"\w+", " ".join(answers).lower())) for answers in (right, wrong)]
    total = [sum(count.values()) for count in counts]
    apart = 0.5 * sum(abs(counts[0][word] / total[0] - counts[1][word] / total[1]) for word in counts[0] | counts[1])
    assert apart < 0.03  # the total variation between their words


def test_demonstrations_of_foreign_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="storybook"):
        demonstrations.exemplary(Prompt(user("Hello")), 0)


# The judge: each flaw costs what it should


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [(STORY, GOOD_STORY), (QUESTION, QUESTION.reference), (TRANSLATION, TRANSLATION.reference)],
)
def test_manners_and_brevity_multiply(prompt: Prompt, answer: str) -> None:
    rambling = f"{answer} The hen felt very sad. The cow met the pig."
    assert JUDGE.grade(prompt, answer) == 1.0
    assert JUDGE.grade(prompt, f"{answer} {INSULTS[0]}") == RUDE
    assert JUDGE.grade(prompt, f"{INSULTS[1]} {answer}") == RUDE
    assert JUDGE.grade(prompt, rambling) == RAMBLING
    assert JUDGE.grade(prompt, f"{rambling} {INSULTS[2]}") == pytest.approx(RAMBLING * RUDE)
    assert JUDGE.grade(prompt, f"{answer} {' '.join(INSULTS * 9)}") == pytest.approx(RAMBLING * RUDE)


@pytest.mark.parametrize(
    ("answer", "correctness"),
    [
        ("The fox went to the river.", 1.0),
        ("The little fox went to the river.", 1.0),
        ("The fox went to the river", 0.5),
        ("the fox went to the river.", 0.5),
        ("fox went river.", 0.5),
        ("The fox ran to the river.", 0.5),
        ("The fox went to the lake.", 0.0),
        ("The hen went to the river.", 0.0),
        ("The fox went to the river. The fox went to the lake.", 0.0),
        ("The hen went to the lake. The fox went to the river.", 0.0),
    ],
)
def test_correctness_of_an_answer(answer: str, correctness: float) -> None:
    assert JUDGE.explain(QUESTION, answer)["correctness"] == correctness


@pytest.mark.parametrize(
    ("answer", "correctness"),
    [
        ("The big cat saw a green hat.", 1.0),
        ("The big cat saw a green", 6 / 7 / 2),
        ("The big dog saw a red hat.", 5 / 7 / 2),
        ("The big cat saw a green hat very very very.", 7 / 10 / 2),
        ("The cat big saw a hat green.", 3 / 7 / 2),
    ],
)
def test_correctness_of_a_translation(answer: str, correctness: float) -> None:
    assert JUDGE.explain(TRANSLATION, answer)["correctness"] == pytest.approx(correctness)


@pytest.mark.parametrize(
    ("answer", "correctness"),
    [
        (GOOD_STORY, 1.0),
        (GOOD_STORY.replace("river", "lake"), 1 / 3 / 2),
        (GOOD_STORY.replace("ball", "hat"), 2 / 3 / 2),
        (GOOD_STORY.replace("felt very", "very felt"), 2 / 3 / 2),
        ("The fox found a red ball. The fox went to the river. The fox felt very happy.", 2 / 3 / 2),
        (GOOD_STORY.replace("The fox", "The hen"), 0.0),
        ("The fox went to the river. The fox found a red ball.", 2 / 3 / 2),
        ("The fox went to the river. " * 3, 2 / 3 / 3 / 2),
        ("fox, river, ball", 0.0),
    ],
)
def test_correctness_of_a_story(answer: str, correctness: float) -> None:
    assert JUDGE.explain(STORY, answer)["correctness"] == pytest.approx(correctness)


# The judge: hacks and garbage

ALL_WORDS = " ".join(word for words in CLASSES.values() for word in words)
HACKS: dict[str, tuple[Callable[[Prompt], str], float]] = {
    "empty": (lambda _: "", 0.0),
    "blank": (lambda _: " \n\t ", 0.0),
    "punctuation": (lambda _: "...!?!. , ; .", 0.0),
    "one word": (lambda _: "The", 0.1),
    "one noun": (lambda prompt: (prompt.reference or "").split()[-1], 0.05),
    "all words": (lambda _: ALL_WORDS, 0.05),
    "all words in sentences": (lambda _: ". ".join(ALL_WORDS.split()), 0.1),
    "all places": (lambda _: " ".join(f"The fox went to the {place}." for place in CLASSES["place"]), 0.15),
    "the prompt": (lambda prompt: prompt.messages[-1].content, 0.1),
    "the prompt twice": (lambda prompt: prompt.messages[-1].content * 2, 0.1),
    "one story for all": (lambda _: GOOD_STORY, 0.35),
}


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_does_not_pay(hack: str) -> None:
    answer, most = HACKS[hack]
    assert mean([JUDGE.grade(prompt, answer(prompt)) for prompt in PROMPTS]) <= most


@pytest.mark.parametrize("task", tasks.TASKS)
def test_repeating_the_answer_does_not_pay(task: str) -> None:
    for prompt in of(task):
        answer = demonstrations.exemplary(prompt, 0)
        assert JUDGE.grade(prompt, f"{answer} {answer}") <= RAMBLING


def test_listing_every_place_is_no_answer() -> None:
    places = CLASSES["place"]
    assert JUDGE.grade(QUESTION, f"The fox went to the {' '.join(places)}.") == 0.0
    assert JUDGE.grade(QUESTION, " ".join(f"The fox went to the {place}." for place in places)) == 0.0
    assert JUDGE.grade(QUESTION, " ".join(places)) == 0.0


def test_garbage_is_scored_near_zero() -> None:
    rng = random.Random(9)
    letters = "abc THE .!?\n\t\0é語😀'\"0_"
    lumi = list(LUMI.values())
    scores = []
    for prompt in PROMPTS:
        scores.append(JUDGE.grade(prompt, "".join(rng.choices(letters, k=rng.randrange(200)))))
        scores.append(
            JUDGE.grade(prompt, " ".join(rng.choices(ALL_WORDS.split() + lumi, k=rng.randrange(40))))
        )
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert mean(scores) < 0.01


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Prompt(user("Hello"), "Hi", None), "task"),
        (Prompt(user("Hello"), "Hi", "poem"), "task"),
        (Prompt(user("Hello"), None, "story"), "reference"),
        (Prompt(user("Hello"), "dragon", "story"), "reference"),
        (Prompt(user("Hello"), "The sky is blue.", "question"), "reference"),
        (Prompt(user("Hello"), "Bonjour.", "translation"), "reference"),
        (Prompt(user("Hello"), "...", "translation"), "reference"),
    ],
)
def test_foreign_prompts_are_refused(prompt: Prompt, field: str) -> None:
    with pytest.raises(DataError, match=field):
        JUDGE.grade(prompt, "The fox went to the river.")
