"""A release loads without Triptych, says what it is, and shows every change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from triptych.api import merge
from triptych.audit.record import audit_beside
from triptych.base.record import BaseRecord
from triptych.data import template
from triptych.display import printable
from triptych.engine import models
from triptych.engine.adapter_folder import rename_trunk
from triptych.engine.adapters import Lora, adapt
from triptych.engine.device import hardware
from triptych.engine.inspection import WEIGHTS
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import RewardModel
from triptych.errors import ModelError, ReleaseError, RunError
from triptych.records import Comparison, Conversation, Prompt, user
from triptych.release.family import Shown, assemble
from triptych.release.lineage import ROLES, DataFile, Lineage, Parent, ReleaseForm, Role
from triptych.release.signature import Signing
from triptych.release.verification import verify
from triptych.report.summary import (
    AuditSummary,
    Base,
    Baseline,
    FinalVerdict,
    ModelScore,
    RoundSummary,
    StageRow,
    Summary,
    TaskScore,
)
from triptych.results import origin_of
from triptych.storage import sha256

ANSWERS = ["A language model.", "Go away!", "déjà vu\n\n你好 <|im_end|> and more", "x"]


def tokenizer() -> PreTrainedTokenizerFast:
    letters = ["<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>")
    template.attach(made, "chatml")
    return made


def train(folder: Path) -> dict[Role, Path]:
    """Three models as the stages would leave them, with a file beside each that is none of the release's."""
    shared = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(shared),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    paths: dict[Role, Path] = {role: folder / role for role in ROLES}
    for role in ("base", "instruct"):
        models.save(LlamaForCausalLM(config), shared, paths[role])
    reward = models.load_reward(paths["instruct"], fresh=True, seed=1)
    with torch.no_grad():
        reward.score.weight.mul_(50)  # so that scores differ by far more than the tolerance
    models.save(reward, shared, paths["reward"])
    for path in paths.values():
        (path / "metrics.jsonl").write_text('{"seconds": 12.5}\n')
    return paths


def train_adapted(folder: Path) -> dict[Role, Path]:
    """The same, but that Instruct and Reward are adapters over the Base, which generates otherwise than they do."""
    paths = train(folder)
    shared = tokenizer()
    for role in ("instruct", "reward"):
        shutil.rmtree(paths[role])
        model: Any = (models.load_policy(paths["base"]) if role == "instruct"
                      else models.load_reward(paths["base"], fresh=True, seed=1))
        adapt(model, Lora(rank=2, alpha=4), seed=len(role))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn_like(weight))
            if role == "reward":
                model.score.weight.mul_(50)
        models.save(model, shared, paths[role], trunk="base")
    return paths


def summary(seconds: float = 98765.4321) -> Summary:
    task = {"story | long": TaskScore(score=0.7, interval=(0.6, 0.8), prompts=100)}
    scores = [
        ModelScore(
            name=name,
            round=number,
            decoding="greedy",
            score=score,
            interval=(score - 0.05, score + 0.05),
            prompts=300,
            decodings={},
            reward=None,
            kl=None if number is None else 0.25 * number,
            mean_length=40.0,
            champion=number == 2,
            by_task=task,
        )
        for name, number, score in [
            ("base, few-shot", None, 0.2111),
            ("instruct", 0, 0.4222),
            ("round 1", 1, 0.5333),
            ("round 2", 2, 0.6444),
        ]
    ]
    audit = AuditSummary(
        round=2,
        comparisons=400,
        trained_on=2000,
        accuracy=0.8767,
        interval=(0.8432, 0.9012),
        ceiling=0.9,
        baselines={"longer wins": 0.55, "random": 0.5},
        by_group=task,
        calibration_error=0.03,
        bins=[],
        length_correlation=-0.1,
        when_longer=0.88,
        when_shorter=None,
        verdict="passed",
    )
    gate = RoundSummary(
        round=1,
        method="grpo",
        reward_before=0.0,
        reward_after=1.0,
        judge_before=0.42,
        judge_after=0.53,
        win_rate=0.61,
        interval=(0.56, 0.66),
        prompts=300,
        decoding_before="temperature 0.5",
        decoding_after="greedy",
        kl=0.25,
        length_before=41.0,
        length_after=40.0,
        decision="promoted",
        reason="the judge prefers it",
        curve=[],
    )
    stage = StageRow(name="base", kind="model", seconds=seconds, fingerprint="f", digest="d", parents=[])
    return Summary(
        name="tiny",
        version="1.0",
        judge="exact judge",
        verdict=FinalVerdict(
            better=True, rival="Instruct at temperature 0.5", gain=0.2222, gain_interval=(0.15, 0.29),
            gain_at_temperature_1=0.3, gain_at_temperature_1_interval=(0.2, 0.4), missed=["too slow"],
            baselines=[Baseline(
                name="Instruct at temperature 0.5", free=True, drawn=1, score=0.5, interval=(0.4, 0.6), gain=0.2222,
                gain_interval=(0.15, 0.29),
            )],
        ),
        base=Base(
            source="trained from scratch",
            parameters=12345,
            vocabulary=259,
            bits_per_byte=1.234,
            tokens_seen=1_000_000,
        ),
        models=scores,
        audits=[audit],
        rounds=[gate],
        stages=[stage],
        losses={},
        seconds=seconds,
        peak_memory_gib=1.5,
        release=None,
    )


