"""The licences of what floq stands on, as the installed packages declare them: directly and through others, for floq
itself and for each extra. Prints docs/licences.md:

    python benchmarks/licences.py > docs/licences.md

Extras that are not installed are named and left out.
"""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NOT_DISTRIBUTED = ("dev", "docs")  # tools of those who work on floq
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EUPL)|GNU|Mozilla", re.IGNORECASE)

BUNDLED = {
    "imageio-ffmpeg": "its wheels bring an ffmpeg binary, which is under the GPL, version 2 or later: floq runs it as "
    "a program of its own; who passes the wheel on passes that binary on",
    "numpy": "its wheels bring OpenBLAS (BSD) and GCC's runtime libraries (GPL 3 with the runtime library exception)",
    "scipy": "its wheels bring OpenBLAS (BSD) and GCC's runtime libraries (GPL 3 with the runtime library exception)",
    "pillow": "its wheels bring image libraries under permissive licences",
    "h5py": "its wheels bring HDF5 (BSD-like)",
    "lxml": "its wheels bring libxml2 and libxslt (MIT)",
    "glfw": "its wheels bring GLFW (zlib/libpng)",
}
"""What a package's own declaration does not tell of the binaries in its wheels."""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"floq": project["dependencies"]} | {
        f"floq[{extra}]": names
        for extra, names in project["optional-dependencies"].items()
        if extra not in NOT_DISTRIBUTED
    }
    users: dict[str, list[str]] = {}
    direct: set[str] = set()
    absent: list[str] = []
    for user, requirements in wanted.items():
        found, lacking = closure(requirements)
        absent += [f"{user} ({', '.join(lacking)})"] if lacking else []
        for name in found if not lacking else []:
            if user == "floq" or "floq" not in users.get(name, []):
                users.setdefault(name, []).append(user)
        direct |= {canonical(Requirement(text).name) for text in requirements}
    print("# Licences of dependencies\n")
    print(
        "Written by `python benchmarks/licences.py`, from what the installed packages declare. floq itself is under the"
    )
    print("[MIT licence](https://opensource.org/license/mit). Packages in **bold** are asked for, others by those.")
    print("What has an asterisk is under a licence with conditions for those who pass it on, explained below.\n")
    print("| package | version | licence | for |\n|---|---|---|---|")
    copyleft = []
    for name in sorted(users):
        package = distribution(name)
        licence = licence_of(package)
        copyleft += [name] if COPYLEFT.search(licence) else []
        star = "\\*" if name in copyleft or "GPL" in BUNDLED.get(name, "") else ""
        shown = f"**{name}**" if name in direct else name
        print(f"| {shown} | {package.version} | {licence}{star} | {', '.join(users[name])} |")
    print("\n## Conditions\n")
    for name in copyleft:
        print(f"- {name} declares {licence_of(distribution(name))}: used as it is; changes to its own files")
        print("  that are passed on stay under that licence. floq is no part of it.")
    for name in sorted(BUNDLED):
        if name in users:
            print(f"- {name}: {BUNDLED[name]}.")
    if absent:
        print(f"\nNot installed where this was written, and not listed: {'; '.join(absent)}.")


def closure(requirements: list[str]) -> tuple[set[str], list[str]]:
    """The packages that these requirements bring in here, and those of them that are not installed."""
    found: set[str] = set()
    lacking: list[str] = []
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            lacking.append(name)
            continue
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for text in package.requires or []:
            inner = Requirement(text)
            where = [{"extra": extra} for extra in ("", *requirement.extras)]
            applies = inner.marker is None or any(map(inner.marker.evaluate, where))
            if applies and canonical(inner.name) not in found:
                waiting.append(inner)
    return found, lacking


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(package: Distribution) -> str:
    """What a package declares: the expression of its metadata, else its classifiers, else its own words."""
    about: Any = package.metadata  # a message, whose stubs lack `get`
    if expression := about.get("License-Expression"):
        return expression
    names = about.get_all("Classifier") or []
    classified = [name.split(" :: ")[-1] for name in names if name.startswith("License ::")]
    classified = [name for name in classified if name != "OSI Approved"]
    text = (about.get("License") or "").strip().splitlines()
    short = text[0] if text and len(text[0]) < 60 else ""
    return ", ".join(classified) or short or "not declared"


if __name__ == "__main__":
    main()
