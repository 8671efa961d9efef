"""What is built installs into an empty environment and runs there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "triptych"
RECIPE = Path(__file__).parent / "tiny.yaml"


def ran(*command: str | Path, folder: Path) -> str:
    """What a program says that ends well, without anything of the environment of these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def interpreter(version: str) -> Path:
    """A Python of this version, or skips the test."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}*/bin/python{version}"))
    for place in [sys.executable, shutil.which(f"python{version}"), *beside]:
        ask = "import sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
        if place and subprocess.run([place, "-c", ask], capture_output=True, text=True).stdout.strip() == version:
            return Path(place)
    pytest.skip(f"this machine has no Python {version}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is built here."""
    folder = tmp_path_factory.mktemp("wheel")
    ran(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, python: Path, folder: Path) -> Path:
    """The programs of a new environment in which there is the wheel and nothing else."""
    ran(python, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    programs = folder / "venv" / "bin"
    ran(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index",
        "--quiet", "--no-compile", wheel, folder=folder)
    return programs


def test_a_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    built = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert built == here
    assert {"triptych/starter/recipe.yaml", "triptych/py.typed", "triptych/people/page.html"} < built


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_module_is_read_by_the_pythons_that_are_told(version: str, wheel: Path, tmp_path: Path) -> None:
    programs = install(wheel, interpreter(version), tmp_path)
    (package,) = (tmp_path / "venv").glob("lib/*/site-packages/triptych")
    ran(programs / "python", "-W", "error", "-m", "compileall", "-q", package, folder=tmp_path)
    said = ran(programs / "python", "-c", "import triptych; print(triptych.TriptychError.__module__)", folder=tmp_path)
    assert said == "triptych.errors\n"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_an_installed_wheel_checks_and_runs_recipes(
    version: str, wheel: Path, policy_folder: Path, tmp_path: Path
) -> None:
    if version != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"torch is installed for Python {sys.version_info.major}.{sys.version_info.minor}, not {version}")
    programs = install(wheel, interpreter(version), tmp_path)
    (own,) = (tmp_path / "venv").glob("lib/*/site-packages")
    # The dependencies that are here; no .pth of theirs is followed, so that the package is the wheel's.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    said = ran(programs / "python", "-c", "import triptych; print(triptych.__file__)", folder=tmp_path)
    assert Path(said.strip()).parent == own / "triptych"
    ran(programs / "triptych", "init", "mine", folder=tmp_path)
    own_model = ["--set", f"base.from={policy_folder / 'model'}", "--set", "instruct.context=256"]
    ran(programs / "triptych", "check", "mine/recipe.yaml", *own_model, folder=tmp_path)
    ran(programs / "triptych", "run", RECIPE, folder=tmp_path)
    assert "OK" in ran(programs / "triptych", "verify", "runs/tiny/release", folder=tmp_path)
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
