"""The only module that applies a chat template.

A conversation's tokens are those of its whole rendering, never of pieces joined. What the prompt's rendering, with the
generation prompt at its end, begins in the same way is the prompt; the rest, to the end token, is the answer. With the
ChatML template that reads ::

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n  |  Hi!<|im_end|>

A token that holds the end of the one and the beginning of the other, as " Hi" where a template writes a blank before an
answer, is the answer's. What a template writes after the end token (a line break, in many models' ChatML) belongs to
the turn that follows, which a model is never asked to write.

A reward model sees `scored_tokens`: everything that the template writes of the whole conversation. Its score is read at
the last of these tokens, in training as by every tool that renders a conversation and scores it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from triptych.data.conventions import Conventions, conventions
from triptych.data.rendering import RenderingError, Result, limit_chat_templates, limited, variables
from triptych.display import one_line
from triptych.errors import ModelError
from triptych.records import Conversation, Message, Messages, Prompt, split_reasoning, user
from triptych.storage import IrregularFile, open_regular

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, its line break before a turn and not behind it: a conversation ends with its end token.

The marks say which tokens are an assistant's (`return_assistant_tokens_mask`, TRL's `assistant_only_loss`).
"""

CLOCK = "strftime_now"
"""The function by which a template asks for the date."""

Argument = bool | int | float | str
"""A value of a chat template's argument."""

_SET_TEMPLATE = "set `base.chat_template: chatml`, or the path of a .jinja file, in the recipe"

_QUESTION = Prompt.of("triptych question")
_ANSWERS = ("Triptych answer", "0 answers of it")
"""Two that have no token in common, neither at the beginning nor at the end."""
_ANSWERED = (*_QUESTION.messages, Message("assistant", _ANSWERS[0]))


def attach(
    tokenizer: PreTrainedTokenizerBase, template: str | None, arguments: Mapping[str, Argument] | None = None, *,
    tokens: Sequence[str] = (), reasoning: bool = False, clock: Callable[[], datetime] = datetime.now,
) -> list[str]:
    """Gives the tokenizer its chat template and makes the token that ends a turn its EOS.

    Tools that load the released folder stop at EOS, so it has to be the token that the template puts
    after an answer. With `chatml` the two turn tokens are added where the vocabulary lacks them, and
    the model's embeddings must then grow to `len(tokenizer)`.

    Other tools write the generation prompt before an answer is sampled. Where a template writes something else before
    answers that are there already, such as an empty place for reasoning, its generation prompt is made the same.

    Args:
        tokenizer: changed in place.
        template: `chatml`, the path of a `.jinja` file, a template's text, or None to keep its own.
        arguments: of the template, by name; they become its defaults.
        tokens: those that are tokens in the texts of messages too, where others that the template writes are text.
        reasoning: the answers begin with reasoning, so that the generation prompt is left as it is.
        clock: gives the date that a template with a date keeps from now on.

    Returns:
        A sentence for each thing changed besides the template.

    Raises:
        ModelError: the template has no such argument, or does not write a question and its answer; the tokenizer has
            no such token, or it is special.
    """
    changes: list[str] = []
    if template is not None:
        tokenizer.chat_template = _template_text(template)
    if tokenizer.chat_template == CHATML:
        vocabulary = tokenizer.get_vocab()
        new = [token for token in (TURN_START, TURN_END) if token not in vocabulary]
        if new:
            tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
            changes.append(f"added {' and '.join(new)} to the vocabulary, which the ChatML template needs")
        if tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
            tokenizer.chat_template = "{{ bos_token }}" + CHATML
            changes.append(f"the template begins with {tokenizer.bos_token}, which the tokenizer puts before a text")
    if tokenizer.chat_template is None:
        return changes
    if CLOCK in str(tokenizer.chat_template):
        now = clock()
        tokenizer.chat_template = _frozen(tokenizer.chat_template, now)
        _check_clock(tokenizer)
        changes.append(f"the chat template writes the date, which from now on is that of this run, {now:%Y-%m-%d}")
    for name, value in (arguments or {}).items():
        known = _applied(tokenizer, partial(variables, tokenizer.chat_template), "cannot be applied")
        if name not in known:
            near = f"; it takes {', '.join(sorted(known))}" if known else ""
            raise ModelError(f"{_place(tokenizer)}the chat template has no argument {name!r}{near}")
        tokenizer.chat_template = _with_default(tokenizer.chat_template, name, value)
        changes.append(f"the chat template's {name} is {value!r} by default")
    if tokens:
        _admit(tokenizer, tokens)
    end = _end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        changes.append(
            f"EOS is now {end}, which the chat template puts after an answer; was {tokenizer.eos_token}"
        )
        tokenizer.eos_token = end
    if not reasoning:
        changes += _settle(tokenizer, set(arguments or {}))
    return changes


