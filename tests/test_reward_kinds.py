"""The trained kinds: losses by hand, planted attributes found, one scale in one place, released folders alike."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from triptych.data.files import write
from triptych.data.folder import DataFolder
from triptych.engine.endpoint import Endpoint
from triptych.engine.models import load_reward, load_tokenizer, save
from triptych.engine.scoring import Facing, Output, RewardModel, Scale, Scores, compares, facing, log_odds, scored
from triptych.errors import DataError, ModelError, RewardError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Prompt, Rating, user
from triptych.reward.endpoint import EndpointJudge
from triptych.reward.ensemble import Ensemble, EnsembleReward, join
from triptych.reward.judge import JudgeReward, LanguageJudge, keep_judge
from triptych.reward.losses import bradley_terry, squared_error
from triptych.reward.mixture import Mixture, MixtureReward, Part, Weighted, mix
from triptych.reward.registry import open_reward
from triptych.reward.regression import RegressionReward, fitted_weights, train_regression
from triptych.reward.rules import Rules, RulesReward
from triptych.reward.training import PairwiseReward, train_reward, with_margins
from triptych.reward.trust import Trust

WORDS = ("cat", "dog", "mat")


def desk_at(folder: Path, seed: int = 1) -> StageContext:
    (folder / "output").mkdir(parents=True)
    return StageContext(folder / "output", folder, Silent(), seed, 60.0)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(user(f"say {index}")) for index in range(count)]


def test_the_squared_error_leaves_out_what_is_missing() -> None:
    nan = math.nan
    predicted = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]], requires_grad=True)
    errors = squared_error(predicted, torch.tensor([[0.0, 4.0], [1.0, nan], [nan, 1.0]]))
    assert errors.tolist() == [(1 + 4) / 2, 4.0, 0.0]
    errors.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[1.0, -2.0], [4.0, 0.0], [0.0, 0.0]]


def test_the_margin_is_that_of_the_data_or_of_the_votes() -> None:
    rows = [
        Comparison(prompts(1)[0], "a", "b", margin=0.3, votes_for_chosen=2, num_annotators=3),
        Comparison(prompts(1)[0], "a", "b", votes_for_chosen=3, num_annotators=3),
        Comparison(prompts(1)[0], "a", "b"),
    ]
    assert [row.margin for row in with_margins(rows, "data")] == [0.3, None, None]
    assert [row.margin for row in with_margins(rows, "none")] == [None, None, None]
    assert [row.margin for row in with_margins(rows, "votes")] == pytest.approx([1 / 3, 1.0, None])
    # A margin m asks for m more: the loss at a difference of d + m is that of d without one.
    with_margin = bradley_terry(torch.tensor([1.5]), torch.tensor([0.2]), torch.tensor([1 / 3]))
    assert with_margin.item() == pytest.approx(math.log1p(math.exp(-(1.3 - 1 / 3))), abs=1e-6)


def test_the_scale_is_written_and_read_and_one_formula() -> None:
    scale = Scale({"a": Output(2.0, 1.0, 0.5), "b": Output(-1.0, 3.0, 2.0)}, mean=1.0, deviation=4.0)
    config = SimpleNamespace(num_labels=2, id2label={0: "a", 1: "b"})
    scale.tell(config)
    config.reward_scale = json.loads(json.dumps(config.reward_scale))
    assert Scale.of(config) == scale
    outputs = torch.tensor([[1.0, -1.0]])
    assert scale.attributes(outputs).tolist() == [[1.5, 1.0]]
    assert scale.raw(outputs).tolist() == [2.0 * 1.5 - 1.0]
    assert scale.normalised(scale.raw(outputs)).tolist() == [0.25]
    config.reward_scale = {"mean": 0}
    with pytest.raises(ModelError, match="reward_scale"):
        Scale.of(config)


def test_a_classifiers_head_is_no_reward_unless_its_outputs_worth_is_said() -> None:
    config = SimpleNamespace(num_labels=2, id2label={0: "bad", 1: "good"})
    with pytest.raises(ModelError, match=r"the head has 2 outputs \(bad, good\)") as caught:
        Scale.of(config)
    suggested = json.loads(str(caught.value).partition("add ")[2])
    config.reward_scale = suggested["reward_scale"]
    assert Scale.of(config) == Scale({"bad": Output(), "good": Output()})
    assert Scale.of(SimpleNamespace(num_labels=1, id2label={0: "LABEL_0"})).log_odds


def test_fitted_weights_find_those_that_drew_the_labels() -> None:
    generator = torch.Generator().manual_seed(3)
    true = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    differences = torch.randn(6000, 3, generator=generator, dtype=torch.float64)
    preferred = torch.rand(6000, generator=generator, dtype=torch.float64) < torch.sigmoid(differences @ true)
    chosen_first = torch.where(preferred[:, None], differences, -differences)
    assert fitted_weights(chosen_first) == pytest.approx(true.tolist(), abs=0.1)  # 3 standard errors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers with a planted attribute each for "cat" and "dog"; comparisons prefer cats, twice as much as no dogs."""
    folder = tmp_path_factory.mktemp("data")
    draw = torch.Generator().manual_seed(5)

    def answer() -> tuple[str, int, int]:
        cat, dog = torch.randint(0, 2, (2,), generator=draw).tolist()
        return f"a {'cat' if cat else 'mat'} saw a {'dog' if dog else 'mat'}", cat, dog

    for share, count in (("train", 240), ("heldout", 20)):
        ratings: list[Rating] = []
        compared: list[Comparison] = []
        for prompt in prompts(count):
            prompt = Prompt(user(f"{'reward' if share == 'train' else share} {prompt.messages[0].content}"))
            (one, cat, dog), (two, other_cat, other_dog) = answer(), answer()
            scores = {"cats": 4.0 * cat, "dogs": 10.0 + dog}
            if len(ratings) % 3 == 0:
                del scores["dogs"]
            ratings.append(Rating(prompt, one, scores))
            value, other = 2 * cat - dog, 2 * other_cat - other_dog
            if value != other:
                chosen, rejected = (one, two) if value > other else (two, one)
                compared.append(Comparison(prompt, chosen, rejected))
        write(folder / f"ratings_{share}.jsonl", ratings)
        write(folder / f"comparisons_{share}.jsonl", compared)
    return folder


