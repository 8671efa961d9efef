"""A stand-in for the Hugging Face Hub: the part of its HTTP interface by which models are pushed and downloaded.

It keeps what it is sent in memory, and accepts nothing that the Hub would not: bytes have the digest that was
announced; a commit has the parent that it says, names only files whose content is there, and changes something.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not re-exported for mypy

TOKEN = "hf_standin"
OWNER = "me"
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
READING = re.compile(r"/preupload/|/validate-yaml$")
"""Requests by POST that change nothing."""


@dataclass(frozen=True)
class Blob:
    """A file: of Git LFS its name is the sha256, of git the hash of git's blob."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """A repository: its commits, the oldest first, each with all files; branches and tags name one of them."""

    private: bool
    gated: str | bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.refs["main"] = oid
        return oid

    @property
    def files(self) -> dict[str, Blob]:
        """Those of the newest commit, but for what the Hub itself put there."""
        return {name: blob for name, blob in self.commits[self.refs["main"]].items() if name != ".gitattributes"}

    @property
    def card(self) -> dict[str, Any]:
        return front_matter(self.files["README.md"].content.decode()) if "README.md" in self.files else {}


def front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    content: dict[str, Any] = yaml.safe_load(match[1]) if match else {}
    return content


def faults_of(card: dict[str, Any]) -> Iterator[str]:
    """What the Hub would not take of a card's metadata."""
    if not isinstance(card.get("license"), str):
        yield '"license" must be a string'
    for name in (*card.get("base_model", []), *card.get("datasets", [])):
        validate_repo_id(name)
    if card.get("base_model_relation", "finetune") not in RELATIONS:
        yield '"base_model_relation" must be one of ' + ", ".join(RELATIONS)
    for model in card.get("model-index", []):
        for result in model["results"]:
            if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                yield '"model-index" lacks a task or a data set'
            if not all(isinstance(metric["value"], int | float) and metric["type"] for metric in result["metrics"]):
                yield '"model-index" has a metric without a number'


