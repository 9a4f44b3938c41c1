"""What is installed: the wheel and the source distribution have all that they should, and nothing else."""

import email
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STRAY = ("MUJOCO_LOG.TXT", "src/floq/__pycache__/run.cpython-311.pyc", "exp/floq/config.json", "dist/old.whl")


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The two files, built offline from a copy of what git tracks, beside what lies about in a used checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in STRAY:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("stray")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


def test_the_wheel_has_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    info = f"floq-{PROJECT['version']}.dist-info"
    package = {name.removeprefix("src/") for name in tracked() if name.startswith("src/floq/")}
    assert {
        "floq/py.typed",
        "floq/analysis/report/page.html.j2",
        "floq/analysis/report/report.md.j2",
        "floq/analysis/report/published.toml",
        "floq/data/collection/ant.safetensors",
    } <= package
    assert names - package == {f"{info}/{x}" for x in ("METADATA", "WHEEL", "RECORD", "entry_points.txt",
                                                       "licenses/LICENSE")}  # fmt: skip
    assert package - names == set()


def test_the_wheel_says_what_it_is(built):
    info = f"floq-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(built[0]) as wheel:
        about = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        commands = wheel.read(f"{info}/entry_points.txt").decode()
        licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert (about["Name"], about["Version"]) == ("floq", PROJECT["version"])
    assert (about["License-Expression"], about["License-File"]) == ("MIT", "LICENSE")
    assert licence.startswith("MIT License")
    assert about["Requires-Python"] == ">=3.11"
    assert about.get_all("Classifier") == PROJECT["classifiers"]
    assert about["Description-Content-Type"] == "text/markdown"
    extras = set(about.get_all("Provides-Extra") or [])
    assert extras == set(PROJECT["optional-dependencies"])
    assert f"floq = {PROJECT['scripts']['floq']}" in commands


def test_the_source_distribution_has_what_git_tracks_and_nothing_else(built):
    with tarfile.open(built[1]) as source:
        names = {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}
    assert names - {"PKG-INFO"} <= tracked()
    wanted = ("src/floq/", "tests/", "LICENSE", "README.md", "pyproject.toml", "constraints")
    assert {name for name in tracked() if name.startswith(wanted)} <= names