FAST: dict[str, Any] = {"epochs": 6, "batch_pairs": 8, "learning_rate": 3e-3}
CAT, DOG, NEITHER = "a cat saw a mat", "a mat saw a dog", "a mat saw a mat"


def rows(*answers: str) -> list[Conversation]:
    return [Conversation(Prompt(user("say it")), answer) for answer in answers]


@pytest.fixture(scope="module")
def regression(policy_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = desk_at(tmp_path_factory.mktemp("regression"))
    metrics = train_regression(context, RegressionReward(**FAST), policy_folder, data, data)
    assert metrics.weights_fitted_on >= 20
    return context.output


def test_regression_finds_planted_attributes_and_the_weights_that_people_give_them(regression: Path) -> None:
    scorer = open_reward(regression)
    found = scored(scorer, rows(CAT, DOG, NEITHER))
    assert found.parts["cats"] == pytest.approx([4, 0, 0], abs=0.8)  # in the units of the ratings
    assert found.parts["dogs"] == pytest.approx([10, 11, 10], abs=0.3)
    assert list(found.parts) == ["cats", "dogs", "preference"]
    cat, dog, neither = found.totals
    assert cat > neither > dog


def test_scores_have_mean_0_and_deviation_1_on_the_held_out_answers(regression: Path, data: Path) -> None:
    from triptych.reward.training import answers_of

    held = DataFolder(data)
    reference = answers_of(held.comparisons("heldout").read(), held.ratings("heldout").read())
    scores = torch.tensor(RewardModel(regression / "model").score(reference))
    assert scores.mean().item() == pytest.approx(0, abs=0.02)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=0.02)