LINEAGE: dict[Role, Lineage] = {
    "base": Lineage("fp-base", data=(DataFile("stories.jsonl", "aa" * 32, 5000),)),
    "instruct": Lineage("fp-instruct", parents=(Parent("base", "bb" * 32), Parent("reward", "cc" * 32))),
    "reward": Lineage("fp-reward", parents=(Parent("someone/model", "dd" * 20, hub=True),)),
}
GREEDY = Sampling(24, 0.0)
SHOWN = Shown(
    "Once upon a time there was",
    [Prompt.of("Who are you?"), Prompt(user("Say `it's` in \"two\"\nlines."))],
    [Comparison(Prompt.of("Who are you?"), "A language model.", "Go away!")],
)


def release(
    folder: Path, paths: dict[Role, Path], numbers: Summary | None = None, decoding: Sampling = GREEDY,
    signing: Signing | None = None, dtype: torch.dtype = torch.float32, form: ReleaseForm = "merged",
    prompt: Path | None = None, lineage: dict[Role, Lineage] = LINEAGE,
) -> Path:
    assemble(
        folder,
        name="Tiny Family",
        version="1.0",
        license="apache-2.0",
        models=paths,
        lineage=lineage,
        summary=numbers or summary(),
        recipe="ee" * 32,
        shown=SHOWN,
        datasets=["someone/questions"],
        decoding=decoding,
        dtype=dtype,
        form=form,
        signing=signing,
        prompt=prompt,
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Path]:
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def made(tmp_path: Path, trained: dict[Role, Path]) -> Path:
    return release(tmp_path / "release", trained)


def code(card: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", card.read_text(), re.DOTALL | re.MULTILINE))


def printed(card: Path) -> str:
    """What the card says that its code prints."""
    (block,) = re.findall(r"^(`{3,})text\n(.*?)^\1$", card.read_bytes().decode(), re.DOTALL | re.MULTILINE)
    return str(block[1])


def run_without_triptych(folder: Path, program: str, **environment: str) -> str:
    """What the program prints where importing triptych fails."""
    guard = "import sys\nsys.modules['triptych'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", guard + program], cwd=folder, capture_output=True, check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def each_run_without_triptych(folder: Path, programs: Sequence[tuple[str, str]], **environment: str) -> list[str]:
    """What each program prints in its folder; one process runs them all."""
    everything = f"""
import contextlib, io, json, os
texts = []
for folder, program in {programs!r}:
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(program, {{}})
    texts.append(output.getvalue())
print(json.dumps(texts))
"""
    texts: list[str] = json.loads(run_without_triptych(folder, everything, **environment))
    return texts


