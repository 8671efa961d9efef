"""System prompts rewritten by reflection: a good one wins, a bad one loses, and both stay within the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from test_judge import Server, text
from test_prompting import TINY, Counting, context
from triptych.cycle import plan
from triptych.data.files import write
from triptych.engine.endpoint import Endpoint
from triptych.engine.models import load_tokenizer, save
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scores
from triptych.errors import EndpointError, RecipeError
from triptych.evaluate import reflection
from triptych.evaluate.preamble import Attempt, Examinee, Preamble, read_preamble
from triptych.evaluate.prompting import PromptFound, Prompting, search_prompt
from triptych.evaluate.reflection import LONGEST, QUOTED, REPLY, Reflection, shown
from triptych.preflight.trial import try_rewards
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Check, Conversation, Message, Messages, Prompt, Rollout, user

PROMPTS = [Prompt(user(f"a cat saw {number} dogs")) for number in range(20)]
SAMPLING = Sampling(8, 0.0)
TOKENS = 8_000
WORDS = ("cat", "red", "saw a dog", "mat")
GOOD, BAD, EITHER = "z z z", "q q q", "x x x"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "prompts_validation.jsonl", PROMPTS)
    return folder


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A model that writes b; a where it reads a z; nothing where it reads a q.

    Every position attends to all before it alike, so that these letters reach the last one, whose token they decide.
    """
    folder, tokenizer = tmp_path_factory.mktemp("following"), load_tokenizer(policy_folder / "model")
    model = llama(tokenizer)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        (layer,) = model.model.layers
        model.model.embed_tokens.weight[:, 0] = 1
        for place, (letter, written, strength) in enumerate(
            (("z", token_of(tokenizer, "a"), 300.0), ("q", tokenizer.eos_token_id, 600.0)), start=1
        ):
            model.model.embed_tokens.weight[token_of(tokenizer, f" {letter}"), place] = 1
            model.model.embed_tokens.weight[token_of(tokenizer, letter), place] = 1
            layer.self_attn.v_proj.weight[place, place] = 1
            layer.self_attn.o_proj.weight[place + 2, place] = 1
            model.lm_head.weight[written, place + 2] = strength
        model.lm_head.weight[token_of(tokenizer, "b"), 0] = 1
    save(model, tokenizer, folder / "model")
    return folder


def token_of(tokenizer: Any, text: str) -> int:
    last: int = tokenizer.encode(text, add_special_tokens=False)[-1]
    return last


def llama(tokenizer: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16384, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def searched(
    folder: Path, policy: Path, data: Path, systems: tuple[str, ...], sources: dict[str, str | Path] | None = None,
    tokens: int = TOKENS, sampling: Sampling = SAMPLING, **reflecting: Any,
) -> PromptFound:
    config = Prompting(systems=systems, examples=(0,), tokens=tokens, reflection=Reflection.model_validate(reflecting))
    return search_prompt(context(folder), config, policy, data, Counting(), sampling, sources)


def at(server: Server, **more: Any) -> dict[str, Any]:
    return {"endpoint": Endpoint(url=server.url, model="m", retries=0, **more).model_dump()}


def replying(reply: str) -> Callable[[dict[str, Any]], tuple[int, dict[str, Any], dict[str, str]]]:
    return lambda body: (200, text(reply), {})


def test_a_rewritten_prompt_that_helps_is_found_and_one_that_harms_is_not(
    server: Server, following: Path, data: Path, tmp_path: Path
) -> None:
    server.reply = replying(f"It should name letters.\n```\n{GOOD}\n```")
    found = searched(tmp_path / "good", following, data, (EITHER, BAD), rewrites=4, **at(server))
    assert (found.system, found.reflected, found.headline) == (GOOD, True, f"“{GOOD}”")
    assert read_preamble(tmp_path / "good") == (Message("system", GOOD),)
    assert [row.name for row in found.tried if row.reflected] == [f"“{GOOD}”"]
    assert (found.rewrites, found.accepted, len(server.asked)) == (4, 1, 4)
    assert found.gain == pytest.approx(8.0)  # eight times a instead of eight times b
    server.reply = replying(f"```\n{BAD}\n```")
    found = searched(tmp_path / "bad", following, data, (EITHER,), rewrites=4, **at(server))
    assert (found.system, found.rewrites, found.accepted) == (None, 4, 0)  # nothing is better than the prompt alone
    assert not any(row.reflected for row in found.tried)


def test_what_chooses_is_not_what_was_reflected_on_and_no_answer_is_sampled_twice(
    server: Server, following: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Messages, str]] = []
    ask = Examinee.ask

    def watched(self: Examinee, preamble: Messages, prompts: Sequence[Prompt]) -> list[Attempt]:
        asked.extend((preamble, prompt.key) for prompt in prompts)
        return ask(self, preamble, prompts)

    monkeypatch.setattr(Examinee, "ask", watched)
    server.reply = replying(f"```\n{GOOD}\n```")
    found = searched(tmp_path / "a", following, data, (BAD,), rewrites=3, **at(server))
    assert len(asked) == len(set(asked))
    # The last candidate that is alive has answered all that choose, and nothing else there.
    reflected = {key for _, key in asked} & {prompt.key for prompt in PROMPTS[1::2]}
    chosen = [key for preamble, key in asked if preamble == () and key not in reflected]
    assert found.tried[0].prompts == len(chosen) == len(PROMPTS[::2])
    assert set(chosen) == {prompt.key for prompt in PROMPTS[::2]}
    question = server.asked[0]["messages"][0]["content"]
    assert server.asked[0]["max_tokens"] == reflection.THOUGHT
    held = [prompt for prompt in PROMPTS if f"\n{prompt.messages[0].content}\n" in question]
    assert len(held) == reflection.MINIBATCH
    assert {prompt.key for prompt in held} <= reflected


