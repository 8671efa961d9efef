"""What a chat template takes, and what it leaves out: found by rendering short conversations with it.

Templates differ in how they are given a text, reasoning and calls of tools, and many do not know all of these. What one
would leave out is refused here, for a model would learn from less than the data says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from triptych.data.rendering import RenderingError, RenderingLimitError
from triptych.records import Message, Messages, ToolCall, split_reasoning, turns, user, with_reasoning

SYSTEM = "a system turn"
REASONING = "reasoning"
TOOLS = "tools"
CALLS = "calls of tools"
RESULTS = "a tool's turn"

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str]
"""What the template writes of turns and tools.

Raises:
    RenderingError: it refuses.
"""


@dataclass(frozen=True, slots=True)
class Conventions:
    """How a template is given a conversation, and what of one it does not write.

    Attributes:
        blocks: a turn's content is a list of parts and not a text, as models of images and text have it.
        reasoning: there is a place of its own for reasoning; otherwise that stands in the text.
        arguments_as_text: a call's arguments are the JSON text of an object, and not the object.
        lacking: what it leaves out or refuses, by name, and why.
    """

    blocks: bool = False
    reasoning: bool = False
    arguments_as_text: bool = False
    lacking: Mapping[str, str] = field(default_factory=dict)

    def chat(self, messages: Messages) -> list[dict[str, Any]]:
        """The turns as the template takes them."""
        chat = turns(messages)
        for turn in chat:
            turn.pop("weight", None)
            if turn["role"] == "assistant" and self.reasoning:
                thought, turn["content"] = split_reasoning(turn["content"])
                if thought is not None:
                    turn["reasoning_content"] = thought
            if self.arguments_as_text:
                for call in turn.get("tool_calls", ()):
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            if self.blocks:
                turn["content"] = [{"type": "text", "text": turn["content"]}]
        return chat

    def lacks(self, messages: Messages, tools: Sequence[str] = ()) -> dict[str, str]:
        """What of a conversation the template does not write, by name, and why."""
        if not self.lacking:
            return {}
        return {name: self.lacking[name] for name in parts(messages, tools) if name in self.lacking}


def parts(messages: Messages, tools: Sequence[str] = ()) -> list[str]:
    """What a conversation has that not every template knows; reasoning counts in its last turn alone."""
    last = messages[-1]
    present = {
        SYSTEM: any(turn.role == "system" for turn in messages),
        REASONING: last.role == "assistant" and split_reasoning(last.content)[0] is not None,
        TOOLS: bool(tools),
        CALLS: any(turn.tool_calls for turn in messages),
        RESULTS: any(turn.role == "tool" for turn in messages),
    }
    return [name for name, there in present.items() if there]


def conventions(render: Render) -> Conventions:
    """The conventions of a template.

    Raises:
        RenderingError: it does not write a question and its answer, and why.
    """
    question, answer, thought = user("Triptych question"), Message("assistant", "Triptych answer"), "Triptych thought"
    schema = {
        "name": "triptych_tool", "description": "Triptych tool",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Place"}}},
    }
    tool = json.dumps({"type": "function", "function": schema})
    call = ToolCall("triptych_tool", '{"place": "Ulm"}', "triptych1")

    def missing(form: Conventions, messages: Messages, *texts: str, tools: Sequence[str] = ()) -> str:
        """Why the template does not write the texts; nothing where it does."""
        try:
            written = render(form.chat(messages), [json.loads(tool) for tool in tools] or None)
        except RenderingLimitError:
            raise
        except RenderingError as error:
            return str(error)
        return "" if all(text in written for text in texts) else "it leaves out what they say"

    def first(forms: Sequence[Conventions], messages: Messages, *texts: str, tools: Sequence[str] = ()) -> Conventions:
        """The first of some forms that the template writes; where it writes none, the first of all."""
        return next((form for form in forms if not missing(form, messages, *texts, tools=tools)), forms[0])

    asked = (*question, answer)
    plain = (question[0].content, answer.content)
    form = Conventions()
    if why := missing(form, asked, *plain):
        form = Conventions(blocks=True)
        if missing(form, asked, *plain):
            raise RenderingError(why)
    reasoned = (*question, Message("assistant", with_reasoning(thought, answer.content)))
    form = first([replace(form, reasoning=True), form], reasoned, thought, answer.content)
    called = (*question, Message("assistant", "", (call,)))
    written = ("triptych_tool", "Ulm")
    lacking = {TOOLS: missing(form, asked, "triptych_tool", *plain, tools=[tool])}
    given = [] if lacking[TOOLS] else [tool]
    form = first([form, replace(form, arguments_as_text=True)], called, *written, tools=given)
    result = Message("tool", "Triptych result", name="triptych_tool", tool_call_id=call.id)
    lacking |= {
        SYSTEM: missing(form, (Message("system", "Triptych system"), *asked), "Triptych system", *plain),
        REASONING: missing(form, reasoned, thought, answer.content),
        CALLS: missing(form, called, *written, tools=given),
        RESULTS: missing(form, (*called, result, answer), result.content, answer.content, tools=given),
    }
    return replace(form, lacking={name: why for name, why in lacking.items() if why})