def _admit(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Has some tokens be tokens in messages too; transformers keeps which others may not be."""
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    for name in tokens:
        if name not in added:
            raise ModelError(f"{_place(tokenizer)}the tokenizer has no token {name!r} that could stand in a message")
        if added[name].special:
            raise ModelError(
                f"{_place(tokenizer)}{name!r} is a special token, which only the chat template may write; give "
                "reasoning as reasoning_content, and calls as tool_calls"
            )
    tokenizer.chat_control_tokens = sorted(
        name for name, token in added.items()
        if not token.special and not name.isspace() and name in tokenizer.chat_template and name not in tokens
    )


def _settle(tokenizer: PreTrainedTokenizerBase, given: set[str]) -> list[str]:
    """Makes the generation prompt what the template writes before an answer; says how.

    A switch of the template's own does it where there is one (`enable_thinking`); the text is changed for the rest.

    Args:
        given: names of arguments that have a value already.
    """
    whole = rendered(tokenizer, _ANSWERED)
    wanted = whole[: whole.rindex(_ANSWERS[0])]

    def lacking() -> str | None:
        """What the generation prompt lacks; None where it is something else."""
        written = rendered(tokenizer, _QUESTION.messages, generation=True)
        if _known(tokenizer).settled or _known(tokenizer).cut_anew:
            return ""
        return wanted[len(written) :] if wanted.startswith(written) else None

    def tried(template: str) -> str | None:
        """The same with another template that writes answers as this one does."""
        tokenizer.chat_template = template
        with suppress(ModelError):
            if rendered(tokenizer, _ANSWERED) == whole:
                return lacking()
        return None

    changes: list[str] = []
    original, lack = tokenizer.chat_template, lacking()
    if lack == "":
        return changes
    best = original
    for name in sorted(variables(original) - given):
        switched = _with_default(original, name, False)
        still = tried(switched)
        if still is not None and (lack is None or len(still) < len(lack)):
            best, lack = switched, still
            changes = [f"the chat template's {name} is False by default, for no answer begins with reasoning"]
    tokenizer.chat_template = best
    if lack == "":
        return changes
    written = rendered(tokenizer, _QUESTION.messages, generation=True)
    for end in (wanted, wanted.rstrip()):  # a blank may be a part of the answer's first token
        kept = _shared([written, end])
        if tried(_with_opening(best, len(written) - kept, end[kept:])) == "":
            what = f"the generation prompt now ends with {end[-40:]!r} and not with {written[-40:]!r}"
            return [*changes, f"{what}, as the chat template writes it before an answer"]
    tokenizer.chat_template = original
    raise ModelError(
        f"{_place(tokenizer)}the chat template writes {wanted!r} before an answer, and the generation prompt is "
        f"{written!r}; {_SET_TEMPLATE}"
    )


def _with_default(template: str, name: str, value: Argument) -> str:
    """The template with an argument that has this value unless it is given another."""
    return f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} %}}{template}"


def _with_opening(template: str, cut: int, addition: str) -> str:
    """The template whose generation prompt lacks its last characters and ends with others."""
    if cut == 0:
        return f"{template.rstrip()}{{%- if add_generation_prompt %}}{{{{ {_literal(addition)} }}}}{{% endif %}}"
    return (
        f"{{%- if add_generation_prompt %}}{{% set opening %}}{template}{{% endset %}}"
        f"{{{{ opening[:-{cut}] + {_literal(addition)} }}}}{{% else %}}{template}{{% endif %}}"
    )


def _literal(value: Argument) -> str:
    """The value as Jinja writes it."""
    return json.dumps(value)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The prompt as the model sees it, up to and including the generation prompt.

    Special tokens come from the template alone, so that there is no second BOS; the text of a special
    token inside a message stays text, so that a message cannot forge a turn.
    """
    return _tokens(tokenizer, prompt.messages, prompt.tools, generation=True)


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str | Message]
) -> tuple[list[int], list[list[int]]]:
    """A prompt and answers to it as a policy learns them: each answer to its end token.

    What the template itself writes before an answer, such as an empty place for reasoning, belongs to the prompt.

    Returns:
        The prompt's tokens, as far as they are those of every answer, and what follows of each conversation.
    """
    opening, shared, whole = _compared(tokenizer, prompt, answers)
    answered = [_ended(tokenizer, tokens[shared:]) for tokens in whole]
    if _known(tokenizer).cut_anew and shared == len(opening):
        return prompt_tokens(tokenizer, prompt), answered  # a policy continues these
    return opening[:shared], answered


