"""Collection: the published procedure and format, reproducible, whatever the number of workers."""

import json

import numpy as np
import ogbench
import pytest

from floq import envs
from floq.data.collect import PointMazeCollector, Recipe, collect, recipe
from floq.errors import UserError

NAME = "pointmaze-medium-navigate-v0"


def test_recipes_have_the_published_counts():
    counts = {name: (recipe(name).episodes, recipe(name).rows) for name in (
        NAME, "pointmaze-giant-navigate-v0", "pointmaze-teleport-stitch-v0"
    )}  # fmt: skip
    assert list(counts.values()) == [(1000, 1001), (500, 2001), (5000, 201)]
    with pytest.raises(UserError, match="scripted experts are available for"):
        recipe("antmaze-large-navigate-v0")


def test_files_have_ogbenchs_format_and_its_loader_opens_them(dataset_dir):
    with np.load(dataset_dir / f"{NAME}.npz", allow_pickle=False) as file:
        rows = {key: file[key] for key in file}
    assert {key: (x.shape, str(x.dtype)) for key, x in rows.items()} == {
        "observations": ((3003, 2), "float32"),
        "actions": ((3003, 2), "float32"),
        "terminals": ((3003,), "bool"),
        "qpos": ((3003, 2), "float32"),
        "qvel": ((3003, 2), "float32"),
    }
    np.testing.assert_array_equal(np.flatnonzero(rows["terminals"]), [1000, 2001, 3002])
    _, train, validation = ogbench.make_env_and_datasets(NAME, dataset_dir=str(dataset_dir))
    assert len(train["observations"]) == 3000
    assert len(validation["observations"]) == 1000


def test_data_is_what_the_simulator_did(dataset_dir):
    """Replaying the recorded actions from the first observation reproduces the recorded path."""
    with np.load(dataset_dir / f"{NAME}.npz", allow_pickle=False) as file:
        obs, actions = file["observations"][:200], file["actions"][:200]
    env = envs.make(NAME, terminate_at_goal=False)
    env.reset_with((0,))
    env.unwrapped.set_xy(obs[0])  # type: ignore[attr-defined]
    for row in range(199):
        np.testing.assert_allclose(env.step(actions[row])[0], obs[row + 1], atol=2e-3)


def test_the_expert_goes_to_its_goals(dataset_dir):
    """A noisy expert advances about 0.2 per step along its path and visits much of the maze."""
    with np.load(dataset_dir / f"{NAME}.npz", allow_pickle=False) as file:
        obs, actions = file["observations"], file["actions"]
    assert np.abs(actions).max() <= 1
    assert 0.02 < np.mean(np.abs(actions) == 1) < 0.7  # noise of 0.5 on a unit direction clips often
    cells = {tuple(cell) for cell in np.round(obs / 4).astype(int)}
    assert len(cells) >= 15  # of 26 free cells, in three episodes


def test_the_result_depends_on_the_seed_and_not_on_the_workers(tmp_path, dataset_dir):
    one = collect(NAME, tmp_path / "one", episodes=3, workers=1)
    other = collect(NAME, tmp_path / "other", episodes=1, seed=1, workers=1)
    with np.load(dataset_dir / f"{NAME}.npz") as a, np.load(one) as b, np.load(other) as c:
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        assert np.abs(a["observations"][:1001] - c["observations"]).max() > 0.1
    records = [json.loads((folder / f"{NAME}.json").read_text()) for folder in (dataset_dir, tmp_path / "one")]
    assert records[0] == records[1]
    assert records[0]["episodes"] == 3
    assert records[0]["published_episodes"] == 1000


def test_stitch_goals_lie_four_cells_away():
    collector = PointMazeCollector(Recipe("pointmaze-medium-v0", "stitch", 1, 201, PointMazeCollector), 0)
    far = collector._cells_at((1, 1), 4)
    assert set(far) == {(3, 3), (4, 2)}  # read off the floor plan
    rows = collector.episode(0)
    assert rows["terminals"].sum() == 1
    assert rows["terminals"][-1]
    path = np.linalg.norm(rows["observations"] - rows["observations"][0], axis=1)
    assert path.max() < 4 * 4 + 4


def test_hallways_are_no_goals():
    """Read off the floor plan: a hallway has walls on two opposite sides and none on the other two."""
    collector = PointMazeCollector(Recipe("pointmaze-medium-v0", "navigate", 1, 1001, PointMazeCollector), 0)
    assert len(collector._free) == 26
    for cell, hallway in {(1, 1): False, (5, 1): True, (3, 3): True, (5, 6): True, (6, 6): False}.items():
        assert collector._is_hallway(cell) == hallway, cell
        assert (cell in collector._goals) != hallway


def test_what_is_refused(tmp_path, dataset_dir):
    with pytest.raises(UserError, match="exists already"):
        collect(NAME, dataset_dir, episodes=1)
    with pytest.raises(UserError, match="episodes=0"):
        collect(NAME, tmp_path, episodes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        collect(NAME, tmp_path / "file" / "folder", episodes=1)
