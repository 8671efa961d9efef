from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from conftest import FAMILIES, logprobs_alone, some_tokens, tiny, with_our_attention
from triptych.base.tokenizer import train_tokenizer
from triptych.cli import app
from triptych.engine.forward import by_answer, greedy_answers, pack_predicted
from triptych.engine.harness import HarnessModel
from triptych.engine.models import load_policy, save
from triptych.engine.packing import Segment, branched
from triptych.engine.rollout import Policy
from triptych.errors import DataError, ModelError, RecipeError
from triptych.evaluate.benchmarks import HarnessTasks
from triptych.progress import Silent
from triptych.records import Document

pytestmark = pytest.mark.usefixtures("float32")

LONG = "a cat and a dog " * 60
CONTEXTS = ("a small cat sat on", "a small cat sat on a", "a red mat and ", "", LONG, LONG + "sat")
CONTINUATIONS = (" a dog", " mat", "m", " red mat and saw a small dog", "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a context of 256 tokens, which is sure enough of what it writes to differ by context."""
    tokenizer = train_tokenizer([Document("a small cat sat on a red mat and saw a dog")] * 3, 300, 256)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))
    path = tmp_path_factory.mktemp("model")
    save(model, tokenizer, path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> HarnessModel:
    return HarnessModel(Policy.open(folder))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The harness's own model. Its cache of logits is off: it mixes up continuations that begin at different places."""
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, logits_cache=False)


def asked(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_of_a_pack_are_computed_as_each_sequence_alone(family: str) -> None:
    model = tiny(family)
    shared, other = some_tokens(20, 1), some_tokens(5, 2)
    sequences = sorted([
        ([*shared, 5, 6], 2), ([*shared, 5], 1), ([*shared, 7], 1), ([*shared, *other, 9, 8, 7], 3), (shared[:3], 2),
        (shared[:12] + other, 5), ([*shared, 5], 3), (other + shared, 24),
    ])
    packed = pack_predicted(sequences, "cpu")
    logprobs, greedy = greedy_answers(with_our_attention(model), packed)
    alone = [logprobs_alone(model, tokens[:-count], tokens[-count:]) for tokens, count in sequences]
    torch.testing.assert_close(logprobs.double(), torch.cat(alone).detach(), rtol=0, atol=2e-5)
    likeliest = [model(torch.tensor([tokens])).logits[0].argmax(-1)[-count - 1 : -1] for tokens, count in sequences]
    assert greedy.tolist() == (torch.cat(likeliest) == packed.predictions.targets).tolist()
    torch.testing.assert_close(by_answer(logprobs, packed), torch.stack([one.sum() for one in alone]).float().detach())


def test_what_sequences_begin_with_alike_is_one_segment() -> None:
    stem, branch = list(range(10)), list(range(20, 29))
    rows = [stem[:4], stem, [*stem, 11], [*stem, 12, 13], [*stem, *branch, 1], [*stem, *branch, 2], [90]]
    segments, last = branched(sorted([*rows, [90]]))
    assert segments == [
        Segment(stem[:4]), Segment(stem), Segment([11], 1), Segment([12, 13], 1), Segment(branch, 1), Segment([1], 4),
        Segment([2], 4), Segment([90]),
    ]
    assert last == [0, 1, 2, 3, 5, 6, 7, 7]
    assert len(branched([stem, stem, stem])[0]) == 1  # answers of one token to a prompt need no segments


def test_continuations_are_as_likely_as_by_transformers(ours: HarnessModel, theirs: Any) -> None:
    pairs = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]
    mine = ours.loglikelihood(asked("loglikelihood", *pairs))
    expected = theirs.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in expected]


def test_a_continuation_is_greedy_where_every_token_is(ours: HarnessModel, theirs: Any) -> None:
    requests: list[tuple[Any, list[int], list[int]]] = []
    for context in (ours.tok_encode(text) for text in CONTEXTS if text):
        tokens = context[-200:]
        for _ in range(4):
            logits = theirs.model(torch.tensor([tokens])).logits[0, -1]
            tokens = [*tokens, int(logits.argmax())]
            requests.append((None, context, tokens[len(context[-200:]) :]))
        requests.append((None, context, [*tokens[len(context[-200:]) : -1], (tokens[-1] + 1) % 250]))
    requests = [request for request in requests if len(request[1]) <= 200]
    mine = ours._loglikelihood_tokens(requests)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in expected] == [True, True, True, True, False] * 3
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_nothing_is_sure_to_continue_and_too_much_is_refused(ours: HarnessModel) -> None:
    assert ours._loglikelihood_tokens([(None, [5], [])]) == [(0.0, True)]
    with pytest.raises(ModelError, match="a continuation of 257 tokens exceeds the model's context of 256"):
        ours._loglikelihood_tokens([(None, [5], [6] * 257)])