def scored_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str | Message]
) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers as a reward model sees them: with whatever the template writes behind an answer.

    Returns:
        What all begin with, as far as the prompt goes, and what follows of each conversation: one token at least, the
        last of which a score is read at.
    """
    opening, shared, whole = _compared(tokenizer, prompt, answers)
    return opening[:shared], [tokens[shared:] for tokens in whole]


def _compared(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str | Message]
) -> tuple[list[int], int, list[list[int]]]:
    """What stands before an answer, how many tokens of it each whole conversation begins with, and these."""
    turns = [Message("assistant", answer) if isinstance(answer, str) else answer for answer in answers]
    whole = [_tokens(tokenizer, (*prompt.messages, turn), prompt.tools) for turn in turns]
    reasoned = any(split_reasoning(turn.content)[0] is not None for turn in turns)
    opening = prompt_tokens(tokenizer, prompt) if reasoned else opening_tokens(tokenizer, prompt)
    return opening, _shared([opening, *(tokens[:-1] for tokens in whole)]), whole


def opening_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The prompt as it stands before an answer that does not begin with reasoning."""
    return prompt_tokens(tokenizer, prompt) if _known(tokenizer).settled else _opening(tokenizer, prompt)


def _opening(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """What the template writes before any answer: what two have in common that differ from the first letter on.

    A blank at its end is left to the answer, of whose first word most tokenizers make it a part.
    """
    one, other = (
        _tokens(tokenizer, (*prompt.messages, Message("assistant", text)), prompt.tools) for text in _ANSWERS
    )
    opening, asked = one[: _shared([one, other])], prompt_tokens(tokenizer, prompt)
    blank = opening[: len(asked)] == asked and not tokenizer.decode(opening[len(asked) :]).strip(" ")
    return asked if blank else opening


def _ended(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> list[int]:
    """The tokens of an answer to the one that ends it, which is added where the next turn begins with it."""
    end = end_token(tokenizer)
    if end in answer:
        return answer[: answer.index(end) + 1]
    # A turn of another kind, such as a call of a tool, may end with another token.
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    last = next((place for place in reversed(range(len(answer))) if answer[place] in special), None)
    return [*answer, end] if last is None else answer[: last + 1]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the template ends every conversation with: what whole ones have in common at their ends."""
    one, other = (_tokens(tokenizer, (*_QUESTION.messages, Message("assistant", text))) for text in _ANSWERS)
    return one[len(one) - _shared([one[::-1], other[::-1]]) :]


def question_opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the template begins a user's first turn with: what conversations have in common before the question."""
    one, other = (_tokens(tokenizer, (Message("user", text),)) for text in _ANSWERS)
    return one[: _shared([one, other])]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: EOS, which :func:`attach` made the template's end of turn."""
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise ModelError(f"the tokenizer has no EOS token to end an answer with; {_SET_TEMPLATE}")
    return end


def padded(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], side: Literal["left", "right"] = "right"
) -> BatchEncoding:
    """A batch of whole conversations as transformers itself renders and pads them, which trusts every text.

    Raises:
        ModelError: the template cannot be applied.
    """
    texts = [rendered(tokenizer, conversation.messages, conversation.prompt.tools) for conversation in conversations]
    return tokenizer(
        texts, add_special_tokens=False, padding=len(texts) > 1, padding_side=side, return_tensors="pt"
    )


def forges(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> bool:
    """Whether a special token is written in a conversation's text, which other tools read as the token itself."""
    trusted = padded(tokenizer, [conversation])["input_ids"][0].tolist()
    return bool(trusted != _tokens(tokenizer, conversation.messages, conversation.prompt.tools))


def check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Proves that the template and the special tokens fit the way this program sees a conversation.

    Raises:
        ModelError: with what to do.
    """
    end_token(tokenizer)
    conventions_of(tokenizer)
    end = _end_of_turn(tokenizer)
    if end != tokenizer.eos_token:
        after = rendered(tokenizer, _ANSWERED).rpartition(_ANSWERS[0])[2]
        raise ModelError(
            f"{_place(tokenizer)}the chat template ends an answer with {after!r} and not with EOS, "
            f"{tokenizer.eos_token}, so that a model would not learn where to stop; {_SET_TEMPLATE}"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer has no padding token; {_WHY_PAD}")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(f"the padding token is EOS, {tokenizer.eos_token}; {_WHY_PAD}")
    if tokenizer.pad_token_id in closing_tokens(tokenizer):
        raise ModelError(f"the chat template ends a conversation with padding, {tokenizer.pad_token}; {_WHY_PAD}")


_WHY_PAD = (
    "a reward model reads its score at the last token that is not padding, where the conversation ends, "
    "so padding must be a token that no conversation has: set the tokenizer's pad_token to one"
)


def mend_padding(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Chooses another existing special token for padding where it is missing or EOS.

    Tokens that a conversation holds (EOS, the template's, a BOS that the tokenizer writes) are no
    candidates; of the others one named for padding comes first, then UNK, then unused ones.

    Returns:
        A sentence about what was changed, or None where padding was right.

    Raises:
        ModelError: every special token is in use.
    """
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    closing = [] if tokenizer.chat_template is None else closing_tokens(tokenizer)
    if pad is None:
        was = "missing"
    elif pad == eos:
        was = f"{pad}, which is EOS"
    elif tokenizer.pad_token_id in closing:
        was = f"{pad}, with which the chat template ends a conversation"
    else:
        return None
    in_use = {tokenizer.eos_token_id, *tokenizer("a")["input_ids"]}
    if tokenizer.chat_template is not None:
        in_use |= {*prompt_tokens(tokenizer, _QUESTION), *closing}
    special = {
        str(token): number
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in in_use
    }

    def rank(token: str) -> tuple[int, int]:
        names = ("pad", "unk", "endoftext", "unused", "reserved")
        named = next((place for place, name in enumerate(names) if name in token.lower()), len(names))
        if token == tokenizer.unk_token:
            named = min(named, 1)
        return named, special[token]

    if not special:
        raise ModelError(f"no special token is free to be the padding token; {_WHY_PAD}")
    chosen = min(special, key=rank)
    tokenizer.pad_token = chosen
    return f"padding is now {chosen}: it was {was}"


def _shared(rows: Sequence[Sequence[object]]) -> int:
    """How many items all rows begin with."""
    columns = enumerate(zip(*rows, strict=False))
    return next((place for place, column in columns if len(set(column)) > 1), min(map(len, rows)))


def _place(tokenizer: PreTrainedTokenizerBase) -> str:
    """The file, or at least the folder, that the chat template is from, as the beginning of a message."""
    name = str(tokenizer.name_or_path or "")
    if not name:
        return ""
    file = Path(name, "chat_template.jinja")
    try:
        own = file.is_file() and file.read_text(encoding="utf-8") == tokenizer.chat_template
    except (OSError, UnicodeDecodeError):
        own = False
    return f"{one_line(file if own else name)}: "


def _frozen(template: str, now: datetime) -> str:
    """The template with what the clock says now in the place of its questions to the clock."""
    template = re.sub(rf"\b{CLOCK}\s+is\s+defined\b", "true", template)
    return re.sub(
        rf"\b{CLOCK}\s*\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)",
        lambda call: json.dumps(now.strftime(call[2]), ensure_ascii=False), template,
    )


def _check_clock(tokenizer: PreTrainedTokenizerBase) -> None:
    """Compares renderings by clocks that say different things, with and without a system turn.

    Raises:
        ModelError: they differ, or the template cannot be applied.
    """
    own, questions = tokenizer.chat_template, _QUESTION.messages
    for messages in (questions, (Message("system", "triptych system"), *questions)):
        texts = set()
        try:
            for now in ("03 Feb 2001", "25 Nov 2034"):
                tokenizer.chat_template = f"{{% macro {CLOCK}(format) %}}{now}{{% endmacro %}}{own}"
                texts.add(rendered(tokenizer, messages))
        except ModelError:
            if messages == questions:
                raise
            continue  # it refuses a system turn
        finally:
            tokenizer.chat_template = own
        if len(texts) > 1:
            raise ModelError(
                f"{_place(tokenizer)}the chat template asks for the time in a way that cannot be frozen, so that a "
                f"model would see other prompts tomorrow; {_SET_TEMPLATE}"
            )


def _template_text(template: str) -> str:
    if template == "chatml":
        return CHATML
    if "{" in template:
        return template
    try:
        with open_regular(Path(template)) as file:
            return file.read().decode()
    except IrregularFile as error:
        raise ModelError(f"chat template {template}: {error.kind}: expected a .jinja file") from error
    except OSError as error:
        raise ModelError(
            f"chat template {template}: no such file; expected chatml or the path of a .jinja file"
        ) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"chat template {template}: is not UTF-8: {error}") from error


@dataclass(frozen=True, slots=True)
class _Known:
    """What is found once of a tokenizer's template.

    Attributes:
        settled: the generation prompt has the tokens that stand before an answer.
        cut_anew: it has not, and the same text: line breaks at its end are one token there, and two before a word.
    """

    key: object
    conventions: Conventions
    settled: bool
    cut_anew: bool = False


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def conventions_of(tokenizer: PreTrainedTokenizerBase) -> Conventions:
    """How the tokenizer's chat template is given conversations.

    Raises:
        ModelError: it does not write a question and its answer.
    """
    return _known(tokenizer).conventions


def _known(tokenizer: PreTrainedTokenizerBase) -> _Known:
    key = (
        tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, len(tokenizer), tokenizer.chat_control_tokens
    )
    known = _KNOWN.get(tokenizer)
    if known is None or known.key != key:
        learnt = _applied(tokenizer, lambda: conventions(partial(_written, tokenizer)), "cannot be applied")
        known = _Known(key, learnt, settled=True)
        _KNOWN[tokenizer] = known
        asked, before = prompt_tokens(tokenizer, _QUESTION), _opening(tokenizer, _QUESTION)
        if asked != before:
            same = tokenizer.decode(asked) == tokenizer.decode(before)
            known = _KNOWN[tokenizer] = replace(known, settled=False, cut_anew=same)
    return known


def _written(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]], tools: list[dict[str, Any]] | None,
    generation: bool = False,
) -> str:
    """What the template makes of turns, within limits."""
    limit_chat_templates()
    return limited(lambda: str(
        tokenizer.apply_chat_template(chat, tools=tools, add_generation_prompt=generation, tokenize=False)
    ))


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Sequence[str] = (), generation: bool = False
) -> str:
    """What the template makes of turns, as text.

    Args:
        generation: with what it writes before an answer.

    Raises:
        ModelError: the template cannot be applied.
    """
    chat, schemas = conventions_of(tokenizer).chat(messages), [json.loads(tool) for tool in tools] or None
    return _applied(tokenizer, lambda: _written(tokenizer, chat, schemas, generation), "cannot be applied")


