"""The page in headless Chromium: it renders, and complains of nothing. Skipped where there is no Chromium;
`apt-get install chromium` brings one."""

import math

import chromium
import matplotlib.pyplot as plt
import numpy as np
import pytest
from run_folders import TASK, make_run

from floq import cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.executable() is None, reason="there is no Chromium on this machine"),
]
FIGURES = "[...document.querySelectorAll('.figures svg')]"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("exp")
    for critic in ("floq", "scalar"):
        for task in (TASK, TASK.replace("-v0", "-task2-v0")):
            for seed in range(3):
                best = 0.2 * seed + (0.3 if critic == "floq" else 0.1)
                settings = {"offline_steps": 100, "online_steps": 100}
                make_run(root, task, seed, [0.0, best / 2, best], agent={"critic": critic}, **settings)
    evaluation = {"evaluation/success": [math.nan] * 2, "evaluation/episode.return": [1.0, 2.0]}
    make_run(root, "Ant-v5", evaluation=evaluation, finished=False)
    assert cli.run(["report", str(root), f"--out={root / 'report.html'}"]) == 0
    return root / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_renders_in_narrow_and_wide_windows_dark_and_light(report, page, tmp_path, width, dark):
    page.open(report, width, dark=dark)
    edges = page.run(f"{FIGURES}.map(x => x.getBoundingClientRect().right)")
    assert len(edges) == 5  # the curves of three tasks, averages, profiles
    assert max(edges) <= width
    assert page.run("document.documentElement.scrollWidth") <= width  # tables scroll on their own
    heights = page.run(f"{FIGURES}.map(x => x.querySelector('text').getBoundingClientRect().height)")
    assert min(heights) > 9  # pixels: legible
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert page.complaints == []
    assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []


def test_figures_have_the_colours_of_the_page(report, page, tmp_path):
    brightness = []
    for dark in (False, True):
        page.open(report, 1400, dark=dark)
        page.run(f"{FIGURES}[0].scrollIntoView()")
        page.picture(tmp_path / "page.png", whole=False)
        brightness.append(np.median(plt.imread(tmp_path / "page.png")[..., :3]))
    assert brightness[0] > 0.95 > 0.2 > brightness[1]


def test_where_runs_go_online_is_marked(report, page):
    page.open(report, 1400)
    assert page.run(f"{FIGURES}[0].textContent.includes('online')")
    assert page.run(f"{FIGURES}.filter(x => x.textContent.includes('online')).length") == 2