@pytest.mark.parametrize("tokens", [1000, 1250, 1600, 2000])
def test_no_more_is_sampled_than_the_budget_holds(
    tokens: int, server: Server, policy_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.reply = replying("so " * 400)  # as long as a reply may be, and longer
    spent: list[int] = []
    monkeypatch.setattr(reflection, "REPLY", 64)
    answer = Policy.write

    def counted(self: Policy, *args: Any, **kwargs: Any) -> list[list[Rollout]]:
        groups = answer(self, *args, **kwargs)
        spent.extend(len(rollout.tokens) for group in groups for rollout in group)
        return groups

    monkeypatch.setattr(Policy, "write", counted)
    sampling = Sampling(24, 1.0)
    found = searched(tmp_path / "a", policy_folder, data, (BAD,), tokens=tokens, sampling=sampling, **at(server))
    assert found.rewrites == len(server.asked) <= 20
    assert (found.rewrites > 0) == (tokens > 1000)
    assert found.sampled == sum(spent) + 64 * found.rewrites <= tokens
    assert all(len(row.name) < 300 for row in found.tried)


def test_the_same_seed_gives_the_same_and_what_was_replied_is_not_asked_again(
    server: Server, policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    words = iter(WORDS)
    server.reply = lambda body: (200, text(f"```\n{next(words)}\n```"), {})
    sampling = Sampling(8, 1.0)
    first = searched(tmp_path / "a", policy_folder, data, (BAD,), sampling=sampling, rewrites=4, **at(server))
    replied = (tmp_path / "a" / "reflections.jsonl").read_bytes()
    lines = replied.splitlines(keepends=True)
    assert len(lines) == first.rewrites == len(server.asked) == 4
    # A run that was killed: its folder is made anew, and of what it keeps besides the last line was cut.
    config = Prompting(
        systems=(BAD,), examples=(0,), tokens=TOKENS, reflection=Reflection.model_validate(at(server) | {"rewrites": 4})
    )
    again = replace(context(tmp_path / "b"), scratch=tmp_path / "c")
    again.scratch.mkdir()
    (again.scratch / "reflections.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    server.reply = replying(f"```\n{WORDS[3]}\n```")
    assert search_prompt(again, config, policy_folder, data, Counting(), sampling) == first
    assert len(server.asked) == 5
    assert (again.scratch / "reflections.jsonl").read_bytes() == replied
    assert (tmp_path / "a" / "prompt.json").read_bytes() == (tmp_path / "b" / "prompt.json").read_bytes()


def test_a_model_behind_an_address_that_does_not_reply_ends_the_search_at_once(
    server: Server, policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    server.reply = lambda body: (401, {"error": {"message": "no such key"}}, {})
    with pytest.raises(EndpointError, match="401 Unauthorized: no such key"):
        searched(tmp_path / "a", policy_folder, data, ("be",), **at(server))
    assert len(server.asked) == 1
    server.reply = lambda body: (200, {"choices": []}, {})
    with pytest.raises(EndpointError, match="replied no text"):
        searched(tmp_path / "b", policy_folder, data, ("be",), **at(server))


def test_replies_are_cut_and_steer_nothing(
    server: Server, policy_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()
    ask = Examinee.ask

    def watched(self: Examinee, preamble: Messages, prompts: Sequence[Prompt]) -> list[Attempt]:
        tried.update(turn.content for turn in preamble)
        return ask(self, preamble, prompts)

    monkeypatch.setattr(Examinee, "ask", watched)
    replies = iter(["<think>\nhm\n</think>\n\n\x1b[31mred\x07 ‮mat", "", "```\n```", "<think>", "dog " * 5000] * 9)
    server.reply = lambda body: (200, text(next(replies)), {})
    searched(tmp_path / "a", policy_folder, data, (BAD,), rewrites=5, **at(server))
    new = tried - {BAD}
    assert {"red mat", "<think>"} <= new
    (cut,) = new - {"red mat", "<think>"}
    assert set(cut.split()) <= {"dog", "do", "d"}
    assert len(load_tokenizer(policy_folder / "model").encode(cut)) <= REPLY + 1
    assert len(cut) <= LONGEST


def test_a_folder_or_the_model_itself_reflects(
    policy_folder: Path, following: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflection, "REPLY", 32)
    other = str(following / "model")
    runs = [
        searched(tmp_path / str(number), policy_folder, data, (BAD,), {other: other}, model=other, rewrites=3)
        for number in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].rewrites == 3
    itself = searched(tmp_path / "itself", following, data, (BAD,), rewrites=2)
    assert itself.rewrites == 2
    short = searched(tmp_path / "short", policy_folder, data, (BAD,))  # its context of 256 holds no question
    assert (short.rewrites, short.tried[0].prompts) == (0, len(PROMPTS))
    assert not any(row.reflected for row in short.tried)


@dataclass
class Failing:
    """A scorer that knows what its scores are made of."""

    name: str = "failing"
    identity: str = "failing"
    rows: list[Conversation] = field(default_factory=list)

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return self.details(conversations).totals

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        count = len(conversations)
        return Scores([0.25] * count, {"instructions": [0.5] * count, "other": [None] * count})


def test_the_reflecting_model_is_shown_what_went_wrong(policy_folder: Path) -> None:
    checks = (
        Check("length_constraints:number_words", {"relation": "at least", "num_words": 900}),
        Check("change_case:english_lowercase"),
    )
    prompt = Prompt(
        (Message("system", "own"), *user("Hello"), Message("assistant", "Yes?"), *user("Go on. " * 400)), "a reference",
        checks=checks,
    )
    row = shown(Attempt(Conversation(prompt, "all is small"), 0.25, {"instructions": 0.5}))
    assert row["Inputs"].startswith("Hello\n\n[assistant] Yes?\n\nGo on.")
    assert len(row["Inputs"]) == QUOTED + 2
    assert row["Generated Outputs"] == "all is small"
    assert row["Feedback"] == (
        "Score 0.25 (instructions 0.5).\nInstructions that it does not follow: length_constraints:number_words "
        "(relation: at least, num_words: 900).\nA right answer: a reference"
    )
    plain = shown(Attempt(Conversation(PROMPTS[0], ""), 1.0, {}))
    assert plain == {"Inputs": "a cat saw 0 dogs", "Generated Outputs": "(nothing)", "Feedback": "Score 1."}
    examinee = Examinee(Policy.open(policy_folder / "model"), Failing(), SAMPLING, Silent())
    (attempt,) = examinee.ask(Preamble("be kind", ()).messages, PROMPTS[:1])
    assert (attempt.score, attempt.parts) == (0.25, {"instructions": 0.5})
    assert examinee.sampled == examinee.written == examinee.length > 0


def test_settings_that_cannot_be_are_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*settings: str) -> str:
        with pytest.raises(RecipeError) as error:
            load(TINY, settings)
        return str(error.value)

    both = "{model: other, endpoint: {url: http://localhost/v1, model: m}}"
    assert "needs either a model or an endpoint" in refused(f"prompting={{reflection: {both}}}")
    assert "other: there is no such folder, and prompting.reflection.model names it" in refused(
        "prompting={reflection: {model: other}}"
    )
    assert "prompting.tokens must be at least 1200, for 50 prompts are tried" in refused(
        "prompting={systems: [a, b, c, d], examples: [1, 2, 3, 4, 5, 6, 7, 8, 9], tokens: 1100}"
    )
    assert "must be at least 1008, for 21 prompts are tried, and an answer may have 24 tokens (decoding.max_tokens); " \
        "the other half is for reflection; got 1000" in refused(
            "prompting={systems: [a, b, c, d], examples: [1, 2], tokens: 1000, reflection: {}}"
        )
    (tmp_path / "other").mkdir()
    recipe = load(TINY, [f"prompting={{reflection: {{model: {tmp_path / 'other'}}}}}"])
    (stage,) = [stage for stage in plan(recipe) if stage.name == "prompting/instruct"]
    assert stage.sources == {str(tmp_path / "other"): tmp_path / "other"}
    (stage,) = [
        stage for stage in plan(load(TINY, ["prompting={reflection: {}}"])) if stage.name == "prompting/instruct"
    ]
    assert stage.sources == {}
    monkeypatch.setattr(reflection, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"pip install 'triptych\[gepa\]'"):
        Reflection()


def test_check_asks_the_reflecting_model_once(server: Server, tmp_path: Path) -> None:
    endpoint = f"{{url: {server.url!r}, model: m}}"
    recipe = load(TINY, [f"prompting={{reflection: {{endpoint: {endpoint}}}}}"])
    server.reply = lambda body: (404, {"error": {"message": "no model m"}}, {})
    (finding,) = try_rewards(recipe, [], 0, {})
    assert (finding.where, finding.stops) == ("prompting.reflection.endpoint", True)
    assert "404 Not Found: no model m" in finding.what
    server.reply = replying("yes")
    assert (list(try_rewards(recipe, [], 0, {})), len(server.asked)) == ([], 2)
    (tmp_path / "other").mkdir()
    recipe = load(TINY, [f"prompting={{reflection: {{model: {tmp_path / 'other'}}}}}"])
    (finding,) = try_rewards(recipe, [], 0, {})
    assert (finding.where, finding.stops) == ("prompting.reflection.model", True)
