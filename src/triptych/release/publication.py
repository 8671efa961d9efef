"""A release on the Hugging Face Hub: a repository for each of the three models, and a collection of them.

What is sent is the folder as it was verified. Only what names the models differs: each card, which gets their names and
links, and the settings of adapters, which name the Base that they are added to. Both are made in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not re-exported for mypy

from triptych.audit.record import AUDIT
from triptych.display import one_line
from triptych.engine.inspection import ADAPTER
from triptych.errors import ReleaseError
from triptych.evaluate.preamble import FOUND as PROMPT
from triptych.progress import Progress
from triptych.release.card import HERE, TAG, TITLES, TRUNK_HERE, listed, markdown, number_of, repository
from triptych.release.family import CODE, DESCRIBING, EXAMPLES, MODEL_FILES, TRUNK
from triptych.release.lineage import ROLES, Role
from triptych.release.verification import MANIFEST, SIGNATURE, Manifest, read_manifest, verify
from triptych.storage import sha256

Gating = Literal["auto", "manual"]
"""How access to a gated repository is granted: to all who ask, or to each by its owner."""

CARD = "README.md"
GIT_ATTRIBUTES = ".gitattributes"
"""What the Hub itself puts into a new repository."""
LONGEST_REASON = 500
"""Letters of what the Hub answers that are shown."""


@dataclass(frozen=True)
class HubRelease:
    """A verified release, and what it is called on the Hub.

    Attributes:
        folder: the release's.
        name: `owner/name`, to which each repository's name adds the role.
        endpoint: the Hub's address.
    """

    folder: Path
    name: str
    endpoint: str

    @cached_property
    def manifest(self) -> Manifest:
        """The release's."""
        return read_manifest(self.folder)

    @property
    def verified(self) -> str:
        """What is known of the folder: whether a signature holds, only its key can say."""
        is_signed = (self.folder / SIGNATURE).exists()
        signature = "it is signed, and the signature was not checked" if is_signed else "it is not signed"
        return f"{self.folder} holds what its manifest lists; {signature}"

    def repository(self, role: Role) -> str:
        """`owner/name-Instruct`."""
        return f"{self.name}-{TITLES[role]}"

    def content(self, role: Role, collection: str | None = None) -> dict[str, Path | bytes]:
        """The repository's files by their names: each of the folder, or what is sent in its place.

        Args:
            collection: the address that the card links to; the Hub's own adds a number to this one.
        """
        collection = collection or f"{self.endpoint}/collections/{self.name}"
        names = [name.removeprefix(f"{role}/") for name in self.manifest.files if name.startswith(f"{role}/")]
        content: dict[str, Path | bytes] = {name: self.folder / role / name for name in names}
        for name in names:
            if PurePosixPath(name).name == ADAPTER:
                settings = json.loads((self.folder / role / name).read_bytes())
                settings["base_model_name_or_path"] = self.repository("base")
                content[name] = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
        content[CARD] = self._card(role, collection, adapted=any(PurePosixPath(name).name == ADAPTER for name in names))
        return content

    def _card(self, role: Role, collection: str, adapted: bool) -> bytes:
        """The folder's card with the names that the models have on the Hub, as parents, in its code and as links."""
        card = ModelCard((self.folder / role / CARD).read_bytes().decode())
        names = {repository(self.manifest.name, parent): self.repository(parent) for parent in self.manifest.roles}
        parents = card.data.get("base_model") or []
        if adapted:
            card.data["base_model"], card.data["base_model_relation"] = [self.repository("base")], "adapter"
        elif parents:
            card.data["base_model"] = [names.get(parent, parent) for parent in parents]
        repositories = [self.repository(one) for one in self.manifest.roles]
        links = ", ".join(f"[{one}]({self.endpoint}/{one})" for one in repositories)
        family = (
            f"Version {markdown(self.manifest.version)} of the family {links} ([collection]({collection})). It was "
            f"pushed from the release whose `{MANIFEST}` has the sha256 `{sha256(self.folder / MANIFEST)}`."
        )
        base = self.repository("base")
        own = {HERE: f'name = "{self.repository(role)}"', TRUNK_HERE: f'trunk = "{base}"'}
        if adapted and f"{role}/{DESCRIBING[0]}" in self.manifest.files:  # no code, but a sentence that names the trunk
            own[f"`{TRUNK}`"] = f"`{base}`"
        text = card.content
        for words, value in own.items():  # the first is the template's own: what others wrote stands below it
            text = text.replace(words, value, 1)
        return re.sub("^# .*$", lambda title: f"{title[0]}\n\n{family}", text, count=1, flags=re.MULTILINE).encode()


