"""A signature covers every file of a release, and holds for the signer's key only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from test_cli import call, refused
from test_cli import release as release
from test_release import release as assembled
from test_release import trained as trained
from triptych.errors import RecipeError, ReleaseError
from triptych.recipe import load
from triptych.release.lineage import Role
from triptych.release.signature import PASSWORD, Signing, check_identity, check_key, check_signing, sign
from triptych.release.verification import listing, verify
from triptych.results import _recipe_digest
from triptych.storage import sha256

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

TINY = Path(__file__).with_name("tiny.yaml")
PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


def signing(key: Path) -> Signing:
    return Signing.model_validate({"key": str(key)})


def write_keys(folder: Path, curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> tuple[Path, Path]:
    """A new private key, and the public one that belongs to it."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(curve or ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / "private.pem").write_bytes(key.private_bytes(PEM, PKCS8, locked))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "private.pem", folder / "public.pem"


@pytest.fixture
def signed(tmp_path: Path, release: Path) -> tuple[Path, Path]:
    """A signed release, and the public key."""
    private, public = write_keys(tmp_path / "keys")
    made = shutil.copytree(release, tmp_path / "made")
    sign(made, signing(private))
    return made, public


def reseal(folder: Path) -> None:
    """Manifest and seal of what is there now: what anybody can write."""
    content = json.loads((folder / "manifest.json").read_text())
    content["files"] = {name: entry.model_dump() for name, entry in listing(folder).items()}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text)
    (folder / "manifest.sha256").write_text(f"{sha256(folder / 'manifest.json')}  manifest.json\n")


def edited(folder: Path) -> None:
    (folder / "reward/config.json").write_text("{}")


def removed(folder: Path) -> None:
    (folder / "reward/tokenizer.json").unlink()


def renamed(folder: Path) -> None:
    (folder / "base/config.json").rename(folder / "base/other.json")


def swapped(folder: Path) -> None:
    (folder / "base").rename(folder / "x")
    (folder / "instruct").rename(folder / "base")
    (folder / "x").rename(folder / "instruct")
    (folder / "base/config.json").write_text((folder / "base/config.json").read_text() + " ")


