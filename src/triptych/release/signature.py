"""Who made a release: a signature over all of its files, in the format of OpenSSF model signing.

It is `model.sig`, which `model_signing verify` reads as well. What that library leaves out by itself (`.git`, what a
signature says is to be ignored) is signed and checked here too.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from pydantic import model_validator

from triptych.configuration import Config, UserFile
from triptych.display import one_line
from triptych.errors import ReleaseError
from triptych.release.verification import LARGEST, SIGNATURE
from triptych.storage import open_regular

PASSWORD = "TRIPTYCH_SIGN_PASSWORD"
"""The environment variable with the password of a key that has one."""


class Signing(Config):
    """With what a release is signed.

    Attributes:
        key: a private key in PEM, of the curve P-256, P-384 or P-521.
        keyless: with the signer's identity, which Sigstore vouches for: a browser opens, or CI's own identity is taken.
    """

    key: UserFile | None = None
    keyless: bool = False

    @model_validator(mode="after")
    def _one(self) -> Signing:
        if (self.key is not None) == self.keyless:
            raise ValueError("needs either `key: private.pem` or `keyless: true`")
        return self


def check_signing(signing: Signing) -> None:
    """Whether a release can be signed so, before hours of work go into it.

    Raises:
        ReleaseError: the library is missing, or the key cannot be used.
    """
    _library("signing")
    if signing.key is not None:
        _signer(signing)


def sign(folder: Path, signing: Signing) -> None:
    """Signs every file of the folder into `model.sig`; the key is read and goes nowhere.

    Raises:
        ReleaseError: it cannot be signed.
    """
    signer = _signer(signing)
    try:
        signer.set_hashing_config(_everything()).sign(folder, folder / SIGNATURE)
    except Exception as error:  # of the network, the browser and the service, in many types
        raise ReleaseError(f"{folder} cannot be signed: {_reason(error)}") from error


def check_key(folder: Path, key: Path) -> None:
    """Whether the release's files are those that were signed with the private key that belongs to this public one.

    Raises:
        ReleaseError: they are not, it is not signed, or the key cannot be read.
    """
    config = _library("verifying").Config()
    try:
        config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise ReleaseError(f"--key {key}: is no public key in PEM of an elliptic curve: {_reason(error)}") from None
    _check(folder, config)


def check_identity(folder: Path, identity: str, provider: str) -> None:
    """Whether somebody of this identity signed the release's files, as Sigstore vouches; needs the network.

    Raises:
        ReleaseError: they did not, it is not signed, or Sigstore cannot be asked.
    """
    config = _library("verifying").Config()
    try:
        config.use_sigstore_verifier(identity=identity, oidc_issuer=provider)
    except Exception as error:
        raise ReleaseError(f"Sigstore's root of trust cannot be fetched: {_reason(error)}") from None
    _check(folder, config)


def _check(folder: Path, config: Any) -> None:
    path = folder / SIGNATURE
    if not os.path.lexists(path):
        raise ReleaseError(f"{folder} is not signed: there is no {SIGNATURE}")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > LARGEST:
            raise ReleaseError(f"{path}: is larger than {LARGEST >> 20} MiB")
        config.set_hashing_config(_everything()).verify(folder, path)
    except ReleaseError:
        raise
    except Exception as error:  # a stranger wrote the file: whatever fails, the signature does not hold
        raise ReleaseError(f"{folder}: the signature does not hold: {_reason(error)}") from None


def _signer(signing: Signing) -> Any:
    config = _library("signing").Config()
    if signing.key is None:
        try:
            return config.use_sigstore_signer(use_ambient_credentials=True)
        except Exception as error:
            raise ReleaseError(f"release.sign: Sigstore cannot be reached: {_reason(error)}") from None
    password = os.environ.get(PASSWORD)
    try:
        return config.use_elliptic_key_signer(
            private_key=signing.key.path, password=password.encode() if password is not None else None
        )
    except Exception as error:
        raise ReleaseError(
            f"release.sign.key: {signing.key.path} is no private key in PEM of the curve P-256, P-384 or P-521 that "
            f"can be read (the password of one that has it stands in {PASSWORD}): {_reason(error)}"
        ) from None


def _everything() -> Any:
    """How files are told apart: all of them, whatever the library or a signature would leave out."""
    config = _library("hashing").Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    config.add_ignored_paths = lambda **_: None  # a signature does not say what is looked at
    return config


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError:
        raise ReleaseError("signatures need the library model-signing: pip install 'triptych[sign]'") from None


def _reason(error: Exception) -> str:
    return one_line(error) or type(error).__name__
