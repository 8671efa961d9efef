"""The only module that applies a chat template.

Training, reward, rollout and serving all see a conversation as::

    prompt_tokens(messages) + answer_tokens(answer)

where the prompt ends with the template's generation prompt and the answer with the end token. The
answer is tokenised on its own, so that a prompt has the same tokens whatever answer follows it: a
prefix computed once serves every answer. With the ChatML template that reads ::

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n  |  Hi!<|im_end|>

What a template writes after the end token (a line break in ChatML) belongs to the turn that follows,
which a model is never asked to write.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from triptych.data.rendering import RenderingError, limit_chat_templates, limited
from triptych.display import one_line
from triptych.errors import ModelError
from triptych.records import Message, Messages, user
from triptych.storage import IrregularFile, open_regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

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
    _require_template(tokenizer)

    def render() -> list[int]:
        tokens: list[int] = tokenizer.apply_chat_template(
            _turns(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return tokens

    try:
        limit_chat_templates()
        return limited(render)
    except RenderingError as error:
        raise ModelError(f"{_place(tokenizer)}the chat template refuses a prompt: {error}; {_SET_TEMPLATE}") from error


def answer_tokens(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """The answer's tokens and the end token."""
    tokens: list[int] = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*tokens, end_token(tokenizer)]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: EOS, which :func:`attach` made the template's end of turn."""
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise ModelError(f"the tokenizer has no EOS token to end an answer with; {_SET_TEMPLATE}")
    return end


def ending(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes behind an answer."""
    return _rendered(tokenizer, (*user("Hello."), Message("assistant", "Goodbye"))).rpartition("Goodbye")[2]


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


_WHY_PAD = (
    "a reward model reads its score at the last token that is not padding, which is the EOS of the answer, "
    "so padding must be another token: set the tokenizer's pad_token to one"
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
    if pad is not None and pad != eos:
        return None
    in_use = {tokenizer.eos_token_id, *tokenizer("a")["input_ids"]}
    if tokenizer.chat_template is not None:
        in_use |= set(prompt_tokens(tokenizer, _QUESTION))
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
    return f"padding is now {chosen}: it was {'missing' if pad is None else f'{pad}, which is EOS'}"


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in messages]


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise ModelError(f"{_place(tokenizer)}the tokenizer has no chat template; {_SET_TEMPLATE}")


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
    _require_template(tokenizer)

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(_turns(messages), add_generation_prompt=generation, tokenize=False)
        )

    try:
        limit_chat_templates()
        return limited(render)
    except RenderingError as error:
        raise ModelError(
            f"{_place(tokenizer)}the chat template cannot be applied: {error}; {_SET_TEMPLATE}"
        ) from error


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the template puts right after an answer, if it puts one there."""
    _, _, after = _rendered(tokenizer, (*_QUESTION, Message("assistant", _ANSWER))).rpartition(_ANSWER)
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    # The longest first: one token's text may begin another's.
    return next((token for token in sorted(special, key=len, reverse=True) if after.startswith(token)), None)