class StandIn:
    """The server, on a free port of this machine.

    Attributes:
        requests: what was asked, as `POST /api/repos/create`.
        uploaded: the bytes that each upload of a large file brought.
        fault: gives the answer to a request in the place of the server's own, or None.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.stored: dict[tuple[str, str], bytes] = {}
        self.announced: dict[tuple[str, str], int] = {}
        self.requests: list[str] = []
        self.uploaded: list[int] = []
        self.fault: Callable[[str], Response | None] = lambda request: None
        self.socket = socket.socket(proto=socket.IPPROTO_TCP)  # by which asyncio sends at once
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self._app(), log_level="critical", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    @property
    def client(self) -> HfApi:
        return HfApi(self.url, TOKEN)

    @property
    def writes(self) -> list[str]:
        return [said for said in self.requests if not said.startswith(("GET", "HEAD")) and not READING.search(said)]

    def __enter__(self) -> StandIn:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.server.should_exit = True
        self.thread.join()

    @contextmanager
    def failing(self, pattern: str, answer: Callable[[], Response]) -> Iterator[None]:
        """Requests that the pattern matches are answered so meanwhile."""
        self.fault = lambda request: answer() if re.search(pattern, request) else None
        try:
            yield
        finally:
            self.fault = lambda request: None

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def guarded(request: Request, call_next: Any) -> Response:
            said = f"{request.method} {request.url.path}"
            self.requests.append(said)
            if (answer := self.fault(said)) is not None:
                await request.body()
                return answer
            signed = request.url.path.startswith("/storage/")  # addresses that hold their own permission
            if not signed and request.headers.get("authorization") != f"Bearer {TOKEN}":
                return refusal(401, "Invalid username or password.")
            answered: Response = await call_next(request)
            return answered

        app.add_api_route("/api/repos/create", self._create, methods=["POST"])
        app.add_api_route("/api/validate-yaml", self._validate, methods=["POST"])
        app.add_api_route("/api/models/{owner}/{name}", self._info, methods=["GET"])
        app.add_api_route("/api/models/{owner}/{name}/revision/{revision:path}", self._info, methods=["GET"])
        app.add_api_route("/api/models/{owner}/{name}/tree/{revision}", self._tree, methods=["GET"])
        app.add_api_route("/api/models/{owner}/{name}/settings", self._settings, methods=["PUT"])
        app.add_api_route("/api/models/{owner}/{name}/preupload/main", self._preupload, methods=["POST"])
        app.add_api_route("/api/models/{owner}/{name}/commit/main", self._commit, methods=["POST"])
        app.add_api_route("/api/collections", self._collect, methods=["POST"])
        app.add_api_route("/api/collections/{owner}/{slug}", self._collection, methods=["GET", "PATCH"])
        app.add_api_route("/api/collections/{owner}/{slug}/items", self._add_item, methods=["POST"])
        app.add_api_route("/{owner}/{name}.git/info/lfs/objects/batch", self._batch, methods=["POST"])
        app.add_api_route("/storage/{owner}/{name}/{oid}", self._store, methods=["PUT"])
        app.add_api_route("/storage/{owner}/{name}/{oid}/verify", self._verify, methods=["POST"])
        app.add_api_route("/{owner}/{name}/resolve/{revision}/{path:path}", self._resolve, methods=["GET", "HEAD"])
        return app

    async def _create(self, request: Request) -> Response:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        validate_repo_id(name)
        if asked.get("type", "model") != "model" or asked.get("visibility") not in (None, "public", "private"):
            return refusal(400, "Bad request")
        if asked["organization"] != OWNER:
            return refusal(403, f"You don't have the rights to create a model under the namespace {name!r}.")
        if name in self.repos:
            return refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        self.repos[name] = repo = Repo(private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", large=False)})
        return JSONResponse({"url": f"{self.url}/{name}", "name": name})

    async def _validate(self, request: Request) -> Response:
        asked = await request.json()
        faults = [{"message": fault} for fault in faults_of(front_matter(asked["content"]))]
        return JSONResponse({"errors": faults, "warnings": []}, 400 if faults else 200)

    async def _info(self, owner: str, name: str, revision: str = "main") -> Response:
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return refusal(404, "Repository not found", "RepoNotFound")
        oid = repo.refs.get(revision, revision)
        if oid not in repo.commits:
            return refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return JSONResponse({
            "_id": "0", "id": f"{owner}/{name}", "sha": oid, "private": repo.private, "gated": repo.gated,
            "tags": repo.card.get("tags", []), "siblings": [{"rfilename": path} for path in repo.commits[oid]],
        })

    async def _tree(self, owner: str, name: str, revision: str) -> Response:
        repo = self.repos[f"{owner}/{name}"]
        files = repo.commits[repo.refs.get(revision, revision)]
        return JSONResponse([
            {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
            | ({"lfs": {"oid": blob.oid, "size": len(blob.content), "pointerSize": 1}} if blob.large else {})
            for path, blob in files.items()
        ])

    async def _settings(self, owner: str, name: str, request: Request) -> Response:
        asked, repo = await request.json(), self.repos[f"{owner}/{name}"]
        known = not asked.keys() - {"gated", "visibility"} and asked.get("gated", False) in (False, "auto", "manual")
        if not asked or not known:
            return refusal(400, "Bad request")
        repo.gated = asked.get("gated", repo.gated)
        repo.private = asked.get("visibility", "private" if repo.private else "public") == "private"
        return JSONResponse({"private": repo.private, "gated": repo.gated})

    async def _preupload(self, owner: str, name: str, request: Request) -> Response:
        asked, files = await request.json(), self.repos[f"{owner}/{name}"].files
        return JSONResponse({"files": [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
            | ({"oid": files[file["path"]].oid} if file["path"] in files else {})
            for file in asked["files"]
        ]})

    async def _batch(self, owner: str, name: str, request: Request) -> Response:
        asked = await request.json()
        if asked["operation"] != "upload" or asked["hash_algo"] != "sha256" or f"{owner}/{name}" not in self.repos:
            return refusal(400, "Bad request")
        objects = []
        for wanted in asked["objects"]:
            actions, key = {}, (f"{owner}/{name}", wanted["oid"])
            if key not in self.stored:
                self.announced[key] = wanted["size"]
                place = f"{self.url}/storage/{owner}/{name}/{wanted['oid']}"
                actions = {"actions": {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}}
            objects.append({**wanted, **actions})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _store(self, owner: str, name: str, oid: str, request: Request) -> Response:
        content, key = await request.body(), (f"{owner}/{name}", oid)
        if key not in self.announced:
            return refusal(403, "Nobody announced this")
        if len(content) != self.announced[key] or hashlib.sha256(content).hexdigest() != oid:
            return refusal(400, "The content is not what was announced")
        self.stored[key] = content
        self.uploaded.append(len(content))
        return Response()

    async def _verify(self, owner: str, name: str, oid: str, request: Request) -> Response:
        content = self.stored.get((f"{owner}/{name}", oid))
        whole = content is not None and await request.json() == {"oid": oid, "size": len(content)}
        return Response() if whole else refusal(404, "Not stored")

    async def _commit(self, owner: str, name: str, request: Request) -> Response:
        repo = self.repos[f"{owner}/{name}"]
        header, *lines = [json.loads(line) for line in (await request.body()).splitlines()]
        files = dict(repo.commits[repo.refs["main"]])
        if header["key"] != "header" or not header["value"]["summary"]:
            return refusal(400, "A commit has a summary")
        if header["value"].get("parentCommit", repo.refs["main"]) != repo.refs["main"]:
            return refusal(412, "A commit has happened since")
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"], validate=True), large=False)
            elif line["key"] == "lfsFile" and value["algo"] == "sha256" and (content := self.stored.get(
                (f"{owner}/{name}", value["oid"])
            )) is not None:
                files[value["path"]] = Blob(content, large=True)
            elif line["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                return refusal(400, f"Cannot commit {line['key']} {value['path']}")
        if files == repo.commits[repo.refs["main"]]:
            return refusal(400, "An empty commit")
        if "README.md" in files and (faults := list(faults_of(front_matter(files["README.md"].content.decode())))):
            return refusal(400, *faults)
        oid = repo.commit(files)
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{owner}/{name}/commit/{oid}"})

    async def _collect(self, request: Request) -> Response:
        asked = await request.json()
        if asked["namespace"] != OWNER or not 0 < len(asked["title"]) <= 60 or len(asked.get("description", "")) > 150:
            return refusal(400, "Bad request")
        slug = f"{asked['namespace']}/{asked['title'].lower()}-{'64f9a55bb3115b4f513ec026'}"
        if slug in self.collections:
            return refusal(409, "This collection already exists", slug=slug)
        self.collections[slug] = {
            "slug": slug, "title": asked["title"], "owner": {"name": OWNER}, "items": [], "position": 0,
            "lastUpdated": "2026-11-30T12:00:00.000Z", "private": asked["private"], "theme": "blue", "upvotes": 0,
            "description": asked.get("description"),
        }
        return JSONResponse(self.collections[slug])

    async def _collection(self, owner: str, slug: str, request: Request) -> Response:
        collection = self.collections[f"{owner}/{slug}"]
        if request.method == "PATCH":
            collection["private"] = (await request.json())["private"]
            return JSONResponse({"data": collection})
        return JSONResponse(collection)

    async def _add_item(self, owner: str, slug: str, request: Request) -> Response:
        collection, item = self.collections[f"{owner}/{slug}"], (await request.json())["item"]
        if item["type"] != "model" or item["id"] not in self.repos:
            return refusal(404, "There is no such item")
        if any(held["id"] == item["id"] for held in collection["items"]):
            return refusal(409, "Already in the collection")
        collection["items"].append({"_id": item["id"], **item, "position": len(collection["items"])})
        return JSONResponse(collection)

    async def _resolve(self, owner: str, name: str, revision: str, path: str) -> Response:
        repo = self.repos[f"{owner}/{name}"]
        oid = repo.refs.get(revision, revision)
        blob = repo.commits.get(oid, {}).get(path)
        if blob is None:
            return refusal(404, "Entry not found", "EntryNotFound")
        return Response(blob.content, headers={"ETag": f'"{blob.oid}"', "X-Repo-Commit": oid})


def refusal(status: int, message: str, code: str | None = None, **more: str) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message, **more}, status, headers)


def broken() -> Response:
    """A server that is not well."""
    return refusal(500, "Internal Error")


def cut() -> Response:
    """A connection that ends in the middle of an answer."""
    return StreamingResponse(iter([b"{"]), headers={"Content-Length": "100"})
