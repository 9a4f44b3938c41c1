"""Pack what floq needs on a GPU host that has Python 3.12, JAX, Equinox, Optax and SciPy, but no network.

    python benchmarks/gpu/bundle.py OUT_DIR                # here, with a package index: writes OUT_DIR/site.zip, 30 MB
    python -m zipfile -e OUT_DIR/site.zip site             # there

Versions are those of constraints.txt. Of dm_control only what OGBench imports is packed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = (
    *("mujoco", "mujoco-core", "dm_control", "dm-env", "dm-tree", "glfw", "PyOpenGL", "lxml", "pyparsing", "labmaze"),
    *("gymnasium", "Farama-Notifications", "ogbench", "tyro", "docstring_parser", "shtab", "typeguard", "rich"),
    *("markdown-it-py", "mdurl", "Pygments", "safetensors", "jaxtyping", "wadler_lindig", "filelock", "cloudpickle"),
)
NOT_NEEDED = re.compile(r"dm_control/(suite|locomotion|composer|entities|manipulation|blender)/|.*_test\.py$")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def pinned() -> list[str]:
    """`name==version` of the packages, as far as the constraints know them for Python 3.12."""
    versions: dict[str, str] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        pin, _, marker = line.partition(";")
        name, equals, version = pin.strip().partition("==")
        if equals and "<" not in marker:
            versions[_same(name)] = version
    return [f"{name}=={versions[_same(name)]}" if _same(name) in versions else name for name in PACKAGES]


def _same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as wheels:
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", "--dest", wheels, *platforms, *pinned()]
        subprocess.run(command, check=True)
        files: dict[str, bytes] = {}  # a later wheel completes an earlier one: mujoco_core mujoco
        for wheel in sorted(Path(wheels).glob("*.whl")):
            with zipfile.ZipFile(wheel) as packed:
                files |= {name: packed.read(name) for name in packed.namelist() if not NOT_NEEDED.match(name)}
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out / "site.zip", "w", zipfile.ZIP_DEFLATED) as site:
        for name, content in files.items():
            site.writestr(name, content)
    print(f"{out / 'site.zip'}: {(out / 'site.zip').stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