def test_whole_texts_are_as_likely_as_by_transformers(ours: HarnessModel, theirs: Any) -> None:
    texts = [("a small cat",), (LONG,), (LONG * 3 + "saw",), ("",), ("dog",)]
    mine = ours.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    expected = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert mine == pytest.approx(expected, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("settings", [
    {"until": ["on", "dog", "never"], "max_gen_toks": 40, "do_sample": False, "temperature": 0.0},
    {"until": "J", "max_new_tokens": 30},
    {"until": [], "max_gen_toks": 60, "top_p": 0.9, "top_k": 3},
])
def test_the_same_is_written_as_by_transformers(ours: HarnessModel, theirs: Any, settings: dict[str, Any]) -> None:
    def answers(model: Any) -> list[str]:
        contexts = [(context, json.loads(json.dumps(settings))) for context in CONTEXTS if context]
        written: list[str] = model.generate_until(asked("generate_until", *contexts), disable_tqdm=True)
        return written

    mine = answers(ours)
    assert mine == answers(theirs)
    assert len(set(mine)) > 2
    assert not any(stop in text for stop in settings["until"] for text in mine)


class Sampled(Silent):
    """How many tokens were sampled."""

    tokens = 0

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        self.tokens = seen


def test_an_answer_ends_soon_behind_its_stop_string(ours: HarnessModel) -> None:
    plain = {"until": [], "max_gen_toks": 60}
    (whole,) = ours.generate_until(asked("generate_until", (CONTEXTS[0], plain)))
    stop = whole[12:14]
    sampled = Sampled()
    stopping = HarnessModel(ours.policy, progress=sampled)
    (text,) = stopping.generate_until(asked("generate_until", (CONTEXTS[0], plain | {"until": ["never", stop]})))
    assert text == whole[: whole.index(stop)]
    assert sampled.tokens < 20


def test_a_model_that_does_not_pack_writes_the_same(folder: Path, ours: HarnessModel) -> None:
    padded = HarnessModel(Policy(load_policy(folder), ours.tokenizer))
    requests = [(context, {"until": ["on"], "max_gen_toks": 20}) for context in CONTEXTS]
    assert padded.generate_until(asked("generate_until", *requests)) == ours.generate_until(
        asked("generate_until", *requests)
    )


def test_drawn_answers_belong_to_their_seed(folder: Path, ours: HarnessModel) -> None:
    requests = [(CONTEXTS[0], {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5})] * 4
    drawn = ours.generate_until(asked("generate_until", *requests))
    assert drawn == ours.generate_until(asked("generate_until", *requests))
    assert len(set(drawn)) == 4
    assert drawn != HarnessModel(ours.policy, seed=1).generate_until(asked("generate_until", *requests))


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_beams": 4}, "a task asks for num_beams: 4 in its generation_kwargs"),
    ({"do_sample": True, "temperature": 0.7, "top_k": 50}, "a task asks for top_k: 50"),
    ({"max_gen_toks": 256}, "answers of 256 tokens, which leave no room for a question in the model's context of 256"),
])
def test_what_a_task_asks_and_cannot_have_is_named(
    ours: HarnessModel, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        ours.generate_until(asked("generate_until", ("a cat", {"until": [], "max_gen_toks": 8} | settings)))


def test_the_chat_template_is_applied_as_by_transformers(ours: HarnessModel, theirs: Any) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a cat"}]
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    begun = [*turns, {"role": "assistant", "content": "It sat"}]
    assert ours.apply_chat_template(begun, add_generation_prompt=False) == theirs.apply_chat_template(
        begun, add_generation_prompt=False
    )
    assert ours.tokenizer_name == theirs.tokenizer_name
    assert ours.chat_template(True) == theirs.chat_template(True)


WORDS = ("a", "red", "small", "big", "mat", "dog", "saw")
TASKS: dict[str, tuple[str, Sequence[dict[str, Any]]]] = {
    "choosing": (
        """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
num_fewshot: 2
fewshot_config: {sampler: first_n}
fewshot_split: test
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
        [{"question": f"a small cat sat on {word}", "choices": ["a mat", "red", "a dog saw", "on"], "answer": place % 4}
         for place, word in enumerate(WORDS)],
    ),
    "reading": (
        """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
        [{"text": "a small cat sat on a red mat and saw a dog " * count} for count in (1, 3, 30)],
    ),
    "writing": (
        """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["on", "J"], max_gen_toks: 24, do_sample: false}
metric_list:
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
        [{"question": f"a {word} cat", "answer": "on on on on"} for word in WORDS],
    ),
}


def write_task(folder: Path, name: str, *, data: str = "", more: str = "") -> str:
    settings, rows = TASKS[name]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = data or f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}"
    path = folder / f"{name}.yaml"
    path.write_text(f"task: {name}\n{data}\ntest_split: test\n{settings}{more}", encoding="utf-8")
    return str(path)


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tasks are written; what `datasets` keeps lies there too."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.parametrize("chat", [True, False])
def test_tasks_have_the_scores_that_the_harness_gives_transformers(
    data_folder: Path, ours: HarnessModel, theirs: Any, chat: bool
) -> None:
    benchmarks = HarnessTasks([write_task(data_folder, name) for name in TASKS])
    scores = {score.name: score for score in benchmarks.measure(ours.policy, chat_template=chat)}
    settings = {"bootstrap_iters": 0, "apply_chat_template": chat, "fewshot_as_multiturn": True}
    expected = evaluate(theirs, benchmarks.tasks, **settings)
    assert expected is not None
    assert set(scores) == {
        "choosing/acc", "choosing/acc_norm", "reading/word_perplexity", "reading/bits_per_byte", "writing/bleu",
        "writing/exact_match",
    }
    for name, score in scores.items():
        assert score.value == pytest.approx(expected["results"][score.task][f"{score.metric},none"], rel=1e-5), name
        assert score.documents == len(TASKS[score.task][1])
        assert score.interval is not None
        assert score.interval[0] <= score.value <= score.interval[1]
    rows = expected["samples"]["choosing"]
    assert list(scores["choosing/acc"].values) == [row["acc"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    assert scores["reading/bits_per_byte"].values == ()
    assert not scores["reading/bits_per_byte"].higher_is_better


def test_the_command_measures_tasks_of_ones_own(data_folder: Path, folder: Path) -> None:
    output = data_folder / "scores.json"
    tasks = ["--tasks", write_task(data_folder, "choosing"), "--limit", "5", "--no-chat-template"]
    result = CliRunner().invoke(app, ["evaluate", str(folder), *tasks, "--output", str(output)])
    assert result.exit_code == 0, result.output
    numbers = json.loads(output.read_text(encoding="utf-8"))
    assert set(numbers) == {
        f"choosing/{metric}{what}" for metric in ("acc", "acc_norm")
        for what in ("", "/interval", "/stderr", "/documents")
    }
    assert numbers["choosing/acc_norm/documents"] == 5
    low, high = numbers["choosing/acc_norm/interval"]
    assert low <= numbers["choosing/acc_norm"] <= high
    assert "choosing/acc_norm/stderr" in result.output


def nowhere(folder: Path) -> str:
    return write_task(folder, "reading", data="dataset_path: nobody/nothing")


@pytest.mark.parametrize(("named", "kind", "message"), [
    (lambda folder: str(folder / "none.yaml"), RecipeError, "none.yaml: there is no such file"),
    (nowhere, DataError, "its dataset nobody/nothing cannot be had: .*; a task of your own is a YAML file with "),
    (lambda folder: write_task(folder, "reading", more="doc_to_image: x\n"), RecipeError, "asks about pictures"),
    (lambda folder: write_task(folder, "writing", more="unsafe_code: true\n"), RecipeError, "runs what the model wri"),
    (lambda folder: write_task(folder, "writing", more="output_type: guess\n"), RecipeError, "guess"),
    (lambda folder: write_task(folder, "writing", more="  - nothing: [\n"), RecipeError, "is no task of lm-evaluation"),
])
def test_a_task_that_cannot_be_measured_is_named(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, named: Callable[[Path], str], kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(kind, match=message):
        HarnessTasks([named(data_folder)])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RecipeError, match=r"pip install 'triptych\[harness\]'"):
        HarnessTasks(["gsm8k"])
