"""A GGUF file holds the numbers, the tokens and the chats of the folder that it is made of, for llama.cpp too."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordPiece
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_OF_TRANSFORMERS
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35_OF_TRANSFORMERS

import triptych
from triptych.base import source
from triptych.base.tokenizer import train_tokenizer
from triptych.data import template
from triptych.engine import models
from triptych.engine import pre_tokenizers as cutting
from triptych.engine.adapters import Lora, adapt
from triptych.engine.pre_tokenizers import LLAMA3, QWEN2, QWEN35
from triptych.errors import ModelError, RecipeError, RunError
from triptych.progress import Silent, Terminal
from triptych.records import Document, Message, Prompt, turns, user
from triptych.release.gguf import TYPES
from triptych.release.modelfile import turns_of
from triptych.release.vocabulary import pre_tokenizer

TEXT = (
    "A small cat sat on a red mat, and saw 12 dogs!  They'd run 3.14159 miles; we're DON'T.\n\n\tdéjà vu 你好 нещо "
    "(x == 12345)  \n  \r\n'll 'LL end… नमस्ते ½ 😀   "
)
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}
SLOWED = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **more: LlamaConfig(**SHAPE, head_dim=24, **more),
    "mistral": lambda **more: MistralConfig(**SHAPE, sliding_window=None, **more),
    "qwen2": lambda **more: Qwen2Config(**SHAPE, **more),
    "qwen3": lambda **more: Qwen3Config(**SHAPE, head_dim=128, **more),  # transformers reads no other from GGUF
    "biased": lambda **more: LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, **more),
    "llama3": lambda **more: LlamaConfig(**SHAPE, rope_parameters=SLOWED, **more),
}


def write_model(
    folder: Path, family: str = "llama", *, tied: bool = True, spare: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None, **more: Any,
) -> Path:
    """A random model with a tokenizer, by default one of our own, and rows of the embedding for no token."""
    tokenizer = tokenizer or train_tokenizer([Document(TEXT)] * 3, 400, 256)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = FAMILIES[family](vocab_size=len(tokenizer) + spare, tie_word_embeddings=tied, **special, **more)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # norms start at one and biases at zero, which would hide mistakes
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    models.save(model, tokenizer, folder)
    return folder


def exported(model: Path, kind: str = "f32") -> Path:
    return triptych.export(model, model.with_name(f"{model.name}-{kind}.gguf"), type=kind, progress=Silent())


def field(file: Path, name: str) -> Any:
    value = GGUFReader(file).fields.get(name)
    return None if value is None else value.contents()


@pytest.mark.parametrize(("family", "tied"), [
    ("llama", True), ("llama", False), ("mistral", False), ("qwen2", True), ("qwen3", False),
])
def test_what_transformers_reads_again_is_the_same_model(tmp_path: Path, family: str, tied: bool) -> None:
    folder = write_model(tmp_path / "model", family, tied=tied, spare=5)
    again, words, changes = models.load_gguf(exported(folder))
    mine, tokenizer = models.load_policy(folder), models.load_tokenizer(folder)
    tokens = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, mine(tokens).logits)
    assert words(TEXT)["input_ids"] == tokens[0].tolist()
    assert changes == ["weights dequantised from GGUF"]
    assert words.chat_template == tokenizer.chat_template
    assert again.config.tie_word_embeddings is tied
    for name in ("bos", "eos", "pad"):
        assert getattr(words, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id")


def test_each_type_rounds_matrices_and_leaves_vectors(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "qwen2", tied=False)
    sizes = []
    for kind in TYPES:
        file = exported(folder, kind)
        stored = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
        assert stored.pop("output_norm.weight") == stored.pop("blk.0.attn_k.bias") == "F32"
        assert stored["blk.1.attn_q.weight"] == kind.upper()
        ends = {stored[name] for name in ("token_embd.weight", "output.weight")}
        assert ends == ({"Q8_0"} if kind.startswith("q") else {kind.upper()})
        sizes.append(file.stat().st_size)
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3] == max(sizes[3:])
    rounded = models.load_gguf(tmp_path / "model-f16.gguf")[0].state_dict()
    mine = models.load_policy(folder).half().state_dict()
    assert all(torch.equal(rounded[name].half(), weight) for name, weight in mine.items() if weight.ndim > 1)


def test_rows_that_are_no_whole_blocks_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", "qwen2")
    model, words = models.load_policy(folder), models.load_tokenizer(folder)
    narrow = type(model)(type(model.config)(**{**model.config.to_dict(), "intermediate_size": 40}))
    models.save(narrow, words, tmp_path / "narrow")
    triptych.export(tmp_path / "narrow", tmp_path / "narrow.gguf", type="q8_0", progress=Terminal())
    said = capsys.readouterr().err.splitlines()[-1].strip()
    assert said == "note: 2 matrices are in f16: their rows are no multiple of the blocks of q8_0"


def test_rows_of_no_token_are_marked_and_ends_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", spare=3)
    settings = json.loads((folder / "generation_config.json").read_text())
    path = folder / "generation_config.json"
    path.write_text(json.dumps(settings | {"eos_token_id": [3, 0], "do_sample": True, "temperature": 0.5, "top_k": 0}))
    file = exported(folder)
    tokens = field(file, "tokenizer.ggml.tokens")
    assert tokens[-3:] == [f"[PAD{len(tokens) - 3 + place}]" for place in range(3)]
    assert field(file, "tokenizer.ggml.token_type")[-3:] == [5, 5, 5]
    assert field(file, "tokenizer.ggml.token_type")[:5] == [3, 3, 3, 3, 1]
    assert (field(file, "tokenizer.ggml.eos_token_id"), field(file, "tokenizer.ggml.eot_token_id")) == (3, 0)
    assert field(file, "general.sampling.temp") == 0.5
    assert field(file, "general.sampling.min_p") == 0.0
    assert field(file, "tokenizer.ggml.add_bos_token") is False


def test_adapters_are_exported_as_the_model_that_they_make(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "qwen3")
    model = models.load_policy(base)
    adapt(model, Lora(rank=2, alpha=4), seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight))
    models.save(model, models.load_tokenizer(base), tmp_path / "adapted", trunk="base")
    plain = triptych.merge(tmp_path / "adapted", tmp_path / "plain" / "adapted")
    assert exported(tmp_path / "adapted").read_bytes() == exported(plain).read_bytes()


def byte_level(first: Any = None, *, regex: bool = True, blank: bool = False) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=regex)
    return last if first is None else pre_tokenizers.Sequence([first, last])


def split(regex: str) -> Any:
    return byte_level(pre_tokenizers.Split(Regex(regex), "isolated"), regex=False)


def tokenizer_of(rules: Any, **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that was trained on the text behind a pre-tokenizer."""
    backend = Tokenizer(BPE(**more))
    backend.pre_tokenizer, backend.decoder = rules, decoders.ByteLevel()
    backend.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    template.attach(made, "chatml")
    return made


