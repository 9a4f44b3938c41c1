"""The documentation: its site builds, and the links of what is read in the repository lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import benchmark

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
READ_IN_PLACE = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "experiments").glob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")


def headings(page: Path) -> set[str]:
    """The anchors of a page."""
    titles = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?s)```.*?```", "", page.read_text()))
    return {"#" + re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", READ_IN_PLACE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(re.sub(r"(?s)```.*?```", "", page.read_text())):
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.relative_to(ROOT)}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in headings(path), f"{page.relative_to(ROOT)}: {target}{anchor}"


def test_every_comparison_of_the_results_is_drawn():
    page = (DOCS / "results" / "index.md").read_text()
    table = next(part for part in page.split("\n\n") if part.startswith("| regime")).splitlines()[2:]
    effects = benchmark("effects", "experiments").effects(page)
    assert len(effects) == len(table)
    assert effects[0][1] == "one scalar critic, equal learning rate"
    assert all(low <= mean <= high for *_, (mean, low, high) in effects)


def test_the_site_builds_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs", reason="needs floq[docs]")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (build.returncode, build.stdout, build.stderr) == (0, "", "")
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>", page.read_text())
        assert [tag for tag in fetched if "canonical" not in tag] == [], page.name
