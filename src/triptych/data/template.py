"""The only module that applies a chat template.

A policy, in training as in serving, sees a conversation as::

    prompt_tokens(messages) + answer_tokens(answer)

where the prompt ends with the template's generation prompt and the answer with the end token. The
answer is tokenised on its own, so that a prompt has the same tokens whatever answer follows it: a
prefix computed once serves every answer. With the ChatML template that reads ::

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n  |  Hi!<|im_end|>

What a template writes after the end token (a line break, in many models' ChatML) belongs to the turn that follows,
which a model is never asked to write.

A reward model sees `scored_tokens`: everything that the template writes of the whole conversation. Its score is read at
the last of these tokens, in training as by every tool that renders a conversation and scores it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triptych.data.rendering import RenderingError, Result, limit_chat_templates, limited
from triptych.display import one_line
from triptych.errors import ModelError
from triptych.records import Conversation, Message, Messages, user
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

_SET_TEMPLATE = "set `base.chat_template: chatml`, or the path of a .jinja file, in the recipe"

_QUESTION = user("triptych question")
_ANSWER = "triptych answer"


def attach(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[str]:
    """Gives the tokenizer its chat template and makes the token that ends a turn its EOS.

    Tools that load the released folder stop at EOS, so it has to be the token that the template puts
    after an answer. With `chatml` the two turn tokens are added where the vocabulary lacks them, and
    the model's embeddings must then grow to `len(tokenizer)`.

    Args:
        tokenizer: changed in place.
        template: `chatml`, the path of a `.jinja` file, a template's text, or None to keep its own.

    Returns:
        A sentence for each thing changed besides the template.
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
    if tokenizer.chat_template is None:
        return changes
    end = _end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        changes.append(
            f"EOS is now {end}, which the chat template puts after an answer; was {tokenizer.eos_token}"
        )
        tokenizer.eos_token = end
    return changes


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """The prompt as the model sees it, up to and including the generation prompt.

    Special tokens come from the template alone, so that there is no second BOS; the text of a special
    token inside a message stays text, so that a message cannot forge a turn.
    """
    return _tokens(tokenizer, messages, generation=True)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """The answer's tokens and the end token."""
    tokens: list[int] = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*tokens, end_token(tokenizer)]


def scored_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers as a reward model sees them: with whatever the template writes behind an answer.

    Returns:
        What all begin with, as far as the prompt goes, and what follows of each conversation: one token at least, the
        last of which a score is read at.
    """
    opening = prompt_tokens(tokenizer, messages)
    whole = [_tokens(tokenizer, (*messages, Message("assistant", answer))) for answer in answers]
    shared = _shared([opening, *(tokens[:-1] for tokens in whole)])
    return opening[:shared], [tokens[shared:] for tokens in whole]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the template ends every conversation with: what whole ones have in common at their ends."""
    one, other = (_tokens(tokenizer, (*_QUESTION, Message("assistant", text))) for text in (_ANSWER, "Goodbye"))
    return one[len(one) - _shared([one[::-1], other[::-1]]) :]


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
    chats = [_turns((*each.prompt.messages, Message("assistant", each.answer))) for each in conversations]

    def render() -> BatchEncoding:
        batch: BatchEncoding = tokenizer.apply_chat_template(
            chats, padding=len(chats) > 1, return_dict=True, return_tensors="pt",
            tokenizer_kwargs={"padding_side": side},
        )
        return batch

    return _applied(tokenizer, render, "cannot be applied")


def forges(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> bool:
    """Whether a special token is written in a conversation's text, which other tools read as the token itself."""
    turns = (*conversation.prompt.messages, Message("assistant", conversation.answer))
    trusted = padded(tokenizer, [conversation])["input_ids"][0].tolist()
    return bool(trusted != _tokens(tokenizer, turns))


def check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Proves that the template and the special tokens fit the way this program sees a conversation.

    Raises:
        ModelError: with what to do.
    """
    end_token(tokenizer)
    opening = _rendered(tokenizer, _QUESTION, generation=True)
    whole = _rendered(tokenizer, (*_QUESTION, Message("assistant", _ANSWER)))
    if not whole.startswith(opening):
        raise ModelError(
            "the chat template writes an answered prompt differently from the same prompt before its "
            f"answer (with the generation prompt it is {opening!r}, answered {whole!r}); {_SET_TEMPLATE}"
        )
    if not whole[len(opening) :].startswith(_ANSWER + tokenizer.eos_token):
        raise ModelError(
            f"the chat template ends an answer with {whole[len(opening) + len(_ANSWER) :]!r} and not with "
            f"EOS, {tokenizer.eos_token}, so that a model would not learn where to stop; {_SET_TEMPLATE}"
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


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    columns = enumerate(zip(*rows, strict=False))
    return next((place for place, column in columns if len(set(column)) > 1), min(map(len, rows)))


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in messages]


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


def _template_text(template: str) -> str:
    if template == "chatml":
        return CHATML
    if "{" in template:
        return template
    try:
        with open_regular(Path(template)) as file:
            return file.read().decode()
    except IrregularFile as error:
        raise ModelError(f"chat template {template}: {error.found}: expected a .jinja file") from error
    except OSError as error:
        raise ModelError(
            f"chat template {template}: no such file; expected chatml or the path of a .jinja file"
        ) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"chat template {template}: is not UTF-8: {error}") from error


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages, generation: bool = False) -> str:
    def render() -> str:
        return str(
            tokenizer.apply_chat_template(_turns(messages), add_generation_prompt=generation, tokenize=False)
        )

    return _applied(tokenizer, render, "cannot be applied")


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: Messages, generation: bool = False) -> list[int]:
    """The rendering's tokens; a special token is one where the template writes it, and text inside a message."""

    def render() -> list[int]:
        tokens: list[int] = tokenizer.apply_chat_template(
            _turns(messages),
            add_generation_prompt=generation,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return tokens

    return _applied(tokenizer, render, f"refuses a {'prompt' if generation else 'conversation'}")


def _applied(tokenizer: PreTrainedTokenizerBase, render: Callable[[], Result], failing: str) -> Result:
    """What the template makes, within limits."""
    if tokenizer.chat_template is None:
        raise ModelError(f"{_place(tokenizer)}the tokenizer has no chat template; {_SET_TEMPLATE}")
    try:
        limit_chat_templates()
        return limited(render)
    except RenderingError as error:
        raise ModelError(f"{_place(tokenizer)}the chat template {failing}: {error}; {_SET_TEMPLATE}") from error


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the template puts right after an answer, if it puts one there."""
    _, _, after = _rendered(tokenizer, (*_QUESTION, Message("assistant", _ANSWER))).rpartition(_ANSWER)
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    # The longest first: one token's text may begin another's.
    return next((token for token in sorted(special, key=len, reverse=True) if after.startswith(token)), None)
