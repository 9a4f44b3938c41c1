"""The page in headless Chromium: it renders, it answers the mouse, it complains of nothing. Skipped where there is no
Chromium; `apt-get install chromium` brings one."""

import math

import chromium
import pytest
from run_folders import TASK, make_run

from floq import cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.executable() is None, reason="there is no Chromium on this machine"),
]
CHART = "document.querySelectorAll('.js-plotly-plot')[0]"


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
    assert page.run("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length") > 20
    assert page.run("document.documentElement.scrollWidth") <= width  # tables scroll on their own
    edges = page.run(f"[...{CHART.split('[0]')[0]}].map(x => x.getBoundingClientRect().right)")
    assert max(edges) <= width
    ink = page.run(f"getComputedStyle({CHART}.querySelector('.xtick text')).fill")
    assert ink == ("rgb(230, 230, 230)" if dark else "rgb(34, 34, 34)")
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert page.complaints == []
    assert [address for address in page.requests if not address.startswith(("file:", "data:", "blob:"))] == []


def test_pointing_at_a_line_tells_its_seed_step_and_value(report, page):
    page.open(report, 1400)
    page.run(f"{CHART}.scrollIntoView()")
    x, y = page.run(
        f"""(() => {{
            const chart = {CHART}, layout = chart._fullLayout, box = chart.getBoundingClientRect();
            const seed = chart.data.findIndex(trace => trace.hovertemplate && trace.hovertemplate.includes("seed 2"));
            const point = chart.calcdata[seed][1];
            return [box.x + layout.xaxis._offset + layout.xaxis.c2p(point.x),
                    box.y + layout.yaxis._offset + layout.yaxis.c2p(point.y)];
        }})()"""
    )
    page.point_at(x, y)
    page.wait(f"{CHART}.querySelector('.hovertext') !== null")
    said = page.run(f"{CHART}.querySelector('.hovertext').textContent")
    assert "floq critic" in said
    assert "seed 2, step 100" in said
    assert "success rate 35.0%" in said
    assert page.complaints == []


def test_a_group_can_be_hidden(report, page):
    page.open(report, 1400)
    count = f"{CHART}.querySelectorAll('.scatterlayer .trace').length"
    before = page.run(count)
    page.run("document.querySelector('[data-group^=\"floq\"]').click()")
    page.wait(f"{count} < {before}")
    page.run("[...document.querySelectorAll('[data-all]')][0].click()")
    page.wait(f"{count} === {before}")
    page.run("[...document.querySelectorAll('[data-all]')][1].click()")
    page.wait(f"{count} === 0")
    assert page.complaints == []


def test_intervals_appear_when_few_groups_are_shown(tmp_path, page):
    for alpha in range(5):
        for seed in range(3):
            make_run(tmp_path, seed=seed, success=[0.0, 0.2 * seed], agent={"alpha": float(alpha)})
    assert cli.run(["report", str(tmp_path), f"--out={tmp_path / 'report.html'}"]) == 0
    page.open(tmp_path / "report.html", 1400)
    fills = f"{CHART}.querySelectorAll('.fills path').length"
    assert page.run(fills) == 0
    for number in (0, 1):
        page.run(f"document.querySelectorAll('[data-group]')[{number}].click()")
    page.wait(f"{fills} === 3")
    assert page.complaints == []


def test_where_runs_go_online_is_marked(report, page):
    page.open(report, 1400)
    assert page.run(f"{CHART}.querySelector('.annotation-text').textContent") == "online"
    assert page.run(f"{CHART}.querySelectorAll('.shapelayer path').length") == 1