def _tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Sequence[str] = (), generation: bool = False
) -> list[int]:
    """The rendering's tokens; a special token is one where the template writes it, and text inside a message.

    Raises:
        ModelError: the template refuses the conversation, or leaves a part of it out.
    """
    what = "prompt" if generation else "conversation"
    conventions = conventions_of(tokenizer)
    for part, why in conventions.lacks(messages, tools).items():
        raise ModelError(f"{_place(tokenizer)}the chat template refuses {part} in a {what}: {why}; {_SET_TEMPLATE}")
    chat = conventions.chat(messages)
    if messages[-1].role == "assistant" and "</think>" in messages[-1].content:  # where templates cut a text
        text = rendered(tokenizer, messages, tools)
        if not all(part is None or part.strip() in text for part in split_reasoning(messages[-1].content)):
            raise ModelError(
                f"{_place(tokenizer)}the chat template leaves out a part of an answer with </think>; {_SET_TEMPLATE}"
            )

    def render() -> list[int]:
        tokens: list[int] = tokenizer.apply_chat_template(
            chat,
            tools=[json.loads(tool) for tool in tools] or None,
            add_generation_prompt=generation,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return tokens

    limit_chat_templates()
    return _applied(tokenizer, lambda: limited(render), f"refuses a {what}")


def _applied(tokenizer: PreTrainedTokenizerBase, render: Callable[[], Result], failing: str) -> Result:
    """What comes of the template, or a ModelError."""
    if tokenizer.chat_template is None:
        raise ModelError(f"{_place(tokenizer)}the tokenizer has no chat template; {_SET_TEMPLATE}")
    try:
        return render()
    except RenderingError as error:
        raise ModelError(f"{_place(tokenizer)}the chat template {failing}: {error}; {_SET_TEMPLATE}") from error


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that the template puts right after an answer, or else begins the next turn with.

    Of several it is EOS, or the last.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if not str(token).isspace()}
    # The longest first: one token's text may begin another's.
    tokens = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)) or "(?!)")
    after = rendered(tokenizer, _ANSWERED).rpartition(_ANSWERS[0])[2].lstrip()
    if not after:
        after = rendered(tokenizer, (*_ANSWERED, *user("Yes?"))).rpartition(_ANSWERS[0])[2].lstrip()
        match = tokens.match(after)
        return match and match[0]
    run: list[str] = []
    while match := tokens.match(after):
        run.append(match[0])
        after = after[match.end() :]
    return str(tokenizer.eos_token) if tokenizer.eos_token in run else run[-1] if run else None
