"""Models of the Hugging Face Hub: how a recipe names one, and its files in the Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from huggingface_hub import snapshot_download
from pydantic import AfterValidator

from triptych.configuration import UserFile
from triptych.engine import models
from triptych.errors import ModelError

HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?")
"""A repository, and behind an `@` its revision: a branch, a tag or a commit."""
HUB_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "adapter_config.json",
    "adapter_model.safetensors",
)
"""What is downloaded: weights as safetensors, settings, the tokenizer; never code or pickles."""


def _or_hub(file: UserFile) -> UserFile:
    """A name that is no folder's and looks like none is a model's on the Hub."""
    local = file.path.exists() or file.path.suffix.lower() == ".gguf" or file.name.startswith((".", "/", "~"))
    return file if local else UserFile(file.name, Path(file.name))


ModelPlace = Annotated[UserFile, AfterValidator(_or_hub)]
"""A model's folder, a file of one, or a name on the Hub, as `owner/model@revision`, which is its own path."""


def repository_of(name: str) -> str:
    """The repository that a name on the Hub means, without the revision."""
    return name.partition("@")[0]


def download(name: str) -> Path:
    """The folder of the named revision, or of the newest, in the Hub's cache; the cache alone without a network.

    The commit is its name. The cache keeps each file once, in `blobs` two folders above, and a commit as links.

    Raises:
        ModelError: the Hub did not give it.
    """
    repository, _, revision = name.partition("@")
    try:
        with models.quiet():
            # The second pattern leaves out what lies in subfolders: other formats of the same weights.
            return Path(snapshot_download(
                repository, revision=revision or None, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"]
            ))
    except Exception as error:  # the Hub's client and the network raise errors of many families
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ModelError(
            f"{name}: there is no folder of this name, and the Hugging Face Hub did not give it. Check the "
            "name; for a gated model accept its terms and run `hf auth login`; without a network download it "
            f"elsewhere (`hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir DIR`), "
            f"copy DIR here and name its path ({reason})"
        ) from error


def downloaded(name: str) -> Path | None:
    """The folder of a model on the Hub; None where the name is none of its `owner/model` or `owner/model@revision`.

    Raises:
        ModelError: the Hub did not give it.
    """
    return download(name) if "/" in name and HUB_NAME.fullmatch(name) else None