def test_the_cards_code_prints_what_the_card_says(tmp_path: Path, trained: dict[Role, Path]) -> None:
    """In the folder, and by a name of the Hub, from its cache; what no page can show is left out."""
    hub, programs, said = tmp_path / "hub", [], []
    for way, decoding in (("greedy", GREEDY), ("sampled", Sampling(24, 0.7))):
        folder = release(tmp_path / way, trained, decoding=decoding)
        for role in ROLES:
            repository = hub / f"models--someone--{way}-{role}"
            (repository / "refs").mkdir(parents=True)
            (repository / "refs" / "main").write_text("a" * 40)
            shutil.copytree(folder / role, repository / "snapshots" / ("a" * 40))
            program = code(folder / role / "README.md")
            assert program.count('name = "."') == 1
            named = program.replace('name = "."', f'name = "someone/{way}-{role}"')
            programs += [(str(folder / role), program), (str(tmp_path), named)]
            said += [printed(folder / role / "README.md")] * 2
    texts = each_run_without_triptych(tmp_path, programs, HF_HUB_CACHE=str(hub), HF_HUB_OFFLINE="1")
    assert [printable(text).replace("\t", "    ") for text in texts] == said
    assert len(set(said)) == 4, "greedy and sampled answers differ, the others do not"


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_adapters_are_released_over_the_base_and_do_what_the_merged_models_do(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    paths = train_adapted(tmp_path / "trained")
    models.cast(paths["base"], dtype)  # as the parent is stored
    folder = release(tmp_path / "adapters", paths, dtype=dtype, form="adapters")
    plain = release(tmp_path / "merged", paths, dtype=dtype)
    assert verify(folder) == []
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")) == [
        "base/model.safetensors", "instruct/adapter_model.safetensors", "reward/adapter_model.safetensors"
    ]
    programs = [(str(folder / role), code(folder / role / "README.md")) for role in ROLES]
    said = [printed(folder / role / "README.md") for role in ROLES]
    assert [printable(text) for text in each_run_without_triptych(tmp_path, programs)] == said
    assert ["from peft import PeftModel" in program for _, program in programs] == [role != "base" for role in ROLES]
    assert "triptych merge" in (folder / "README.md").read_text()
    assert "peft" not in "".join(path.read_text() for path in plain.rglob("README.md"))
    conversations = [Conversation(Prompt.of("Who are you?"), answer) for answer in ANSWERS]
    scores = [RewardModel(place / "reward", precise=True).raw(conversations) for place in (folder, plain)]
    assert max(scores[0]) - min(scores[0]) > 1
    assert scores[0] == pytest.approx(scores[1], abs=1e-4 if dtype == torch.float32 else 0.5)
    assert [place.name for place in plain.rglob("adapter*")] == []
    made_plain = merge(folder, tmp_path / "plain")
    for role in ROLES:
        assert (made_plain / role / WEIGHTS).read_bytes() == (plain / role / WEIGHTS).read_bytes()
        models.load_tokenizer(made_plain / role)
    assert not list(made_plain.rglob("README.md")) + list(made_plain.rglob("manifest*"))
    with pytest.raises(RunError, match="exists"):
        merge(folder, made_plain)
    with pytest.raises(ModelError, match="nowhere: there is no such folder"):
        merge(tmp_path / "nowhere", tmp_path / "again")
    with pytest.raises(ModelError, match="no model here is adapters"):
        merge(plain, tmp_path / "again")


def test_adapters_over_another_model_than_the_base_are_released_merged(tmp_path: Path) -> None:
    paths = train_adapted(tmp_path)
    shutil.copytree(paths["base"], tmp_path / "other")
    rename_trunk(paths["reward"], "other")
    with pytest.raises(ReleaseError, match=r"its adapters are of .*other, and not of the Base; release it merged"):
        release(tmp_path / "release", paths, form="adapters")
    assert verify(release(tmp_path / "merged", paths)) == []


