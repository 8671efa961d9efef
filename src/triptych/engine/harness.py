"""Our engine as a model of lm-evaluation-harness: what its tasks ask is computed packed, and written on the slots.

The harness has three questions: how likely a continuation is behind a context, how likely a whole text is, and what
the model writes up to a stop string. What it takes from an answer is what its own `hf` model gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from triptych.data.template import rendered
from triptych.engine import distributed
from triptych.engine.cache import slots_within
from triptych.engine.continuous import StreamedRequest
from triptych.engine.forward import by_answer, greedy_answers, pack_predicted, packs
from triptych.engine.packing import APPLIED
from triptych.engine.perplexity import separator
from triptych.engine.request import Completion
from triptych.engine.rollout import Policy, infer
from triptych.engine.sampling import DRAWING, NEUTRAL, Sampling
from triptych.errors import ModelError
from triptych.progress import Progress, Silent
from triptych.records import Message, Prompt

MAX_TOKENS = 256
"""Of an answer, where a task does not say, as the harness has it."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A policy as the harness sees a model.

    All ranks take part in each question, so that the harness sees one.

    Args:
        policy: computes and writes.
        seed: of what is sampled, where a task does not take the likeliest token.
        progress: told how far the work is.
    """

    def __init__(self, policy: Policy, seed: int = 0, progress: Progress | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.tokenizer = policy.tokenizer
        self.seed = seed
        self.progress = progress or Silent()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end: int = self.tokenizer.eos_token_id
        return end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return separator(self.tokenizer)

    @property
    def max_length(self) -> int:
        """The most tokens that the model sees at once."""
        length: int = resolve_max_length(self.policy.model.config, self.tokenizer)
        return length

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells one tokenizer's requests from another's."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as the chat template writes them.

        Args:
            add_generation_prompt: with what stands before an answer; without, the last turn is an answer that goes on.

        Raises:
            ModelError: there is no template, or it refuses the turns.
        """
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        turns = chat_history if add_generation_prompt else chat_history[:-1]
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]
        return rendered(self.tokenizer, messages, generation=True) + begun

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's tokens; a BOS is written before it where the tokenizer does so and the text has none."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        tokens: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)
        return tokens

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each continuation behind its context the log-probability, and whether greedy decoding writes it."""
        results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, one longer than the context in windows that do not overlap."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for place, text in enumerate(texts):
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = list(map(make_disjoint_window, cut))
            windows += [(None, *pair) for pair in pairs]
            owners += [place] * len(pairs)
        totals = [0.0] * len(texts)
        for place, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[place] += logprob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """For each context and continuation its log-probability, and whether it is what greedy decoding writes.

        Where both exceed the model's context the first tokens of the context are left out, as in the harness. What
        sequences begin with alike is computed once: a context for all its continuations, and examples that stand
        before every question for all of those.
        """
        room = self.max_length + 1  # the last token is only predicted
        sequences = []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise ModelError(
                    f"a continuation of {len(continuation)} tokens exceeds the model's context of {self.max_length}"
                )
            before = context or [self.prefix_token_id]
            sequences.append(((before + continuation)[-room:], len(continuation)))
        asked = [place for place, (_, count) in enumerate(sequences) if count]  # nothing is sure to come of nothing
        order = sorted(asked, key=lambda place: sequences[place][0])
        batches = distributed.micro_batches(_new_tokens([sequences[place][0] for place in order]), APPLIED)
        model, done = self.policy.model, 0

        def answers(batch: Sequence[int]) -> list[tuple[int, float, bool]]:
            nonlocal done
            places = [order[i] for i in batch]
            packed = pack_predicted([sequences[place] for place in places], model.device)
            logprobs, greedy = greedy_answers(model, packed)
            missed = by_answer((~greedy).float(), packed)
            done += len(batch)
            self.progress.step(min(done, len(order)), len(order), "requests", done)
            totals = by_answer(logprobs.double(), packed)
            return [(place, total, not misses)
                    for place, total, misses in zip(places, totals.tolist(), missed.tolist(), strict=True)]

        results = [(0.0, True)] * len(requests)
        for batch in infer(model, answers, batches):
            for place, total, sure in batch:
                results[place] = (total, sure)
        for request, result in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of the request's stop strings.

        Where context and answer exceed the model's context the first tokens of the context are left out, as in the
        harness.

        Raises:
            ModelError: a task asks for a longer answer than the model's context, or for a way of decoding that is not
                known here.
        """
        asked = [self._asked(number, *request.args) for number, request in enumerate(requests)]
        written = self._decode if packs(self.policy.model) else self._write
        texts = [
            postprocess_generated_text(text, stop=one.stops, think_end_token=None)
            for text, one in zip(written(asked), asked, strict=True)
        ]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _asked(self, number: int, context: str, settings: dict[str, Any]) -> _Posed:
        """A request, with what of the context fits before an answer."""
        sampling, until = drawn_by(settings)
        stops = handle_stop_sequences(until, self.tokenizer.decode(self.eot_token_id))
        room = self.max_length - sampling.max_tokens
        if room <= 0:
            raise ModelError(
                f"a task asks for answers of {sampling.max_tokens} tokens, which leave no room for a question in the "
                f"model's context of {self.max_length}; a task's YAML file says how many, as generation_kwargs: "
                "max_gen_toks"
            )
        tokens = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        return _Posed(number, tokens, [stop for stop in stops if stop], replace(sampling, seed=self.seed))

    def _decode(self, asked: Sequence[_Posed]) -> list[str]:
        """What the model writes to each request, all decoded together; each ends soon behind its stop string."""
        mine = distributed.shard(asked)
        answers = [
            StreamedRequest(number=one.number, prompt=one.tokens, sampling=one.sampling, ends=self.policy.ends)
            for one in mine
        ]
        stops = {id(answer): one.stops for answer, one in zip(answers, mine, strict=True)}
        if answers:
            longest = max(len(one.tokens) + one.sampling.max_tokens for one in mine)
            slots = min(len(answers), slots_within(self.policy.model, longest))
            batch = self.policy.batch(longest, slots)
            for answer in answers:
                batch.add(answer)
            sampled = 0
            while batch.unfinished:
                grown = batch.step()
                sampled += len(grown)
                for answer in grown:
                    answer.cancelled = self._stopped(answer.completion.tokens, stops[id(answer)])
                waiting = len(batch.waiting) + sum(not answer.over for answer in batch.running)
                self.progress.step(len(answers) - waiting, len(answers), "tokens", sampled)
        return distributed.all_gather([self._text(answer.completion) for answer in answers])

    def _stopped(self, tokens: Sequence[int], stops: Sequence[str]) -> bool:
        """Whether the last token ends a stop string: each of a text's tokens has a byte of it at least."""
        last = {len(stop.encode()) + 1 for stop in stops}
        text: str = self.tokenizer.decode(tokens[-max(last, default=1) :])
        return any(stop in text for stop in stops)

    def _text(self, completion: Completion) -> str:
        tokens = completion.tokens[:-1] if completion.finished else completion.tokens
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _write(self, asked: Sequence[_Posed]) -> list[str]:
        """The same by a model that does not decode in slots: to the end, requests of one way of decoding together."""
        texts = [""] * len(asked)
        for sampling in dict.fromkeys(one.sampling for one in asked):
            alike = [one for one in asked if one.sampling == sampling]
            contexts = {Prompt.of(str(one.number)): one.tokens for one in alike}
            written = self.policy.write(
                list(contexts), sampling, render=contexts.__getitem__, progress=self.progress
            )
            for one, (rollout,) in zip(alike, written, strict=True):
                texts[one.number] = rollout.answer
        return texts