@dataclass(frozen=True, slots=True)
class Published:
    """What stands on the Hub.

    Attributes:
        repositories: their addresses.
        commits: the newest commit of each repository.
        made: the roles whose repository got a commit now; of the others everything was there.
        collection: its address.
    """

    repositories: Mapping[Role, str]
    commits: Mapping[Role, str]
    made: tuple[Role, ...]
    collection: str


def prepare(folder: Path, name: str, endpoint: str | None = None) -> HubRelease:
    """The release under a name of the Hub; it is verified, and nothing is asked or sent.

    Args:
        name: `owner/name`.
        endpoint: the Hub's address; by default that of `huggingface_hub`.

    Raises:
        ReleaseError: the name is none of the Hub's, or the folder is not what was released.
    """
    release = HubRelease(folder, name, endpoint or HfApi().endpoint)
    if "/" not in name:
        raise ReleaseError(f"{name}: a name on the Hub has its owner before it, as me/{one_line(name)}")
    try:
        for role in ROLES:
            validate_repo_id(release.repository(role))
    except HFValidationError as error:
        raise ReleaseError(f"{name}: is no name for the Hub: {one_line(error)}") from None
    if problems := verify(folder):
        raise ReleaseError(f"{folder} is not what was released, so nothing was sent:\n" + "\n".join(problems))
    for role in release.manifest.roles:
        if f"{role}/{CARD}" not in release.manifest.files:
            raise ReleaseError(f"{folder}: has no {role}/{CARD}, which says what the model is")
    return release


def push(
    folder: Path, name: str, progress: Progress, *, public: bool | None = None, gated: Gating | None = None,
    hub: HfApi | None = None,
) -> Published:
    """Makes the repositories and the collection, and sends what they lack, a commit for each model.

    Who sees a repository is settled before anything is in it. What arrived before an interruption is not sent again.

    Args:
        name: `owner/name`.
        public: whether all can see them; by default new ones are private, and others stay as they are.
        gated: how access is granted; by default it stays as it is.
        hub: the Hub's client; by default that of the user's token.

    Raises:
        ReleaseError: there is no token, the release cannot be pushed, or the Hub did not take it.
    """
    hub = hub or HfApi()
    token = hub.token or get_token()
    if not isinstance(token, str):
        raise ReleaseError("there is no token of the Hugging Face Hub: run `hf auth login`, or put one that may write "
                           "into the environment variable HF_TOKEN")
    hub = HfApi(hub.endpoint, token)
    release = prepare(folder, name, hub.endpoint)
    progress.say(release.verified)
    stands = {role: _open(hub, release.repository(role), public, gated) for role in release.manifest.roles}
    collection = _collect(release, hub, private=bool(stands["instruct"].private), change=public is not None)
    commits: dict[Role, str] = {}
    for role, before in stands.items():
        commits[role] = _send(hub, before, role, release.content(role, collection), release.manifest)
        is_new = commits[role] != before.sha
        state = f"sent, commit {commits[role][:12]}" if is_new else "everything was there, no commit was made"
        progress.say(f"{hub.endpoint}/{release.repository(role)} ({_seen_by(before)}): {state}")
    progress.say(f"{collection}: the collection")
    return Published(
        {role: f"{hub.endpoint}/{release.repository(role)}" for role in release.manifest.roles}, commits,
        tuple(role for role in release.manifest.roles if commits[role] != stands[role].sha), collection,
    )


