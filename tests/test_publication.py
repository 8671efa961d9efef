"""A release reaches the Hub whole or not at all, says what it is there, and is not sent twice."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from huggingface_hub import ModelCard, constants

from hub_stand_in import TOKEN, StandIn, broken, cut
from test_cli import call, refused
from test_release import code, printed, release, run_without_triptych, train, train_adapted
from triptych.display import printable
from triptych.errors import ReleaseError
from triptych.progress import Silent
from triptych.release.lineage import ROLES, Role
from triptych.release.publication import Gating, Published, push
from triptych.release.verification import verify
from triptych.storage import entries

REFUSED = re.compile(r"the Hub did not take it: .*\n.*not sent again")
NAMES: dict[Role, str] = {"base": "me/tiny-Base", "instruct": "me/tiny-Instruct", "reward": "me/tiny-Reward"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # another test may have found that there is no Hub
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with StandIn() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    return release(folder / "release", train(folder / "models"))


@pytest.fixture
def made(tmp_path: Path, released: Path) -> Path:
    return shutil.copytree(released, tmp_path / "release")


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def pushed(folder: Path, public: bool | None = None, gated: Gating | None = None) -> Published:
    return push(folder, "me/tiny", Silent(), public=public, gated=gated)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in entries(folder) if path.is_file()}


def test_a_release_becomes_three_repositories_and_a_collection(hub: StandIn, made: Path) -> None:
    before = on_disk(made)
    done = pushed(made)
    assert done.made == ROLES
    assert set(hub.repos) == set(NAMES.values())
    for role, name in NAMES.items():
        repo, files = hub.repos[name], on_disk(made / role)
        assert repo.private
        assert repo.gated is False
        assert {path: blob.content for path, blob in repo.files.items() if path != "README.md"} == {
            path: content for path, content in files.items() if path != "README.md"
        }
        assert repo.files.keys() == files.keys()
        assert repo.files["model.safetensors"].large
        assert len(repo.commits) == 2, "the Hub's own, and one"
        assert done.commits[role] == repo.refs["main"]
    (collection,) = hub.collections.values()
    assert (collection["title"], collection["private"]) == ("tiny", True)
    assert [item["id"] for item in collection["items"]] == list(NAMES.values())
    assert done.collection == f"{hub.url}/collections/{collection['slug']}"
    assert on_disk(made) == before, "the folder stays as it was verified"
    assert verify(made) == []


def test_a_card_names_the_models_as_the_hub_does(hub: StandIn, made: Path) -> None:
    done = pushed(made)
    cards = {role: ModelCard(hub.repos[name].files["README.md"].content.decode()) for role, name in NAMES.items()}
    assert {role: card.data.get("base_model") for role, card in cards.items()} == {
        "base": None, "instruct": ["me/tiny-Base"], "reward": ["someone/model"],
    }
    for role, card in cards.items():
        own = ModelCard((made / role / "README.md").read_text())
        assert card.data.to_dict() | {"base_model": None} == own.data.to_dict() | {"base_model": None}
        assert card.data.to_dict()["license"] == "apache-2.0"
        assert card.data.to_dict()["datasets"] == ["someone/questions"]
        links = re.findall(r"\]\((http[^)]*)\)", card.text)
        assert links == [*(f"{hub.url}/{name}" for name in NAMES.values()), done.collection]
        program = re.findall(r"^name = .*$", card.text, re.MULTILINE)
        assert program == [f'name = "{NAMES[role]}"']
        added = [line for line in card.text.splitlines() if line not in own.text.splitlines()]
        assert [line.partition(" ")[0] for line in added] == ["Version", "name"], "nothing else is another"
        assert not set(own.text.splitlines()) - set(card.text.splitlines()) - {
            'name = "."  # this folder; or its name on the Hub'
        }
    (result,) = (row for row in cards["instruct"].data.to_dict()["model-index"][0]["results"])
    assert result["metrics"][0]["value"] == 0.6444
    (result,) = (row for row in cards["reward"].data.to_dict()["model-index"][0]["results"])
    assert result["metrics"][0]["type"] == "accuracy"


def test_what_is_there_is_not_sent_again(hub: StandIn, made: Path) -> None:
    first = pushed(made)
    hub.requests.clear()
    hub.uploaded.clear()
    again = pushed(made)
    assert again.made == ()
    assert again.commits == first.commits
    assert hub.uploaded == []
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())
    assert not any("/commit/" in request or "/items" in request for request in hub.requests)

    assert call("push", made, "me/tiny").stdout.splitlines()[-1] == "Nothing was new."


@pytest.mark.parametrize(("place", "answer"), [
    ("PUT /storage/me/tiny-Instruct/", cut), ("POST .*/tiny-Instruct/commit/", broken),
    ("POST .*/tiny-Instruct/commit/", cut), ("GET .*/tiny-Instruct$", broken), ("POST .*/items", broken),
])
def test_a_push_goes_on_where_it_was_interrupted(
    hub: StandIn, made: Path, monkeypatch: pytest.MonkeyPatch, place: str, answer: Callable[[], Response]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's own tries
    weights = {role: (made / role / "model.safetensors").stat().st_size for role in ROLES}
    with hub.failing(place, answer), pytest.raises(ReleaseError, match=REFUSED):
        pushed(made)
    arrived = list(hub.uploaded)
    assert len(arrived) < 3
    done = pushed(made)
    assert hub.uploaded == [weights[role] for role in ROLES], "each once, in both runs together"
    assert len(done.made) == (2 if arrived else 3)
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())
    for role, name in NAMES.items():
        assert hub.repos[name].files["model.safetensors"].content == (made / role / "model.safetensors").read_bytes()


def test_a_dry_run_lists_every_file_and_asks_nothing(
    hub: StandIn, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("COLUMNS", "200")
    result = call("push", made, "me/tiny", "--dry-run", "--public", "--gated", "auto")
    assert result.exit_code == 0, result.output
    assert hub.requests == []
    listed = dict(re.findall(r"^me/tiny-(\S+) +([\d,]+)", result.stdout, re.MULTILINE))
    sizes = {
        f"{role.capitalize()}/{path}": f"{len(content):,}"
        for role in ROLES for path, content in on_disk(made / role).items()
    }
    assert listed.keys() == sizes.keys()
    cards = {f"{role.capitalize()}/README.md" for role in ROLES}
    assert {path: size for path, size in listed.items() if path not in cards} == {
        path: size for path, size in sizes.items() if path not in cards
    }
    total = sum(int(size.replace(",", "")) for size in listed.values())
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"3 repositories (public, gated: auto), {len(listed)} files, {total:,} bytes, and ")


def test_a_folder_that_is_not_as_released_is_not_pushed(hub: StandIn, made: Path) -> None:
    (made / "reward" / "config.json").write_text("{}")
    for arguments in ((), ("--dry-run",)):
        said = refused("push", made, "me/tiny", *arguments)
        assert "is not what was released, so nothing was sent:\n       reward/config.json: was changed" in said
    assert hub.requests == []


def test_what_is_changed_while_it_is_pushed_is_not_sent(hub: StandIn, made: Path) -> None:
    class Changing(Silent):
        def say(self, text: str) -> None:  # the first thing that is said is that it was verified
            (made / "instruct" / "generation_config.json").write_text("{}")

    with pytest.raises(ReleaseError, match=r"generation_config.json: was changed since the release was verified"):
        push(made, "me/tiny", Changing())


def test_what_can_be_seen_beforehand_is_said_before_any_work(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = tmp_path / "nothing"
    assert "has its owner before it, as me/tiny" in refused("push", nothing, "tiny")
    for name in ("me/ti ny", "me/tiny/", "me/--tiny", f"me/{'x' * 90}", "me/tiny.."):
        assert "is no name for the Hub" in refused("push", nothing, name)
    assert "there is no such folder" in refused("push", nothing, "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token of the Hugging Face Hub: run `hf auth login`" in refused("push", nothing, "me/tiny")
    assert hub.requests == []


def test_the_hubs_refusal_is_said(hub: StandIn, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused("push", made, "them/tiny")
    assert "them/tiny-Base: the Hub did not take it: " in said
    assert "You don't have the rights to create a model under the namespace" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "Invalid username or password" in refused("push", made, "me/tiny")
    assert hub.repos == {}


def test_who_sees_it_is_settled_before_anything_is_there(hub: StandIn, made: Path) -> None:
    pushed(made, public=True, gated="manual")
    assert all((repo.private, repo.gated) == (False, "manual") for repo in hub.repos.values())
    (collection,) = hub.collections.values()
    assert not collection["private"]
    settled = max(place for place, request in enumerate(hub.requests) if request.endswith("/settings"))
    assert not any("/storage/" in request or "/commit/" in request for request in hub.requests[:settled])

    hub.requests.clear()
    pushed(made)
    assert all((repo.private, repo.gated) == (False, "manual") for repo in hub.repos.values()), "it stays as it is"
    assert not any(request.endswith("/settings") for request in hub.requests)

    pushed(made, public=False)
    assert all((repo.private, repo.gated) == (True, "manual") for repo in hub.repos.values())
    assert collection["private"]


def test_of_an_earlier_release_no_weights_stay_and_what_is_the_owners_does(hub: StandIn, made: Path) -> None:
    pushed(made)
    client = hub.client
    older = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "prompt.json", "functions/0.py")
    own = ("figure.png", "train.py", "onnx/config.json", "quantized/model.safetensors")
    for name in (*older, *own):
        client.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=NAMES["base"])
    assert pushed(made).made == ("base",)
    assert hub.repos[NAMES["base"]].files.keys() == {*on_disk(made / "base"), *own}


def test_what_somebody_else_put_there_is_not_replaced(hub: StandIn, made: Path) -> None:
    name, card = NAMES["instruct"], b"---\nlicense: mit\n---\n"
    hub.client.create_repo(name)
    hub.client.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=name)
    with pytest.raises(ReleaseError, match="me/tiny-Instruct: is there already and holds something else"):
        pushed(made)
    assert hub.uploaded == []
    assert hub.repos["me/tiny-Instruct"].files.keys() == {"README.md"}


def test_it_is_said_whether_the_release_is_signed(hub: StandIn, made: Path) -> None:
    heard = Heard()
    push(made, "me/tiny", heard)
    assert heard.lines[0] == f"{made} holds what its manifest lists; it is not signed"
    (made / "model.sig").write_text("{}")
    assert call("push", made, "me/tiny").stdout.splitlines()[0] == (
        f"{made} holds what its manifest lists; it is signed, and the signature was not checked"
    )
    assert not any("model.sig" in repo.files for repo in hub.repos.values())


@pytest.mark.slow
def test_the_cards_code_runs_with_what_is_on_the_hub(hub: StandIn, made: Path, tmp_path: Path) -> None:
    """Of adapters too, which are added to the Base that is there."""
    push(release(tmp_path / "adapted", train_adapted(tmp_path / "models"), form="adapters"), "me/adapted", Silent())
    pushed(made)
    assert hub.repos["me/adapted-Reward"].card["base_model"] == ["me/adapted-Base"]
    assert hub.repos["me/adapted-Reward"].card["base_model_relation"] == "adapter"
    settings: dict[str, Any] = json.loads(hub.repos["me/adapted-Instruct"].files["adapter_config.json"].content)
    own = json.loads((tmp_path / "adapted/instruct/adapter_config.json").read_bytes())
    assert settings == own | {"base_model_name_or_path": "me/adapted-Base"}
    programs, said = [], []
    for name, repo in hub.repos.items():
        card = tmp_path / "card.md"
        card.write_bytes(repo.files["README.md"].content)
        assert "../base" not in card.read_text(), name
        programs.append(code(card))
        said.append(printed(card))
    everything = f"""
import contextlib, io, json
texts = []
for program in {programs!r}:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(program, {{}})
    texts.append(output.getvalue())
print(json.dumps(texts))
"""
    there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    texts = json.loads(run_without_triptych(tmp_path, everything, **there))
    assert [printable(text).replace("\t", "    ") for text in texts] == said
