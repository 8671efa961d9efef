"""The bodies of requests, with the names of OpenAI's interface, vLLM's and OpenRLHF's.

What would change an answer and is not built is refused by name, so that nothing is silently left out. What changes
nothing (`user`, `metadata`, ...) is passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from triptych.records import Message, Prompt

PASSED_OVER = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "verbosity")
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "none",
    "functions": [], "echo": False, "suffix": "", "modalities": ["text"],
}
"""Fields of OpenAI's that are not built, and the value with which they change nothing; null changes nothing either."""
UNSAID = ("refusal", "tool_calls", "function_call", "audio", "annotations")
"""Fields of a turn that a reply has, mostly null or empty, and that clients send back with it."""


def has_half_characters(given: Any) -> bool:
    """Whether a text in it has half of a surrogate pair: JSON can say one, and no text can hold it."""
    if isinstance(given, str):
        return any("\ud800" <= letter <= "\udfff" for letter in given)
    if isinstance(given, dict):
        return any(map(has_half_characters, (*given, *given.values())))
    return isinstance(given, list) and any(map(has_half_characters, given))


class Body(BaseModel):
    """A request's body; an unknown field is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, neutral in NEUTRAL.items():
            if given.get(name) not in (None, neutral):
                raise ValueError(f"{name} is not built here; leave it out")
        if has_half_characters(given):
            raise ValueError("a text has half of a surrogate pair, which is no character")
        return {name: value for name, value in given.items()
                if name not in PASSED_OVER and name not in NEUTRAL and value is not None}


class TextPart(BaseModel):
    """A part of a turn."""

    type: Literal["text"]
    text: str


class ChatTurn(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_says_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in UNSAID or value not in (None, [])}

    @property
    def message(self) -> Message:
        """As the package has it; OpenAI's developer is its system."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class Schema(BaseModel):
    """A JSON schema, as `response_format` gives it."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer must be."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with type json_schema, and with no other")
        return self

    @property
    def schema_(self) -> dict[str, Any] | None:
        """The schema of the answer; None of any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = False
    include_obfuscation: bool | None = False


class DecodingBody(Body):
    """What all requests for answers have in common.

    Attributes:
        max_tokens, temperature, top_p: by default the model's own, as it was deployed.
        n: answers.
        best_of: so many are written, and the best n by the family's reward are given.
        stop: texts of which each ends the answer.
        seed: gives the same answer again; by default another one each time.
    """

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: int = Field(default=1, ge=1, le=128)
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(gt=-(2**63), lt=2**63), AfterValidator(lambda seed: seed % 2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> DecodingBody:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of must be at least n, {self.n}")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise ValueError("the best answer is known when all are there: best_of cannot be streamed")
        if any(not stop for stop in self.stops):
            raise ValueError("stop must not be empty")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def written(self) -> int:
        """How many answers are written."""
        return self.best_of or self.n

    @property
    def prompted(self) -> int:
        """How many prompts there are."""
        return 1

    @property
    def alternatives(self) -> int | None:
        """With how many of the likeliest tokens log-probabilities are told; None for no log-probabilities."""
        raise NotImplementedError


class ChatBody(DecodingBody):
    """`/v1/chat/completions`.

    Attributes:
        max_completion_tokens: OpenAI's later name for `max_tokens`.
    """

    messages: list[ChatTurn] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def alternatives(self) -> int | None:
        """See :class:`DecodingBody`."""
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionBody(DecodingBody):
    """`/v1/completions`: text, or its tokens, that the model goes on with."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def alternatives(self) -> int | None:
        """See :class:`DecodingBody`."""
        return self.logprobs

    @property
    def prompted(self) -> int:
        """See :class:`DecodingBody`."""
        many = isinstance(self.prompt, list) and not (self.prompt and isinstance(self.prompt[0], int))
        return len(self.prompt) if many else 1

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]


class ScoreBody(Body):
    """`/v1/score`: answers, in one of three forms.

    Attributes:
        conversations: rows as data files have them: `{"messages": [...]}` or `{"prompt", "completion"}`, with what
            rules need (`reference`, `checks`, `task`).
        comparisons: rows of `{"prompt", "chosen", "rejected"}`; each gives two rewards, the chosen one's first.
        text_1, text_2: vLLM's names: a prompt, or one for each answer, and the answers.
    """

    conversations: list[dict[str, Any]] | None = None
    comparisons: list[dict[str, Any]] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


class PoolingBody(Body):
    """`/classify` and `/pooling`: whole texts as the chat template writes them, or one conversation.

    Attributes:
        task: vLLM's name for outputs of the last token alone, which are all that there are here.
        use_activation: whether outputs become probabilities, as at `/classify`; no at `/pooling`.
    """

    input: str | list[str] | None = None
    messages: list[ChatTurn] | None = None
    task: Literal["classify"] | None = None
    use_activation: bool | None = None


class RemoteBody(Body):
    """OpenRLHF's `remote_rm_url`: `query` is a prompt with its answer, as text; what else it sends is passed over."""

    model_config = ConfigDict(extra="ignore")

    query: list[str]
    prompts: list[str] | None = None
    labels: list[Any] | None = None


class ThumbBody(Body):
    """What somebody at the page thinks of an answer."""

    messages: list[ChatTurn] = Field(min_length=1)
    answer: str
    label: bool

    @property
    def prompt(self) -> Prompt:
        """What was asked."""
        return Prompt(tuple(turn.message for turn in self.messages))
