"""A Modelfile: what Ollama is told of a GGUF file.

Ollama does not read a chat template in Jinja. It has a language of its own, so the template's turns are written anew in
it, where every conversation comes out as the template itself writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from triptych.data.template import rendered
from triptych.engine.sampling import Sampling, generation_settings
from triptych.errors import ModelError
from triptych.evaluate.preamble import preamble_of
from triptych.records import Message, Messages
from triptych.release.vocabulary import begins_with_bos

CHAT = tuple(
    Message(role, f"triptych {role} {number}")
    for number in range(3) for role in ("user", "assistant")
)[:-1]
"""A conversation that ends with a question."""
SYSTEM = Message("system", "triptych system")
TOP_K = 50
"""Of transformers, where `generation_config.json` gives none."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What a chat template writes around the texts of a conversation.

    Attributes:
        opening: before a question that nothing precedes.
        system: before a system prompt; None where the template takes none.
        asked: between it and the question.
        answered: between a question and its answer.
        again: between an answer and the next question.
        generation: between the last question and the answer that is to be written.
    """

    opening: str
    system: str | None
    asked: str
    answered: str
    again: str
    generation: str

    @property
    def template(self) -> str:
        """The same in Ollama's language, the one of Go's text/template."""
        systems = "" if self.system is None else f'{{{{ if eq .Role "system" }}}}{self.system}{{{{ else }}}}'
        return (
            "{{- range $i, $turn := .Messages }}" + systems
            + '{{ if eq .Role "assistant" }}' + self.answered
            + "{{ else if eq $i 0 }}" + self.opening
            + "{{ else if and (eq $i 1) $.System }}" + self.asked
            + "{{ else }}" + self.again + "{{ end }}" + ("{{ end }}" if systems else "")
            + "{{ .Content }}"
            + '{{ if and (ne .Role "assistant") (eq (len (slice $.Messages $i)) 1) }}' + self.generation + "{{ end }}"
            + "{{ end }}"
        )


def turns_of(tokenizer: PreTrainedTokenizerFast) -> Turns | None:
    """What the chat template writes around texts; None where that depends on more than on whose turn it is."""
    if tokenizer.chat_template is None:
        return None
    plain, one = _around(tokenizer, CHAT), _around(tokenizer, CHAT[:1])
    if plain is None or one is None or one != [plain[0], plain[-1]] or plain[1:3] != plain[3:5]:
        return None
    opening, answered, again, generation = (*plain[:3], plain[-1])
    try:
        headed = _around(tokenizer, (SYSTEM, *CHAT))
    except ModelError:  # it refuses a system prompt
        system, asked = None, again
    else:
        if headed is None or headed[2:] != plain[1:]:
            return None
        system, asked = headed[:2]
    parts = [part for part in (opening, system, asked, answered, again, generation) if part is not None]
    if any("{{" in part or '"""' in part for part in parts):
        return None
    bos = str(tokenizer.bos_token) if begins_with_bos(tokenizer) else ""  # which Ollama writes itself
    return Turns(
        opening.removeprefix(bos), system if system is None else system.removeprefix(bos), asked, answered, again,
        generation,
    )


def _around(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> list[str] | None:
    """The text before each message and the text behind the last; None where one is not written as it is."""
    text = rendered(tokenizer, messages, generation=True)
    pieces = []
    for message in messages:
        before, written, text = text.partition(message.content)
        if not written:
            return None
        pieces.append(before)
    return [*pieces, text]


def decoding_of(model: Path) -> dict[str, float]:
    """How a model is decoded as its folder says, by the names that Ollama has for it."""
    settings, sampling = generation_settings(model), Sampling.of(model)
    penalty = settings.get("repetition_penalty") or 1.0
    decoding = {"temperature": sampling.temperature, "repeat_penalty": penalty}
    if sampling.temperature:
        decoding |= {"top_p": sampling.top_p, "top_k": settings.get("top_k", TOP_K) or 0}
        decoding["min_p"] = settings.get("min_p") or 0.0
    if "max_new_tokens" in settings:
        decoding["num_predict"] = sampling.max_tokens
    return decoding


def modelfile(model: Path, file: Path, tokenizer: PreTrainedTokenizerFast, ends: Sequence[int]) -> str:
    """The text of the Modelfile of a GGUF file that lies beside it.

    Raises:
        ModelError: a text cannot stand in it.
    """
    turns = turns_of(tokenizer)
    lines = [f"FROM ./{file.name}"]
    if turns is not None:
        lines.append(f"TEMPLATE {_quoted(turns.template)}")
    for message in preamble_of(model):
        word = "SYSTEM" if message.role == "system" else f"MESSAGE {message.role}"
        lines.append(f"{word} {_quoted(message.content)}")
    lines += [f"PARAMETER {name} {value:g}" for name, value in decoding_of(model).items()]
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(end)}"' for end in ends]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise ModelError(f'a Modelfile cannot hold """, which stands in {text[:40]!r}')
    return f'"""{text}"""'