@dataclass(frozen=True, slots=True)
class _Posed:
    """A request to write: its place among all, the context's tokens, where to stop, how to draw."""

    number: int
    tokens: list[int]
    stops: list[str]
    sampling: Sampling


def drawn_by(settings: dict[str, Any]) -> tuple[Sampling, Any]:
    """How answers are drawn by a task's `generation_kwargs`, and its stop strings as the task names them.

    Raises:
        ModelError: it asks for a way that is not known here.
    """
    rest: dict[str, Any] = dict(normalize_gen_kwargs(settings, MAX_TOKENS))
    drawn, max_tokens, until = rest.pop("do_sample"), rest.pop("max_gen_toks"), rest.pop("until")
    temperature = float(rest.pop("temperature", 1.0))
    temperature = temperature if drawn else 0.0
    top_p = float(rest.pop("top_p", None) or 1.0)
    for name, value in rest.items():
        if value not in NEUTRAL.get(name, ()) and (temperature or name not in DRAWING):
            raise ModelError(
                f"a task asks for {name}: {value!r} in its generation_kwargs; here answers are drawn by "
                "temperature and top_p alone"
            )
    return Sampling(max_tokens, temperature, top_p), until


def _new_tokens(rows: Sequence[Sequence[int]]) -> Iterator[int]:
    """Of sorted rows how many tokens of each the one before does not begin with."""
    before: Sequence[int] = ()
    for row in rows:
        pairs = enumerate(zip(row, before, strict=False))
        yield len(row) - next((place for place, (one, other) in pairs if one != other), min(len(row), len(before)))
        before = row