def relicensed(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"license": "other"', '"license": "mit"'))


def added(*names: str) -> Callable[[Path], None]:
    """Files that the library would leave out by itself, or that a loader would take."""
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("evil")

    change.__name__ = names[0]
    return change


CHANGES = [
    edited, removed, renamed, swapped, relicensed, added(".git/hooks/post-checkout"), added(".gitattributes"),
    added(".github/workflows/x.yml"), added(".gitignore"), added("base/evil.py"), added("base/model.sig"),
]


def test_a_release_is_signed_when_it_is_whole(tmp_path: Path, trained: dict[Role, Path]) -> None:
    private, public = write_keys(tmp_path / "keys")
    made = assembled(tmp_path / "made", trained, signing=signing(private))
    check_key(made, public)
    plain = assembled(tmp_path / "plain", trained)
    assert (made / "manifest.json").read_bytes() == (plain / "manifest.json").read_bytes()
    assert verify(made) == verify(plain) == []


@pytest.mark.attack("signature")
@pytest.mark.parametrize("change", CHANGES)
def test_edited_file_manifest_and_seal_together_are_found(
    signed: tuple[Path, Path], change: Callable[[Path], None]
) -> None:
    made, key = signed
    assert call("verify", made, "--key", key).stdout == (
        f"OK: {made} holds what its manifest lists, and is signed with the key of {key}\n"
    )
    change(made)
    reseal(made)
    assert verify(made) == [], "the manifest alone says nothing"
    assert "the signature does not hold" in refused("verify", made, "--key", key)


def cut(folder: Path) -> None:
    path = folder / "model.sig"
    path.write_text(path.read_text()[:-10])


def payload_edited(folder: Path) -> None:
    path = folder / "model.sig"
    bundle = json.loads(path.read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:-8] + ("AAAA" if payload[-8:-4] != "AAAA" else "BBBB") + payload[-4:]
    path.write_text(json.dumps(bundle))


def unsigned_bundle(folder: Path) -> None:
    path = folder / "model.sig"
    bundle = json.loads(path.read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    path.write_text(json.dumps(bundle))


def written(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.sig").write_bytes(content)


@pytest.mark.attack("signature")
@pytest.mark.parametrize(
    "change",
    [cut, payload_edited, unsigned_bundle, written(b""), written(b"null"), written(b"[]"), written(b"{}"),
     written(b"\xff\x00"), written(b"[" * 100_000), written(b'{"verificationMaterial": {}}'), written(b"9" * 10_000)],
)
def test_a_damaged_signature_does_not_hold(signed: tuple[Path, Path], change: Callable[[Path], object]) -> None:
    made, key = signed
    change(made)
    assert "the signature does not hold" in refused("verify", made, "--key", key)


@pytest.mark.attack("signature")
def test_another_s_key_does_not_hold(signed: tuple[Path, Path], tmp_path: Path) -> None:
    made, key = signed
    private, _ = write_keys(tmp_path / "theirs")
    edited(made)
    reseal(made)
    sign(made, signing(private))
    assert "the signature does not hold" in refused("verify", made, "--key", key)


@pytest.mark.attack("signature")
def test_another_key_s_name_in_the_signature_changes_nothing(signed: tuple[Path, Path], tmp_path: Path) -> None:
    made, key = signed
    hint = json.loads((made / "model.sig").read_text())["verificationMaterial"]["publicKey"]["hint"]
    private, _ = write_keys(tmp_path / "theirs")
    edited(made)
    reseal(made)
    sign(made, signing(private))
    for name in (hint, None):
        bundle = json.loads((made / "model.sig").read_text())
        bundle["verificationMaterial"]["publicKey"]["hint"] = name
        (made / "model.sig").write_text(json.dumps(bundle))
        with pytest.raises(ReleaseError, match="the signature does not hold"):
            check_key(made, key)


@pytest.mark.attack("signature")
def test_a_removed_signature_is_missed(signed: tuple[Path, Path]) -> None:
    made, key = signed
    (made / "model.sig").unlink()
    assert "is not signed: there is no model.sig" in refused("verify", made, "--key", key)


@pytest.mark.attack("signature")
def test_what_was_signed_with_files_left_out_does_not_hold(signed: tuple[Path, Path], tmp_path: Path) -> None:
    """The library itself would verify this one: the signature says which paths are not to be looked at."""
    import model_signing

    made, key = signed
    added(".github/evil.py")(made)
    reseal(made)
    (made / "model.sig").unlink()
    private = str(tmp_path / "keys/private.pem")
    model_signing.signing.Config().set_hashing_config(
        model_signing.hashing.Config().set_ignored_paths(paths=["model.sig", "base"])
    ).use_elliptic_key_signer(private_key=private).sign(made, made / "model.sig")
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).verify(made, made / "model.sig")
    assert "the signature does not hold" in refused("verify", made, "--key", key)


def test_the_standard_s_own_program_verifies_it(signed: tuple[Path, Path]) -> None:
    made, key = signed
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--signature", str(made / "model.sig"),
               "--public_key", str(key), "--no-ignore-git-paths", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_each_curve_signs_also_with_a_password(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch, curve: ec.EllipticCurve
) -> None:
    private, public = write_keys(tmp_path / "keys", curve, b"open sesame")
    made = shutil.copytree(release, tmp_path / "made")
    with pytest.raises(ReleaseError, match=f"stands in {PASSWORD}"):
        check_signing(signing(private))
    monkeypatch.setenv(PASSWORD, "open sesame")
    check_signing(signing(private))
    sign(made, signing(private))
    check_key(made, public)


def test_a_signed_release_says_so_where_nobody_asks(signed: tuple[Path, Path]) -> None:
    made, _ = signed
    lines = call("verify", made).stdout.splitlines()
    assert lines[0] == f"OK: {made} holds what its manifest lists"
    assert lines[1].startswith("It is signed, and the signature was not checked")


def test_the_key_goes_nowhere_and_changes_no_digest(signed: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = signed
    secret = (tmp_path / "keys/private.pem").read_text().splitlines()[1].encode()
    assert not any(secret in path.read_bytes() for path in made.rglob("*") if path.is_file())
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in made.rglob("*.s*") if path.is_file())
    ways: list[list[str]] = [[], ["release.sign.key=a.pem"], ["release.sign.keyless=true"]]
    recipes = [load(TINY, way) for way in ways]
    assert len({_recipe_digest(recipe) for recipe in recipes}) == 1


@pytest.mark.parametrize("sign", ["{}", "{key: a.pem, keyless: true}", "{keyless: false}", "{keys: a.pem}", "a.pem"])
def test_a_recipe_names_one_way_to_sign(sign: str) -> None:
    with pytest.raises(RecipeError, match="sign"):
        load(TINY, [f"release.sign={sign}"])


@pytest.mark.parametrize("content", [None, b"", b"no key", b"public", b"ed25519"])
def test_a_key_that_cannot_sign_is_told_before_the_run(tmp_path: Path, content: bytes | None) -> None:
    _, public = write_keys(tmp_path / "keys")
    path = tmp_path / "mine.pem"
    if content == b"public":
        content = public.read_bytes()
    elif content == b"ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
        content = key.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReleaseError, match=r"release\.sign\.key: .*mine\.pem is no private key in PEM"):
        check_signing(signing(path))
    assert "release.sign.key" in refused("check", TINY, "--set", f"release.sign.key={path}")
    assert "release.sign.key" in refused("run", TINY, "--set", f"release.sign.key={path}", "--runs", tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/artifacts/*"))


def test_a_wrong_public_key_is_told(signed: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = signed
    for name in ("keys/private.pem", "nowhere.pem"):
        assert "is no public key in PEM" in refused("verify", made, "--key", tmp_path / name)
    assert "belong together" in refused("verify", made, "--identity", "a@example.com")
    assert "--key or --identity" in refused(
        "verify", made, "--key", "a", "--identity", "a", "--identity-provider", "https://example.com"
    )


def test_without_the_library_one_line_says_what_to_install(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = signed
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert "pip install 'triptych[sign]'" in refused("verify", made, "--key", key)
    assert call("verify", made).exit_code == 0


@pytest.mark.attack("signature")
def test_a_key_s_signature_is_no_identity_s(signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sigstore's own trust is not asked here, where there is no network."""
    from model_signing._signing import sign_sigstore

    made, _ = signed
    monkeypatch.setattr(sign_sigstore.Verifier, "__init__", lambda self, **_: None)
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        check_identity(made, "a@example.com", "https://accounts.example.com")