def test_the_rewards_code_scores_the_same_on_either_side(made: Path) -> None:
    program = code(made / "reward" / "README.md") + f"""
import json
import transformers
assert type(tokenizer).__module__.startswith("transformers.")
scores = {{}}
for side in ("left", "right"):
    tokenizer.padding_side = side
    scores[side] = score([{{"role": "user", "content": "Who are you?"}}], {ANSWERS!r})
print(json.dumps(scores))
"""
    scores = json.loads(run_without_triptych(made / "reward", program).splitlines()[-1])

    inside, words = models.load_reward(made / "reward", fresh=False), models.load_tokenizer(made / "reward")
    expected = []
    for answer in ANSWERS:
        asked, (learnt,) = template.answer_tokens(words, Prompt.of("Who are you?"), [answer])
        tokens = [*asked, *learnt]
        with torch.no_grad():
            states = inside.model(torch.tensor([tokens])).last_hidden_state[0, -1]
            expected.append(inside.score(states).item())
    assert max(expected) - min(expected) > 0.1, "the scores must differ for the comparison to mean something"
    for side in ("left", "right"):
        assert scores[side] == pytest.approx(expected, abs=1e-4), side


@pytest.mark.usefixtures("float32")
def test_a_release_is_decoded_as_it_was_measured(tmp_path: Path, trained: dict[Role, Path]) -> None:
    folder = release(tmp_path / "release", trained) / "instruct"
    told = json.loads((folder / "generation_config.json").read_text())
    assert (told["do_sample"], told["max_new_tokens"]) == (False, 24)
    assert not {"temperature", "top_p", "top_k", "max_length"} & told.keys()
    assert Sampling.of(folder) == GREEDY
    prompts = [Prompt(user(text)) for text in ("Who are you?", "Write a story.", "a")]
    policy = Policy.open(folder)
    ours = [list(group[0].tokens) for group in policy.write(prompts, Sampling.of(folder))]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, tokens in zip(prompts, ours, strict=True):
        given = torch.tensor([policy.render(prompt)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that of a temperature without sampling among them
            output = model.generate(given, attention_mask=torch.ones_like(given))
        assert output[0, given.shape[1]:].tolist() == tokens


@pytest.mark.usefixtures("float32")
def test_a_release_that_samples_draws_from_the_distribution_that_was_measured(
    tmp_path: Path, trained: dict[Role, Path]
) -> None:
    sampling = Sampling(1, 0.5, top_p=0.9)
    folder = release(tmp_path / "release", trained, decoding=sampling) / "instruct"
    assert Sampling.of(folder) == sampling
    policy = Policy.open(folder)
    prompt = Prompt(user("Who are you?"))
    (ours,) = policy.write([prompt], sampling, n=2000)
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = torch.tensor([policy.render(prompt)])
    torch.manual_seed(0)
    output = model.generate(given, attention_mask=torch.ones_like(given), num_return_sequences=2000)
    counts = [torch.bincount(torch.tensor(tokens), minlength=model.config.vocab_size)
              for tokens in ([rollout.tokens[0] for rollout in ours], output[:, -1].tolist())]
    # Total variation of two samples of 2,000 from one distribution over some 60 tokens: about 0.1 by chance.
    assert float((counts[0] - counts[1]).abs().sum()) / 4000 < 0.15
    assert int(((counts[0] > 0) | (counts[1] > 0)).sum()) > 3


def test_a_prompt_that_instruct_answers_better_lies_beside_it(
    made: Path, tmp_path: Path, trained: dict[Role, Path]
) -> None:
    (tmp_path / "prompt.json").write_text('{"messages": [{"role": "system", "content": "be kind"}]}\n')
    folder = release(tmp_path / "prompted", trained, prompt=tmp_path / "prompt.json")
    assert (folder / "instruct" / "prompt.json").read_bytes() == (tmp_path / "prompt.json").read_bytes()
    assert "prompt.json" in (folder / "instruct" / "README.md").read_text()
    assert "prompt.json" not in (made / "instruct" / "README.md").read_text()
    assert verify(folder) == []


def test_a_base_is_deployed_with_a_limit_of_its_own(made: Path) -> None:
    """transformers would stop it after 20 tokens, prompt included."""
    told = json.loads((made / "base" / "generation_config.json").read_text())
    assert (told["do_sample"], told["max_new_tokens"]) == (False, 24)


def test_prompts_are_padded_where_no_answer_stands(made: Path) -> None:
    words = AutoTokenizer.from_pretrained(made / "instruct")
    model = AutoModelForCausalLM.from_pretrained(made / "instruct")
    chats = [[{"role": "user", "content": text}] for text in ("Who are you?", "Write a long story of a fox.")]

    def written(chats: Any) -> list[str]:
        batch = words.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
        texts: list[str] = words.batch_decode(output, skip_special_tokens=True)
        return texts

    assert written(chats) == [*written(chats[:1]), *written(chats[1:])]


def test_a_bfloat16_parents_family_is_released_in_bfloat16(tmp_path: Path, trained: dict[Role, Path]) -> None:
    folder = release(tmp_path / "release", trained, dtype=torch.bfloat16)
    assert verify(folder) == []
    for role in ROLES:
        kept, full = load_file(folder / role / WEIGHTS), load_file(trained[role] / WEIGHTS)
        assert kept.keys() == full.keys()
        assert all(torch.equal(kept[name], full[name].bfloat16()) for name in full)
        assert json.loads((folder / role / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder / "instruct").dtype == torch.bfloat16
    # The examples are scored by what is released, and not by what was trained.
    examples = [json.loads(line) for line in (folder / "reward" / "examples.jsonl").read_text().splitlines()]
    words = AutoTokenizer.from_pretrained(folder / "reward")
    batch = words.apply_chat_template(
        [each["messages"] for each in examples], padding=True, return_dict=True, return_tensors="pt"
    )
    scores = {
        place: AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32)(**batch).logits[:, 0]
        for place in (folder / "reward", trained["reward"])
    }
    expected = torch.tensor([each["score"] for each in examples])
    assert (scores[folder / "reward"] - expected).abs().max() < 1e-5
    assert (scores[trained["reward"]] - expected).abs().max() > 1e-4


def test_of_a_folders_own_settings_only_the_tokens_stay(tmp_path: Path, trained: dict[Role, Path]) -> None:
    """Several end tokens are an answer's ends wherever it is written; a penalty was in force nowhere."""
    parents = {role: tmp_path / role for role in trained}
    for role, path in trained.items():
        shutil.copytree(path, parents[role])
    place = parents["instruct"] / "generation_config.json"
    told = json.loads(place.read_text()) | {"eos_token_id": [1, 2], "repetition_penalty": 1.3, "max_length": 999}
    place.write_text(json.dumps(told))
    found = json.loads((release(tmp_path / "release", parents) / "instruct" / "generation_config.json").read_text())
    assert found["eos_token_id"] == [1, 2]
    assert not {"repetition_penalty", "max_length"} & found.keys()


def test_cards_have_metadata_that_the_hub_understands(made: Path) -> None:
    for role, pipeline in zip(
        ROLES, ("text-generation", "text-generation", "text-classification"), strict=True
    ):
        data = ModelCard.load(made / role / "README.md").data
        assert (data.license, data.language) == ("apache-2.0", "en")
        assert (data.library_name, data.pipeline_tag) == ("transformers", pipeline)
        assert {"triptych", role} <= set(data.tags)
    assert ModelCard.load(made / "base" / "README.md").data.base_model is None
    assert ModelCard.load(made / "reward" / "README.md").data.base_model == ["someone/model"]
    parents = ModelCard.load(made / "instruct" / "README.md").data.base_model
    assert parents == ["Tiny-Family-base"], "a reward model is no starting point of a policy"


def test_a_card_has_its_results_data_and_parents_as_metadata(made: Path) -> None:
    data = {role: ModelCard.load(made / role / "README.md").data for role in ROLES}
    found = {
        role: [(each.metric_type, each.metric_value, each.metric_name) for each in data[role].eval_results or []]
        for role in ROLES
    }
    assert found == {
        "base": [
            ("bits_per_byte", 1.234, "bits per byte"),
            ("judge_score", 0.2111, "score by exact judge, 95% interval 0.161 to 0.261"),
        ],
        "instruct": [("judge_score", 0.6444, "score by exact judge, 95% interval 0.594 to 0.694")],
        "reward": [("accuracy", 0.8767, "pairwise accuracy, 95% interval 0.843 to 0.901")],
    }
    whole = ModelCard.load(made / "README.md").data
    assert [each.metric_value for each in whole.eval_results or []] == [0.6444, 0.8767]
    for each in (*data.values(), whole):
        assert (each.datasets, each.license) == (["someone/questions"], "apache-2.0")
    assert data["instruct"].to_dict()["base_model_relation"] == "finetune"


def test_a_bases_commit_on_the_hub_is_in_its_lineage_and_on_its_card(
    tmp_path: Path, trained: dict[Role, Path]
) -> None:
    record = BaseRecord(source="someone/tiny", source_kind="hub", source_digest="ab" * 20, parameters=1, vocabulary=1,
                        tokens_seen=None, bits_per_byte=None)
    assert record.revision == "ab" * 20
    assert record.model_copy(update={"source_kind": "folder"}).revision is None
    assert origin_of(record) == (Parent("someone/tiny", "ab" * 20, hub=True),)
    numbers = summary()
    told = numbers.base.model_copy(update={"source": record.source, "revision": record.revision})
    lineage = LINEAGE | {"base": Lineage("fp-base", origin_of(record))}
    made = release(tmp_path / "release", trained, numbers.model_copy(update={"base": told}), lineage=lineage)
    card = (made / "base" / "README.md").read_text()
    assert f"- Source: someone/tiny at `{'ab' * 20}`.\n" in card
    assert f"| someone/tiny | `{'ab' * 20}` |" in card
    assert ModelCard(card).data.get("base_model") == ["someone/tiny"]
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["models"]["base"]["parents"] == [{"name": "someone/tiny", "digest": "ab" * 20}]


def test_a_card_says_how_to_sample_and_what_the_run_took(made: Path) -> None:
    for role in (*ROLES, "."):
        assert f"The whole run took about 30 hours on {hardware()}." in (made / role / "README.md").read_text()
    assert "follow by themselves: greedy, at most 24 tokens." in (made / "instruct" / "README.md").read_text()


def test_cards_quote_the_summary(made: Path) -> None:
    card = {role: (made / role / "README.md").read_text() for role in ROLES}
    for role in ROLES:
        for section in ("How to use it", "Parents and data", "Evaluation", "Limits", "Licence"):
            assert f"\n## {section}\n" in card[role], (role, section)
        assert "too slow" in card[role]
        assert "\n\n\n" not in card[role]
        assert f"fp-{role}" in card[role]
    assert "1.234 bits per byte" in card["base"]
    assert f"| stories.jsonl | 5000 | `{'aa' * 32}` |" in card["base"]
    assert "| round 2 (**released**) | greedy | 0.644 | [0.594, 0.694] |" in card["instruct"]
    assert "gain +0.222 [0.150, 0.290]" in card["instruct"]
    assert "| story \\| long | 0.700 |" in card["instruct"]
    assert "**0.877** [0.843, 0.901]" in card["reward"]
    assert "| longer wins | 0.550 |" in card["reward"]
    assert len((made / "reward" / "examples.jsonl").read_text().splitlines()) == 2
    record = audit_beside(made / "reward")
    assert record is not None
    assert (record.accuracy, record.verdict) == (0.8767, "passed")
    assert "reward/audit.json" in json.loads((made / "manifest.json").read_text())["files"]
    assert "0.644 [0.594, 0.694]" in (made / "README.md").read_text()


def test_a_run_that_measured_little_still_has_cards(tmp_path: Path, trained: dict[Role, Path]) -> None:
    bare = summary().model_copy(update={"verdict": None, "models": [], "audits": [], "rounds": []})
    made = release(tmp_path / "release", trained, bare)
    assert "No scores were measured" in (made / "instruct" / "README.md").read_text()
    assert "was not audited" in (made / "reward" / "README.md").read_text()
    assert audit_beside(made / "reward") is None


def test_equal_runs_are_equal_bytes_whatever_time_they_took(
    tmp_path: Path, trained: dict[Role, Path]
) -> None:
    first = release(tmp_path / "first", trained, summary(seconds=1.0))
    second = release(tmp_path / "second", trained, summary(seconds=2.0))
    names = sorted(path.relative_to(first) for path in first.rglob("*"))
    assert names == sorted(path.relative_to(second) for path in second.rglob("*"))
    files = [name for name in names if (first / name).is_file()]
    assert len(files) > 15
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        assert str(tmp_path).encode() not in (first / name).read_bytes(), name
        assert name.name != "metrics.jsonl", "only what other programs read is released"


def test_the_manifest_lists_everything(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["format"], manifest["name"], manifest["version"]) == (1, "Tiny Family", "1.0")
    assert manifest["recipe"] == "ee" * 32
    assert manifest["models"]["instruct"]["parents"][0] == {"name": "base", "digest": "bb" * 32}
    assert manifest["models"]["base"]["data"] == [
        {"name": "stories.jsonl", "sha256": "aa" * 32, "rows": 5000}
    ]
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json", "manifest.sha256"}
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": sha256(made / name), "size": (made / name).stat().st_size}
    assert verify(made) == []


def test_verify_names_what_was_changed_missing_and_added(made: Path) -> None:
    weights = bytearray((made / "reward" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (made / "reward" / "model.safetensors").write_bytes(weights)
    (made / "base" / "config.json").unlink()
    (made / "instruct" / "notes.txt").write_text("hello")
    assert verify(made) == [
        "base/config.json: is missing",
        "instruct/notes.txt: was added; the manifest does not list it",
        "reward/model.safetensors: was changed",
    ]


def test_verify_sees_an_edited_manifest(made: Path) -> None:
    path = made / "manifest.json"
    path.write_text(path.read_text().replace('"version": "1.0"', '"version": "2.0"'))
    assert verify(made) == ["manifest.json: was changed; manifest.sha256 has another digest"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "manifest.json: is malformed: Invalid JSON"),
        ("{}", "manifest.json: is malformed: format: Field required"),
        (None, "manifest.json: is missing"),
    ],
)
def test_verify_says_what_is_wrong_with_a_manifest(made: Path, content: str | None, problem: str) -> None:
    if content is None:
        (made / "manifest.json").unlink()
    else:
        (made / "manifest.json").write_text(content)
    assert any(line.startswith(problem) for line in verify(made)), verify(made)


def test_verify_names_a_missing_seal_and_folder(made: Path) -> None:
    (made / "manifest.sha256").unlink()
    assert verify(made) == ["manifest.sha256: is missing"]
    assert "no such folder" in verify(made / "nowhere")[0]


def test_a_family_is_three_models_with_one_tokenizer(tmp_path: Path, trained: dict[Role, Path]) -> None:
    two: dict[Any, Path] = {role: path for role, path in trained.items() if role != "reward"}
    with pytest.raises(ReleaseError, match="there is no reward"):
        release(tmp_path / "two", two)

    other = tokenizer()
    other.chat_template = "{{ messages }}"
    models.save(models.load_policy(trained["base"]), other, tmp_path / "base")
    with pytest.raises(ReleaseError, match=r"chat_template\.jinja: differs"):
        release(tmp_path / "mixed", {**trained, "base": tmp_path / "base"})


def test_a_release_overwrites_nothing_and_carries_no_code(
    tmp_path: Path, made: Path, trained: dict[Role, Path]
) -> None:
    with pytest.raises(ReleaseError, match="empty folder"):
        release(made, trained)
    models.save(models.load_policy(trained["base"]), tokenizer(), tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"auto_map": {"AutoConfig": "x.Y"}}')
    with pytest.raises(ModelError, match="asks for code"):
        release(tmp_path / "coded", {**trained, "base": tmp_path / "base"})