DIGITS = pre_tokenizers.Digits(individual_digits=True)
NAMED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt-2": lambda: tokenizer_of(byte_level()),
    "smollm": lambda: tokenizer_of(byte_level(DIGITS)),
    "llama-bpe": lambda: tokenizer_of(split(LLAMA3), ignore_merges=True),
    "dbrx": lambda: tokenizer_of(split(LLAMA3)),
    "qwen2": lambda: tokenizer_of(split(QWEN2)),
    "qwen35": lambda: tokenizer_of(split(QWEN35)),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_pre_tokenizer_is_known_by_its_rules(name: str) -> None:
    assert pre_tokenizer(NAMED[name]()) == name


@pytest.mark.parametrize("name", NAMED)
def test_a_gguf_file_cuts_texts_as_the_model_did_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    """transformers 5.23 reads smollm's as GPT-2's, which cuts the empty line before a numbered item in two."""
    tokenizer = NAMED[name]()
    folder = write_model(tmp_path / "model", tokenizer=tokenizer)
    _, words, changes = models.load_gguf(exported(folder))
    assert pre_tokenizer(words) == name
    assert changes == ["weights dequantised from GGUF"]
    for text in (TEXT, "\n\n1. One\n\n2. Two", "in  2024 and 1,234", "don't DON'T"):
        assert words(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_rules_that_nobody_knows_here_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = exported(write_model(tmp_path / "model"))
    monkeypatch.setattr(cutting, "named_in", lambda file: "poro-chat")
    taken = source.take(str(file), tmp_path / "ours")
    assert any("the rules that the file calls poro-chat are not known here" in change for change in taken.changes)


def test_our_own_tokenizer_has_a_name_and_the_rules_are_those_of_transformers() -> None:
    assert pre_tokenizer(train_tokenizer([Document(TEXT)], 300, 64)) == "gpt-2"
    assert (QWEN2, QWEN35) == (QWEN2_OF_TRANSFORMERS, QWEN35_OF_TRANSFORMERS)


@pytest.mark.parametrize(("tokenizer", "reason"), [
    (lambda: tokenizer_of(byte_level(blank=True)), "no name for its pre_tokenizer"),
    (lambda: tokenizer_of(byte_level(), ignore_merges=True), "no name for its pre_tokenizer"),
    (lambda: tokenizer_of(split(QWEN2.replace("|'d", ""))), "no name for its pre_tokenizer"),
    (lambda: tokenizer_of(byte_level(pre_tokenizers.Digits())), "no name for its pre_tokenizer"),
    (lambda: normalized(normalizers.Lowercase()), "its normalizer is Lowercase"),
    (lambda: dropping(), r"its dropout is 0\.5"),
    (lambda: word_pieces(), "it is WordPiece on Whitespace, and only byte-level BPE"),
])
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    tokenizer: Callable[[], PreTrainedTokenizerFast], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        pre_tokenizer(tokenizer())


def normalized(normalizer: Any) -> PreTrainedTokenizerFast:
    made = tokenizer_of(byte_level())
    made.backend_tokenizer.normalizer = normalizer
    return made


def dropping() -> PreTrainedTokenizerFast:
    made = tokenizer_of(byte_level())
    made.backend_tokenizer.model.dropout = 0.5
    return made


def word_pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(("family", "settings", "reason"), [
    ("mistral", {"sliding_window": 16}, "a sliding window of 16 tokens is not exported"),
    ("qwen3", {"attention_bias": True}, "attention_bias of qwen3 is not exported"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
    ("qwen2", {"rope_parameters": SLOWED}, "positions by rope_type llama3 are not exported"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
])
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], reason: str
) -> None:
    folder = write_model(tmp_path / "model", family)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    if settings.get("attention_bias"):  # its weights must be there, or the folder itself is refused
        shutil.rmtree(folder)
        write_model(folder, family, **settings)
    with pytest.raises(ModelError, match=reason):
        exported(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_that_writes_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "qwen3")
    reward, words = models.load_reward(folder, fresh=True), models.load_tokenizer(folder)
    models.save(reward, words, tmp_path / "reward")
    with pytest.raises(ModelError, match=r"a reward model is not exported: llama\.cpp reads a head that scores only"):
        exported(tmp_path / "reward")


def test_nothing_is_written_over_and_wrong_names_are_refused_first(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with pytest.raises(RecipeError, match=r"q4_k: must be one of f32, .*llama-quantize .* Q4_K_M`"):
        exported(folder, "q4_k")
    with pytest.raises(RecipeError, match=r"must end in \.gguf"):
        triptych.export(folder, tmp_path / "model.bin", progress=Silent())
    first = exported(folder)
    for kept in (first, first.with_suffix(".Modelfile")):
        written = kept.read_bytes()
        with pytest.raises(RunError, match="exists; nothing was written"):
            exported(folder)
        assert kept.read_bytes() == written
        first.unlink(missing_ok=True)


def test_numbers_that_a_type_cannot_hold_leave_no_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    model, words = models.load_policy(folder), models.load_tokenizer(folder)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    models.save(model, words, folder)
    with pytest.raises(ModelError, match=r"blk.0.ffn_up.weight has numbers that float16 cannot hold; give --type bf16"):
        exported(folder, "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    exported(folder, "bf16")


def test_the_modelfile_says_what_the_folder_says(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert exported(folder).with_suffix(".Modelfile").read_text() == (
        'FROM ./model-f32.gguf\nTEMPLATE """{{- range $i, $turn := .Messages }}{{ if eq .Role "system" }}<|im_start|>'
        'system\n{{ else }}{{ if eq .Role "assistant" }}<|im_end|>\n<|im_start|>assistant\n{{ else if eq $i 0 }}'
        '<|im_start|>user\n{{ else if and (eq $i 1) $.System }}<|im_end|>\n<|im_start|>user\n{{ else }}<|im_end|>\n'
        '<|im_start|>user\n{{ end }}{{ end }}{{ .Content }}{{ if and (ne .Role "assistant") (eq (len (slice $.Messages '
        '$i)) 1) }}<|im_end|>\n<|im_start|>assistant\n{{ end }}{{ end }}"""\nPARAMETER temperature 0\nPARAMETER '
        'repeat_penalty 1\nPARAMETER stop "<|im_end|>"\n'
    )
    found = [Message("system", "Be brief."), *user("Who?"), Message("assistant", 'I, "me".')]
    (folder / "prompt.json").write_text(json.dumps({"messages": turns(tuple(found))}))
    settings = json.loads((folder / "generation_config.json").read_text())
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 96}
    (folder / "generation_config.json").write_text(json.dumps(settings | drawn))
    lines = exported(folder, "f16").with_suffix(".Modelfile").read_text().partition("}}{{ end }}\"\"\"\n")[2]
    assert lines.splitlines() == [
        'SYSTEM """Be brief."""', 'MESSAGE user """Who?"""', 'MESSAGE assistant """I, "me"."""',
        "PARAMETER temperature 0.7", "PARAMETER repeat_penalty 1", "PARAMETER top_p 0.9", "PARAMETER top_k 0",
        "PARAMETER min_p 0", "PARAMETER num_predict 96", 'PARAMETER stop "<|im_end|>"',
    ]
    (folder / "prompt.json").write_text(json.dumps({"messages": [{"role": "system", "content": 'a """ b'}]}))
    with pytest.raises(ModelError, match='a Modelfile cannot hold """'):
        exported(folder, "q8_0")


@pytest.mark.parametrize(("text", "is_chain"), [
    (template.CHATML, True),
    ("{{ bos_token }}" + template.CHATML, True),
    ("{% for m in messages %}{{ loop.index }}{{ m['role'] + m['content'] + eos_token }}{% endfor %}", False),
    ("{% for m in messages %}{{ '{{' + m['role'] + m['content'] + eos_token }}{% endfor %}", False),
])
def test_a_template_that_is_more_than_turns_is_not_written_for_ollama(text: str, is_chain: bool) -> None:
    tokenizer = train_tokenizer([Document(TEXT)], 300, 64)
    tokenizer.chat_template = text
    assert (turns_of(tokenizer) is not None) is is_chain


def test_bos_is_added_where_texts_and_chats_have_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tokenizer = models.load_tokenizer(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save_pretrained(folder)
    assert field(exported(folder), "tokenizer.ggml.add_bos_token") is False  # llama.cpp would put it before chats too
    tokenizer.chat_template = "{{ bos_token }}" + template.CHATML
    tokenizer.save_pretrained(folder)
    file = exported(folder, "f16")
    assert field(file, "tokenizer.ggml.add_bos_token") is True
    assert "endoftext" not in file.with_suffix(".Modelfile").read_text()  # nor does Ollama need it told


PROMPTS = [
    "What is the capital of France?", "Write a haiku about the sea.", "Name three fruits.", "Why is the sky blue?",
    "Translate 'good morning' to Spanish.", "What is 12 plus 30?", "Tell me a joke.", "Give me a recipe for pancakes.",
    "Who wrote Hamlet?", "List the planets.", "How do I tie a tie?", "Explain gravity to a child.",
    "What day follows Monday?", "Write one sentence about a dog.", "What is photosynthesis?",
    "Name a prime number above 100.", "Describe a sunset.", "How are you?", "What is the largest ocean?",
    "Summarise: The cat sat on the mat. It was warm.",
]
GGUF = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
Post = Callable[[str, dict[str, Any]], Any]


@contextmanager
def llama_cpp(file: Path, *, exact: bool = False) -> Iterator[Post]:
    """A server of llama.cpp on this machine, asked by path and JSON; its cache is in float16 unless it is `exact`."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp: a wheel with llama.cpp inside")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 1024, 1, False, 0
    if exact:
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)

    def post(path: str, body: dict[str, Any]) -> Any:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    yield post


def greedy(post: Post, prompt: list[int], count: int, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
    answer: dict[str, Any] = post("/completion", body | more)
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same_logprobs(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "model", family, tied=False)
    model = models.load_policy(folder)
    tokenizer = models.load_tokenizer(folder)
    tokens = tokenizer(TEXT * 3)["input_ids"]
    with torch.no_grad():
        each = torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)
    # To the last place that a letter follows: of special tokens and of parts of a letter llama.cpp says no logprobs.
    shown = [best > 3 and tokenizer.decode(best).isascii() for best in each.argmax(-1).tolist()]
    length = 1 + max(place for place, is_shown in enumerate(shown) if is_shown)
    prompt, logprobs = tokens[:length], each[length - 1]
    assert len(prompt) > 100
    with llama_cpp(exported(folder), exact=True) as post:
        (first,) = greedy(post, prompt, 1, n_probs=20)["completion_probabilities"]
    theirs = {token["id"]: token["logprob"] for token in first["top_logprobs"]}
    assert list(theirs) == logprobs.topk(20).indices.tolist()
    assert list(theirs.values()) == pytest.approx(logprobs.topk(20).values.tolist(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_llama_cpp_cuts_a_text_into_the_same_tokens(tmp_path: Path, name: str) -> None:
    tokenizer = NAMED[name]()
    config = LlamaConfig(**SHAPE, vocab_size=len(tokenizer))
    models.save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "model")
    with llama_cpp(exported(tmp_path / "model")) as post:
        for text in (TEXT, *TEXT.split(), "a<|im_end|>b", "\n\n\n", " 1 22 333 4444", "x\u0301"):
            assert post("/tokenize", {"content": text, "parse_special": True})["tokens"] == tokenizer(text)["input_ids"]
        chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}] * 2
        for turns_ in (chat[:1], chat[:3], [{"role": "system", "content": "Be brief."}, *chat[:3]]):
            written = tokenizer.apply_chat_template(turns_, tokenize=False, add_generation_prompt=True)
            assert post("/apply-template", {"messages": turns_})["prompt"] == written


@pytest.mark.slow
@pytest.mark.skipif(not GGUF.exists(), reason="make smollm2 fetches the file")
@pytest.mark.parametrize(("kind", "lead"), [("f32", 0.0), ("f16", 0.01)])
def test_llama_cpp_writes_the_same_greedy_tokens_on_20_prompts(tmp_path: Path, kind: str, lead: float) -> None:
    """Beside matrices in float16 llama.cpp rounds what they are multiplied with too: a tie may go the other way."""
    source.take(str(GGUF), tmp_path / "model")
    tokenizer, model = models.load_tokenizer(tmp_path / "model"), models.load_policy(tmp_path / "model")
    model = model.half().float() if kind == "f16" else model
    equal = 0
    with llama_cpp(exported(tmp_path / "model", kind)) as post, torch.no_grad():
        for asked in PROMPTS:
            prompt = template.prompt_tokens(tokenizer, Prompt.of(asked))
            chat = post("/apply-template", {"messages": [{"role": "user", "content": asked}]})["prompt"]
            assert post("/tokenize", {"content": chat, "parse_special": True})["tokens"] == prompt
            theirs = greedy(post, prompt, 32)["tokens"]
            written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=32)[0].tolist()
            mine = written[len(prompt) :]
            pairs = enumerate(zip(theirs, mine, strict=False))
            place = next((place for place, (one, other) in pairs if one != other), 32)
            equal += theirs == mine
            logits = model(torch.tensor([written])).logits[0, len(prompt) - 1 :]
            first, second = logits[min(place, len(mine) - 1)].topk(2).values.tolist()
            assert theirs == mine or first - second < lead, (asked, place, first - second)
    assert equal >= (20 if kind == "f32" else 19)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, whose text/template Ollama uses")
def test_what_ollama_writes_is_what_the_chat_template_writes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([Document(TEXT)], 300, 64)
    made = turns_of(tokenizer)
    assert made is not None
    (tmp_path / "template").write_text(made.template)
    (tmp_path / "main.go").write_text("""package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
    text, _ := os.ReadFile("template")
    var chat []Message
    json.Unmarshal([]byte(os.Args[1]), &chat)
    system := ""
    if chat[0].Role == "system" { system = chat[0].Content }
    made := template.Must(template.New("").Parse(string(text)))
    if err := made.Execute(os.Stdout, map[string]any{"Messages": chat, "System": system}); err != nil { panic(err) }
}
""")
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I.\n"}] * 2
    for messages in (chat[:1], chat[:3], [{"role": "system", "content": "Be {{ brief }}."}, *chat[:3]]):
        command = ["go", "run", "main.go", json.dumps(messages)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert done.stdout.decode() == written