def _open(hub: HfApi, name: str, public: bool | None, gated: Gating | None) -> ModelInfo:
    """The repository as it stands, made if it is missing, with who sees it as asked."""
    try:
        hub.create_repo(name, private=not public, exist_ok=True)
        stands = hub.model_info(name)
        holds = {file.rfilename for file in stands.siblings or ()} - {GIT_ATTRIBUTES}
        if holds and TAG not in (stands.tags or ()):
            raise ReleaseError(f"{name}: is there already and holds something else, for its card has no tag {TAG!r}; "
                               "give another name")
        private = stands.private if public is None else not public
        if stands.private != private or (gated is not None and stands.gated != gated):
            hub.update_repo_settings(name, private=private, gated=gated)
            stands = hub.model_info(name)
    except ReleaseError:
        raise
    except Exception as error:  # the Hub's client and the network raise errors of many families
        raise _refusal(name, error) from error
    return stands


def _collect(release: HubRelease, hub: HfApi, private: bool, change: bool) -> str:
    """The address of the collection with the models in it; made if it is missing.

    Args:
        change: whether one that is there becomes private or public too.
    """
    owner, title = release.name.split("/")
    try:
        collection = hub.create_collection(
            title, namespace=owner, private=private, exists_ok=True,
            description=f"A family of {number_of(release.manifest.roles)} models with one tokenizer: "
            f"{listed(release.manifest.roles)}.",
        )
        if change and collection.private != private:
            hub.update_collection_metadata(collection.slug, private=private)
        held = {item.item_id for item in collection.items}
        for role in release.manifest.roles:
            if release.repository(role) not in held:
                hub.add_collection_item(collection.slug, release.repository(role), "model", exists_ok=True)
    except Exception as error:  # as above
        raise _refusal(f"the collection {release.name}", error) from error
    return collection.url


def _send(
    hub: HfApi, stands: ModelInfo, role: Role, content: Mapping[str, Path | bytes], manifest: Manifest
) -> str:
    """Commits what the repository lacks, and takes out what an earlier release left of a model there."""
    there = [file.rfilename for file in stands.siblings or ()]
    left = [name for name in there if name not in content and _is_released(name, DESCRIBING[0] in there)]
    added = [CommitOperationAdd(name, source) for name, source in content.items()]
    for one in added:  # since it was verified others may have been sent for an hour
        if isinstance(source := content[one.path_in_repo], Path):
            verified = manifest.files[f"{role}/{one.path_in_repo}"].sha256
            if one.upload_info.sha256.hex() != verified:
                raise ReleaseError(f"{source}: was changed since the release was verified; give the same command again")
    try:
        commit = hub.create_commit(
            stands.id,
            [*added,
             *(CommitOperationDelete(name) for name in left)],
            commit_message=f"{one_line(manifest.name)} {one_line(manifest.version)}", parent_commit=stands.sha,
        )
    except Exception as error:  # as above
        raise _refusal(stands.id, error) from error
    return commit.oid


def _is_released(name: str, described: bool) -> bool:
    """Whether a file of this name belongs to a released model; others are its owner's.

    Args:
        described: the repository has a reward that is more than one model, whose models lie in folders.
    """
    path = PurePosixPath(name)
    patterns = CODE if len(path.parts) > 1 and not described else (
        *MODEL_FILES, *DESCRIBING, *CODE, EXAMPLES, AUDIT, PROMPT
    )
    return any(path.match(pattern) for pattern in patterns)


def _seen_by(stands: ModelInfo) -> str:
    access = "private" if stands.private else "public"
    return f"{access}, gated ({stands.gated})" if stands.gated else access


def _refusal(name: str, error: Exception) -> ReleaseError:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of one file of several
    reason = one_line(cause)[:LONGEST_REASON] or type(cause).__name__
    again = "Give the same command again to go on: what arrived is not sent again."
    return ReleaseError(f"{name}: the Hub did not take it: {reason}\n{again}")
