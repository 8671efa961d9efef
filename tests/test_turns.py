"""Conversations of several turns, with reasoning and tools: what of them is learnt, by the templates of real models."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from test_template import BREAK_BEHIND, CHAT_TEMPLATES, tokenizer, tokenizer_of
from triptych.data import template
from triptych.data.lengths import LearntTurns, TokenizedConversation, fit_turns, tokenized_turns
from triptych.engine.forward import pack_answers
from triptych.errors import ModelError
from triptych.records import Conversation, Message, Prompt, ToolCall, user, with_reasoning

TEMPLATES = {path.stem: path for path in CHAT_TEMPLATES}
CHAT = Conversation(
    Prompt((
        Message("system", "Be a cat."), Message("user", "Who sat?"), Message("assistant", "The cat."),
        Message("user", "Where?"), Message("assistant", "Here.", learnt=False), Message("user", "Why?"),
    )),
    "It did.",
)


def taken(name: str, *, reasoning: bool = False, **arguments: template.Argument) -> PreTrainedTokenizerFast:
    text = TEMPLATES[name].read_text(encoding="utf-8")
    made = tokenizer_of(text)
    template.attach(made, text, arguments, reasoning=reasoning)
    return made


@pytest.fixture
def chatml() -> PreTrainedTokenizerFast:
    made = tokenizer(eos_token="<|im_end|>", pad_token="<|pad|>")
    template.attach(made, BREAK_BEHIND)
    return made


def learnt(made: PreTrainedTokenizerFast, row: TokenizedConversation) -> list[str]:
    return [made.decode(row.answer[start:end]) for start, end in row.spans]


@pytest.mark.parametrize(
    ("learn", "wanted"), [("all", ["The cat.<|im_end|>", "It did.<|im_end|>"]), ("last", ["It did.<|im_end|>"])]
)
def test_turns_are_learnt_in_one_row(chatml: PreTrainedTokenizerFast, learn: LearntTurns, wanted: list[str]) -> None:
    (row,) = tokenized_turns(CHAT, chatml, learn)
    assert learnt(chatml, row) == wanted
    turns = [{"role": turn.role, "content": turn.content} for turn in CHAT.messages]
    assert [*row.prompt, *row.answer] == chatml(
        chatml.apply_chat_template(turns, tokenize=False).removesuffix("\n"), add_special_tokens=False
    )["input_ids"]
    assert sum(end - start for start, end in row.spans) == sum(len(chatml(text)["input_ids"]) for text in wanted)


def test_what_is_learnt_is_what_is_predicted(chatml: PreTrainedTokenizerFast) -> None:
    (row,) = tokenized_turns(CHAT, chatml, "all")
    for groups in ([(row.prompt, [row.answer])], [(row.prompt, [row.answer, row.answer])]):
        count = len(groups[0][1])
        packed = pack_answers(groups, "cpu", [row.learnt] * count)
        spans = row.spans
        wanted = [token for start, end in spans for token in row.answer[start:end]]
        assert packed.predictions.targets.tolist() == wanted * count
        # Each is predicted from the token before it, wherever that stands in the row.
        whole, places = [*row.prompt, *row.answer], [i for start, end in spans for i in range(start, end)]
        before = [whole[len(row.prompt) + i - 1] for i in places]
        assert packed.pack.tokens[packed.predictions.places].tolist() == before * count
    one = pack_answers([((), [row.answer])], "cpu", [((0, 3), (5, 6))])
    assert one.predictions.targets.tolist() == [*row.answer[1:3], row.answer[5]]


def test_a_long_conversation_is_cut_or_dropped(chatml: PreTrainedTokenizerFast) -> None:
    (row,) = tokenized_turns(CHAT, chatml, "all")
    assert fit_turns([CHAT], chatml, row.length - 1, "drop", "all").dropped == 1
    cut = fit_turns([CHAT, CHAT], chatml, row.length - 2, "truncate", "all")
    assert (cut.dropped, cut.truncated, cut.lines) == (0, 2, (1, 2))
    assert learnt(chatml, cut.rows[0])[0] == "The cat.<|im_end|>"
    assert cut.rows[0].length == row.length - 2
    spans = row.spans
    first = fit_turns([CHAT], chatml, len(row.prompt) + spans[1][0], "truncate", "all").rows[0]
    assert (learnt(chatml, first), first.learnt) == (["The cat.<|im_end|>"], None)


def test_turns_whose_reasoning_is_left_out_later_are_rows_of_their_own() -> None:
    made = taken("qwen3", reasoning=True)
    chat = Conversation(
        Prompt((*user("Who sat?"), Message("assistant", with_reasoning("A cat sits.", "The cat.")), *user("Why?"))),
        with_reasoning("It was tired.", "It did."),
    )
    rows = tokenized_turns(chat, made, "all")
    assert [learnt(made, row) for row in rows] == [
        ["<think>\nA cat sits.\n</think>\n\nThe cat.<|im_end|>"],
        ["<think>\nIt was tired.\n</think>\n\nIt did.<|im_end|>"],
    ]
    assert made.decode(rows[1].prompt) == (
        "<|im_start|>user\nWho sat?<|im_end|>\n<|im_start|>assistant\nThe cat.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [row.prompt[-1] for row in rows] == [template.prompt_tokens(made, Prompt.of("a"))[-1]] * 2


def test_reasoning_that_a_template_leaves_out_is_refused() -> None:
    made = taken("deepseek_r1_distill", reasoning=True)
    with pytest.raises(ModelError, match="refuses reasoning in a conversation: it leaves out what they say"):
        tokenized_turns(Conversation(Prompt.of("Who?"), with_reasoning("Cats.", "The cat.")), made, "all")
    cut = Conversation(Prompt.of("Who?"), "I say: </think> The cat.")
    with pytest.raises(ModelError, match="leaves out a part of an answer with </think>"):
        tokenized_turns(cut, taken("qwen3", reasoning=True), "all")


def test_an_empty_place_for_reasoning_belongs_to_the_prompt() -> None:
    """Also where other rows have reasoning, so that the generation prompt leaves the place to the model."""
    made = taken("qwen3", reasoning=True)
    (row,) = tokenized_turns(Conversation(Prompt.of("Who sat?"), "The cat."), made, "all")
    assert made.decode(row.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert learnt(made, row) == ["The cat.<|im_end|>"]


def test_a_templates_arguments_become_its_defaults() -> None:
    made = taken("qwen3", enable_thinking=False)
    turns = [{"role": "user", "content": "Who?"}]
    closed = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert closed.endswith("<think>\n\n</think>\n\n")
    opened = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert opened.endswith("<|im_start|>assistant\n")
    with pytest.raises(ModelError, match=r"has no argument 'enable_think'; it takes .*enable_thinking"):
        taken("qwen3", enable_think=False)


def test_a_token_in_a_text_is_one_where_the_recipe_says_so() -> None:
    text = TEMPLATES["qwen3"].read_text(encoding="utf-8")
    conversation = Conversation(Prompt.of("Say <think>."), "I say <think>.")
    counts = []
    for tokens in ((), ("<think>",)):
        made = tokenizer_of(text)
        template.attach(made, text, tokens=tokens)
        (row,) = tokenized_turns(conversation, made, "all")
        think = made.convert_tokens_to_ids("<think>")
        counts.append((row.prompt.count(think), row.answer.count(think)))
    # One stands before the answer, where the template leaves its empty place.
    assert counts == [(1, 0), (2, 1)]
    for tokens, why in ((("<thonk>",), "has no token '<thonk>'"), (("<|im_end|>",), "is a special token")):
        with pytest.raises(ModelError, match=why):
            template.attach(tokenizer_of(text), text, tokens=tokens)


def test_a_blank_before_an_answer_belongs_to_its_first_word() -> None:
    """A tokenizer of the SentencePiece kind, and the template of Mistral 7B v0.1."""
    pieces = ["<unk>", "<s>", "</s>", "<pad>", *"▁[/]INSTcatwho", "▁c", "▁cat", "at"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "c"), ("a", "t"), ("▁c", "at")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Metaspace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    written = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    assert template.attach(made, written) == []
    for answer, tokens in (("cat", ["▁cat", "</s>"]), ("who", ["▁", "w", "h", "o", "</s>"])):
        (row,) = tokenized_turns(Conversation(Prompt.of("who"), answer), made, "all")
        assert made.convert_ids_to_tokens(row.answer) == tokens
        assert list(row.prompt) == template.prompt_tokens(made, Prompt.of("who"))
        whole = made(f"<s> [INST] who [/INST] {answer}</s>", add_special_tokens=False)["input_ids"]
        assert [*row.prompt, *row.answer] == whole


TOOL = json.dumps({"type": "function", "function": {
    "name": "weather", "description": "The weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Where"}}, "required": ["city"],
    },
}})
ASKED = Conversation(
    Prompt(
        (
            *user("Rain in Ulm?"), Message("assistant", "", (ToolCall("weather", '{"city": "Ulm"}', "call12345"),)),
            Message("tool", "wet", name="weather", tool_call_id="call12345"),
        ),
        tools=(TOOL,),
    ),
    "Yes, it rains.",
)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call><|im_end|>'),
        ("qwen2_5", '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call><|im_end|>'),
        ("llama3_1", '{"name": "weather", "parameters": {"city": "Ulm"}}<|eot_id|>'),
        ("gptoss", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Ulm"}<|call|>'),
    ],
)
def test_calls_of_tools_are_learnt_and_their_results_are_not(name: str, call: str) -> None:
    made = taken(name)
    rows = tokenized_turns(ASKED, made, "all")
    texts = [text for row in rows for text in learnt(made, row)]
    assert len(texts) == 2
    assert texts[0].endswith(call)
    assert texts[1].startswith("Yes, it rains.")
    assert "weather" in made.decode(rows[0].prompt)
    assert "wet" in made.decode([*rows[-1].prompt, *rows[-1].answer])
    (last,) = tokenized_turns(ASKED, made, "last")
    assert learnt(made, last) == texts[1:]


@pytest.mark.parametrize(("name", "part"), [("gemma", "tools"), ("phi3", "tools"), ("lfm2", "calls of tools")])
def test_tools_that_a_template_leaves_out_are_refused(name: str, part: str) -> None:
    with pytest.raises(ModelError, match=f"the chat template refuses {part} in a"):
        tokenized_turns(ASKED, taken(name), "all")


def test_a_base_whose_tokenizer_begins_texts_gets_a_template_that_does() -> None:
    end = "<|endoftext|>"
    made = tokenizer([end, "<|pad|>"], bos_token=end, eos_token=end, pad_token="<|pad|>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    changes = template.attach(made, "chatml")
    assert "the template begins with <|endoftext|>, which the tokenizer puts before a text" in changes
    assert made.convert_ids_to_tokens(template.prompt_tokens(made, Prompt.of("a")))[:2] == [end, "<|im_start|>"]