def test_plain_transformers_gives_the_same_raw_scores(regression: Path) -> None:
    folder = regression / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert list(model.config.id2label.values()) == ["cats", "dogs", "preference"]
    start = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say it"}], add_generation_prompt=True, return_dict=False
    )
    end = tokenizer(CAT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        outputs = model(torch.tensor([[*start, *end, tokenizer.eos_token_id]])).logits[0]
    parts = zip(model.config.reward_scale["outputs"].values(), outputs.tolist(), strict=True)
    raw = sum(part["weight"] * (part["mean"] + part["deviation"] * z) for part, z in parts)
    assert RewardModel(folder, precise=True).raw(rows(CAT)) == pytest.approx([raw], abs=1e-4)
    scale = model.config.reward_scale
    score = (raw - scale["mean"]) / scale["deviation"]
    assert RewardModel(folder, precise=True).score(rows(CAT)) == pytest.approx([score], abs=1e-4)


def test_weights_are_what_the_recipe_says_and_unknown_ones_are_named(
    policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    config = RegressionReward(epochs=1, learning_rate=1e-2, weights={"cats": 0.5, "dogs": -1}, comparison_weight=0)
    context = desk_at(tmp_path / "given")
    train_regression(context, config, policy_folder, data)
    found = scored(open_reward(context.output), rows(CAT, DOG))
    scale = RewardModel(context.output / "model").scale
    by_hand = [0.5 * cats - dogs for cats, dogs in zip(*found.parts.values(), strict=True)]
    # In float32: attributes near 10 are scaled by a deviation below 1.
    assert found.totals == pytest.approx([(raw - scale.mean) / scale.deviation for raw in by_hand], abs=1e-3)
    with pytest.raises(RewardError, match=r"names charm; what is rated is cats, dogs"):
        train_regression(
            desk_at(tmp_path / "wrong"), config.model_copy(update={"weights": {"charm": 1}}), policy_folder, data
        )
    with pytest.raises(RewardError, match="too few to fit"):
        train_regression(desk_at(tmp_path / "few"), RegressionReward(), policy_folder, data)


def test_a_model_that_has_the_outputs_goes_on_from_its_head(regression: Path, data: Path, tmp_path: Path) -> None:
    context = desk_at(tmp_path)
    config = RegressionReward(**FAST | {"learning_rate": 1e-9})
    metrics = train_regression(context, config, regression, data, data)
    assert metrics.epochs == config.refresh_epochs
    before, after = (
        RewardModel(each / "model", precise=True).outputs(rows(CAT, DOG)) for each in (regression, context.output)
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def members(policy_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    config = EnsembleReward(members=2, epochs=1, batch_pairs=16, learning_rate=1e-2).member
    assert isinstance(config, PairwiseReward)
    folders = []
    for member in range(2):
        context = desk_at(tmp_path_factory.mktemp(f"member-{member}"))
        train_reward(context, config, policy_folder, data, member=member)
        folders.append(context.output)
    return folders


def test_an_ensemble_is_mean_less_deviation_of_its_members(members: list[Path], tmp_path: Path) -> None:
    context = desk_at(tmp_path)
    join(context, EnsembleReward(members=2, penalty=0.5), member_0=members[0], member_1=members[1])
    ensemble = open_reward(context.output)
    assert isinstance(ensemble, Ensemble)
    one, two = (RewardModel(member / "model").score(rows(CAT, DOG, NEITHER)) for member in members)
    assert one != two
    spread = [abs(a - b) / 2 for a, b in zip(one, two, strict=True)]
    assert ensemble.spread(rows(CAT, DOG, NEITHER)) == pytest.approx(spread, abs=1e-6)
    expected = [(a + b) / 2 - 0.5 * s for a, b, s in zip(one, two, spread, strict=True)]
    assert ensemble.score(rows(CAT, DOG, NEITHER)) == pytest.approx(expected, abs=1e-6)


def test_a_mixture_is_the_weighted_sum_of_its_parts_by_task(members: list[Path], tmp_path: Path) -> None:
    config = MixtureReward.model_validate({"parts": [
        {"name": "preference", "weight": 2.0, "reward": {}},
        {"name": "form", "weight": -1.0, "tasks": ["story"],
         "reward": {"kind": "rules", "rules": [{"rule": "length", "most": 4}]}},
    ]})
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "reward.json").write_text(json.dumps({"kind": "rules", "rules": [{"rule": "length", "most": 4}]}))
    context = desk_at(tmp_path)
    mix(context, config, preference=members[0], form=rules)
    mixture = open_reward(context.output)
    assert isinstance(mixture, Mixture)
    asked = [Conversation(Prompt(user("say it"), task="story"), CAT), *rows(DOG)]
    alone = RewardModel(members[0] / "model").score(asked)
    found = scored(mixture, asked)
    assert found.totals == pytest.approx([2 * alone[0] - 0.0, 2 * alone[1]], abs=1e-6)
    assert found.parts["form"] == [0.0, None]
    assert found.parts["form.length"] == [0.0, None]
    assert found.parts["preference"] == pytest.approx(alone)


def test_a_judge_is_asked_as_patiently_as_the_users_recipe_says(tmp_path: Path) -> None:
    def endpoint(**pace: Any) -> Endpoint:
        return Endpoint.model_validate({"url": "http://127.0.0.1:9/v1", "model": "m"} | pace)

    context, config = desk_at(tmp_path), JudgeReward(endpoint=endpoint(seconds=5), ask="score")
    keep_judge(context, config)
    trust = Trust.in_recipe([config])
    as_kept = open_reward(context.output, trust=trust)
    mine = open_reward(context.output, trust=trust, endpoints=[endpoint(seconds=600, parallel=2)])
    for scorer, seconds in ((as_kept, 5), (mine, 600)):
        assert isinstance(scorer, LanguageJudge)
        assert isinstance(scorer._judge, EndpointJudge)
        assert scorer._judge.config.seconds == seconds


def test_a_part_that_lacks_its_reference_is_passed_over_where_another_says_something() -> None:
    def rules(*names: str) -> Rules:
        return Rules(RulesReward.model_validate({"rules": [{"rule": name} for name in names]}), Path())

    row = Conversation(Prompt(user("say it")), "a cat")
    parts = [Weighted(Part(name="near", weight=1), rules("f1")), Weighted(Part(name="form", weight=1), rules("length"))]
    assert Mixture(parts).details([row]).parts == {"form": [1.0], "form.length": [1.0]}
    with pytest.raises(DataError, match="a rule compares answers with it"):
        Mixture(parts[:1]).score([row])
    with pytest.raises(DataError, match="a rule compares answers with it"):
        rules("f1", "instructions").score([row])
    assert rules("f1", "repetition").details([row]).parts == {"f1": [None], "repetition": [1.0]}


def test_two_judges_of_a_mixture_are_told_apart_by_their_models_names() -> None:
    def mixture(*models: str) -> dict[str, Any]:
        return {"parts": [{"name": f"p{i}", "weight": 1, "reward": {"kind": "judge", "model": model}}
                          for i, model in enumerate(models)]}

    MixtureReward.model_validate(mixture("facts/one", "style/two", "style/two"))
    with pytest.raises(ValueError, match="facts/model and style/model have the same last name"):
        MixtureReward.model_validate(mixture("facts/model", "style/model"))
    with pytest.raises(ValueError, match="policy and other/policy have the same last name"):
        MixtureReward.model_validate(mixture("policy", "other/policy"))


def test_a_mixtures_parts_that_score_no_prompt_are_left_out() -> None:
    class Constant:
        name = identity = "constant"

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            return [1.0] * len(conversations)

    parts = [Part(name="a", weight=3), Part(name="b", weight=1, tasks=("t",))]
    mixture = Mixture([Weighted(part, Constant()) for part in parts])
    assert mixture.details(rows(CAT)) == Scores([3.0], {"a": [1.0]})


def test_a_part_of_a_mixture_that_only_compares_is_given_something_to_compare_with() -> None:
    class Longer:
        name = identity = "longer"
        compares = True

        def facing(self, rivals: dict[str, str]) -> Facing:
            return Facing(self, rivals)

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            return [0.5 if row.prompt.reference is None else float(len(row.answer) > len(row.prompt.reference))
                    for row in conversations]

    rules = Rules(RulesReward.model_validate({"rules": [{"rule": "f1"}, {"rule": "length", "most": 2}]}), Path())
    mixture = Mixture([Weighted(Part(name="model", weight=2), Longer()), Weighted(Part(name="rules", weight=1), rules)])
    assert compares(mixture)
    short, long = (Conversation(Prompt(user("say it")), answer) for answer in ("a cat", "a red cat and a dog"))
    rivals: dict[str, str] = {}
    faced = facing(mixture, rivals)
    assert faced.score([short]) == [2 * 0 + 1]  # beside itself
    found = scored(faced, [long])
    assert found.totals == [2 * 1 + 0]
    assert found.parts["rules.f1"] == [None]  # the rival is no reference of a rule's
    assert facing(rules, rivals) is rules


def test_a_model_trained_elsewhere_is_opened_as_it_is(policy_folder: Path, tmp_path: Path) -> None:
    model = load_reward(policy_folder / "model", fresh=True, outputs=("LABEL_0",), seed=4)
    save(model, load_tokenizer(policy_folder / "model"), tmp_path)
    scorer = open_reward(tmp_path)
    assert isinstance(scorer, RewardModel)
    assert scorer.score(rows(CAT)) == scorer.raw(rows(CAT))
    assert scorer.scale == Scale({"LABEL_0": Output()}, log_odds=True)
    assert log_odds(scorer) == 1.0


def test_which_differences_of_scores_are_log_odds(
    regression: Path, members: list[Path], policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    from triptych.data.files import read_comparisons

    models = [RewardModel(member / "model") for member in members]
    assert [log_odds(model) for model in models] == [model.scale.deviation for model in models]
    assert log_odds(open_reward(regression)) is not None  # its weights are of a logistic regression on labels
    # A mean of the members' log-odds, in which a member counts for less the larger its own unit is.
    (a, b), (one, two) = (model.raw(rows(CAT, DOG)) for model in models), (model.scale.deviation for model in models)
    ensemble = Ensemble(models, penalty=0.0)
    first, second = ensemble.score(rows(CAT, DOG))
    unit = log_odds(ensemble)
    assert unit is not None
    (cat_a, dog_a), (cat_b, dog_b) = a, b
    weight = (1 / one) / (1 / one + 1 / two)
    assert unit * (first - second) == pytest.approx(weight * (cat_a - dog_a) + (1 - weight) * (cat_b - dog_b), rel=1e-4)
    assert log_odds(Ensemble(models, penalty=1.0)) is None
    assert log_odds(Mixture([Weighted(Part(name="a", weight=2), models[0])])) is None
    assert log_odds(Rules(RulesReward.model_validate({"rules": [{"rule": "length", "most": 4}]}), tmp_path)) is None

    given = desk_at(tmp_path / "given")
    weights = RegressionReward(epochs=1, weights={"cats": 1.0}, comparison_weight=0)
    train_regression(given, weights, policy_folder, data)
    assert log_odds(open_reward(given.output)) is None
    compared = read_comparisons(data / "comparisons_train.jsonl")[:16]
    write(tmp_path / "comparisons_train.jsonl", [dataclasses.replace(row, margin=1.0) for row in compared])
    margins: list[tuple[Literal["data", "none"], bool]] = [("data", False), ("none", True)]
    for margin, known in margins:
        context = desk_at(tmp_path / margin)
        train_reward(context, PairwiseReward(epochs=1, margin=margin), policy_folder, tmp_path)
        assert (log_odds(open_reward(context.output)) is not None) == known
        assert log_odds(Ensemble([models[0], RewardModel(context.output / "model")], penalty=0.0)) is None or known


def test_a_margin_moves_the_difference_away_from_the_log_odds() -> None:
    """At the minimum of the expected loss p σ(m − Δ) = (1 − p) σ(m + Δ); without a margin Δ = log p/(1 − p)."""
    p = 0.8
    differences = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    for margin, found in ((0.0, math.log(p / (1 - p))), (1.0, None)):
        m = torch.full_like(differences, margin)
        zero = torch.zeros_like(differences)
        expected = p * bradley_terry(differences, zero, m) + (1 - p) * bradley_terry(zero, differences, m)
        best = differences[expected.argmin()].item()
        sigma = [1 / (1 + math.exp(-(margin + sign * best))) for sign in (-1, 1)]
        assert p * sigma[0] == pytest.approx((1 - p) * sigma[1], abs=1e-4)
        assert best == pytest.approx(found, abs=1e-3) if found else best > math.log(p / (1 - p)) + 0.5


def test_a_folder_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text('{"kind": "magic"}')
    with pytest.raises(RewardError, match="magic"):
        open_reward(tmp_path)
    (tmp_path / "reward.json").write_text('{"kind": "rules", "rules": []}')
    with pytest.raises(RewardError, match="cannot be used"):
        open_reward(tmp_path)
