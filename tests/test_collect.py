"""Collection: the published procedure and format, reproducible, whatever the number of workers."""

import dataclasses
import json
import shutil
import signal
import zipfile

import numpy as np
import ogbench
import pytest

from floq import cli
from floq.data.collection.collect import _concatenate_parts, collect, recipe
from floq.data.collection.experts import ManipulationExpert, MazeExpert, _cube_in_sight
from floq.envs import environments
from floq.utils.errors import UserError
from floq.utils.files import lock_folder

NAME = "pointmaze-medium-navigate-v0"


def expert(name: str, rows: int, seed: int = 0):
    made = recipe(name)
    return made.expert(name, rows, seed, **made.settings)


def test_recipes_are_the_published_ones():
    """METHOD's table once more, as literals."""
    counts = {
        "pointmaze-medium-navigate-v0": (1000, 1001), "pointmaze-large-navigate-v0": (1000, 1001),
        "pointmaze-teleport-navigate-v0": (1000, 1001), "pointmaze-giant-navigate-v0": (500, 2001),
        "pointmaze-giant-stitch-v0": (5000, 201), "antmaze-medium-navigate-v0": (1000, 1001),
        "antmaze-giant-navigate-v0": (500, 2001), "antmaze-teleport-stitch-v0": (5000, 201),
        "cube-single-play-v0": (1000, 1001), "cube-double-play-v0": (1000, 1001),
        "scene-play-v0": (1000, 1001), "puzzle-3x3-play-v0": (1000, 1001),
        "puzzle-4x4-play-v0": (1000, 1001), "cube-triple-play-v0": (3000, 1001), "puzzle-4x5-noisy-v0": (3000, 1001),
        "cube-quadruple-noisy-v0": (5000, 1001), "puzzle-4x6-play-v0": (5000, 1001),
    }  # fmt: skip
    assert recipe("antmaze-large-stitch-v0").settings == {"action_noise": 0.2, "goal_cells": 4, "walker": "ant"}
    for name, expected in counts.items():
        assert (recipe(name).episodes, recipe(name).rows) == expected, name
    play = {"oracle": "plan", "oracle_settings": {"noise": 0.1, "noise_smoothing": 0.5}}
    play |= {"action_noise": 0.0, "random_action": 0.0}
    noisy = {"oracle": "markov", "oracle_settings": {"min_norm": 0.4}, "action_noise": 0.1}
    stacking = {"cube-single": (0, 0), "cube-double": (0, 0.25), "cube-triple": (0.05, 0.35)}
    stacking |= {"cube-quadruple": (0.1, 0.5), "scene": (0.5, 0.5), "puzzle-4x4": (0.5, 0.5)}
    for env, interval in stacking.items():
        assert recipe(f"{env}-play-v0").settings == play | {"stacking": interval}
        share = {"random_action": 0.2 if env == "puzzle-4x4" else 0.1}
        assert recipe(f"{env}-noisy-v0").settings == noisy | share | {"stacking": interval}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("humanoidmaze-large-navigate-v0", "floq brings no expert for that"),
        ("antsoccer-arena-navigate-v0", "floq brings no expert for that"),
        ("cube-single-play-singletask-task2-v0", "write floq data collect cube-single-play-v0"),
        ("cube-singel-play-v0", "did you mean 'cube-single-play-v0'.*ENV-{play,noisy}-v0"),
    ],
)
def test_what_no_script_can_make(name, message):
    with pytest.raises(UserError, match=message):
        recipe(name)


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
    env = environments.make(NAME, terminate_at_goal=False)
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


@pytest.fixture
def short_maze(monkeypatch):
    """The demonstration's recipe with episodes of 20 rows."""
    made = dataclasses.replace(recipe(NAME), rows=20)
    monkeypatch.setattr("floq.data.collection.collect.recipe", lambda name: made)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob(f"{NAME}*")}


def test_a_stopped_collection_goes_on_without_repeating_episodes(short_maze, tmp_path):
    collect(NAME, tmp_path / "whole", episodes=4, workers=1)

    def stop_after_three(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(NAME, tmp_path / "parts", episodes=4, workers=1, on_progress=stop_after_three)
    assert contents(tmp_path / "parts") == {}  # nothing under a final name
    (partial,) = (tmp_path / "parts").iterdir()
    finished = sorted(partial.glob("0*.npz"))
    assert len(finished) == 3
    finished[1].write_bytes(finished[1].read_bytes()[:100])  # as a crash may leave it
    seen = []
    collect(NAME, tmp_path / "parts", episodes=4, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert not partial.exists()


def test_parts_of_another_procedure_are_not_used(short_maze, tmp_path):
    partial = tmp_path / f".{NAME}.seed0.partial"
    partial.mkdir(parents=True)
    (partial / "how.json").write_text("{}")
    np.savez(partial / "000000.npz", observations=np.zeros((1, 2)))
    collect(NAME, tmp_path, episodes=1, workers=1)
    with np.load(tmp_path / f"{NAME}.npz") as rows:
        assert len(rows["observations"]) == 20


def test_two_collections_of_one_dataset_do_not_meet(short_maze, tmp_path):
    partial = tmp_path / f".{NAME}.seed0.partial"
    partial.mkdir(parents=True)
    with lock_folder(partial, "busy"), pytest.raises(UserError, match="another process is collecting"):
        collect(NAME, tmp_path, episodes=1, workers=1)


def test_too_little_disk_space_is_said_before_it_runs_out(short_maze, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"has 0.0 GB free, the collection needs up to .* GB"):
        collect(NAME, tmp_path, episodes=2, workers=1)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("compressed", [True, False])
def test_parts_are_put_together(tmp_path, compressed):
    """Pixels uncompressed, so that training can map them."""
    parts = [{"pixels": np.full((4, 2, 2, 3), i, np.uint8), "x": np.full((3, 4), float(i)).T} for i in range(3)]
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"{number}.npz", **part)
    _concatenate_parts([tmp_path / f"{number}.npz" for number in range(3)], tmp_path / "all.npz", compressed)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as joined:
        for name in ("pixels", "x"):
            np.testing.assert_array_equal(joined[name], np.concatenate([part[name] for part in parts]))
    kinds = {entry.compress_type for entry in zipfile.ZipFile(tmp_path / "all.npz").infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED}


def test_stitch_goals_lie_four_cells_away():
    collector = expert("pointmaze-medium-stitch-v0", 201)
    far = collector._cells_at((1, 1), 4)
    assert set(far) == {(3, 3), (4, 2)}  # read off the floor plan
    rows = collector.episode(0)
    assert rows["terminals"].sum() == 1
    assert rows["terminals"][-1]
    path = np.linalg.norm(rows["observations"] - rows["observations"][0], axis=1)
    assert path.max() < 4 * 4 + 4


def test_hallways_are_no_goals():
    """Read off the floor plan: a hallway has walls on two opposite sides and none on the other two."""
    collector = expert(NAME, 1001)
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


@pytest.fixture(scope="module")
def scene():
    return expert("scene-play-v0", 250)


@pytest.fixture(scope="module")
def scene_rows(scene):
    return scene.episode(0), scene.episode(1)


def test_a_manipulation_episode_has_ogbenchs_format(scene_rows):
    assert {key: (x.shape, str(x.dtype)) for key, x in scene_rows[0].items()} == {
        "observations": ((250, 40), "float32"),
        "actions": ((250, 5), "float32"),
        "qpos": ((250, 25), "float32"),
        "qvel": ((250, 24), "float32"),
        "button_states": ((250, 2), "int64"),
        "terminals": ((250,), "bool"),
    }
    assert np.flatnonzero(scene_rows[0]["terminals"]).tolist() == [249]
    assert np.abs(scene_rows[0]["actions"]).max() <= 1


@pytest.mark.parametrize("name", ["scene-play-v0", "cube-double-noisy-v0"])
def test_an_episode_depends_on_seed_and_number_alone(name, scene, scene_rows):
    """Not on the episodes before it in the same process."""
    if name == "scene-play-v0":
        second = scene_rows[1]
    else:
        other = expert(name, 250)
        other.episode(0)
        second = other.episode(1)
    for key, x in expert(name, 250).episode(1).items():
        np.testing.assert_array_equal(x, second[key], err_msg=key)
    assert np.abs(expert(name, 250, seed=1).episode(1)["qpos"] - second["qpos"]).max() > 0.1


@pytest.mark.parametrize(("name", "least"), [("cube-single-play-v0", 3), ("puzzle-3x3-noisy-v0", 5)])
def test_the_arm_runs_its_errands(name, least):
    """In 300 steps it moves the cube, or presses buttons, several times; most errands end in success."""
    arm = expert(name, 300)
    assert isinstance(arm, ManipulationExpert)
    done, new_target = [], arm._base.set_new_target
    arm._base.set_new_target = lambda **kw: (done.append(bool(arm._base._success)), new_target(**kw))[1]
    arm.episode(0)
    assert len(done) >= least
    assert np.mean(done) > 0.6


def test_how_a_manipulation_expert_is_disturbed():
    """With an oracle that says 0, a noisy episode's actions are its noise, xi (1, 1, 1, 3, 10) with one xi ~ U[0, 0.1],
    but one in ten is uniformly random; each episode draws its stacking probability from the interval."""
    arm = expert("cube-double-noisy-v0", 400)
    stacking, errands = [], iter(range(10_000))

    class Idle:
        done = property(lambda _: next(errands) % 50 == 0)
        reset = staticmethod(lambda obs, info: None)
        select_action = staticmethod(lambda obs, info: np.zeros(5))

    new_target = arm._base.set_new_target

    def recorded(**settings):
        if "p_stack" in settings:  # not the first target, which the environment sets itself
            stacking.append(settings["p_stack"])
        return new_target(**settings)

    arm._base.set_new_target = recorded
    arm._oracles = dict.fromkeys(arm._oracles, Idle())
    xis, shares = [], []
    for number in range(3):
        actions = arm.episode(number)["actions"]
        random = np.abs(actions[:, :3]).max(axis=1) > 0.5  # noise on a position is at most 0.1 wide
        shares.append(random.mean())
        spread = actions[~random].std(axis=0)
        xis.append(spread[0])
        assert 0 < spread[0] < 0.1
        np.testing.assert_allclose(spread[:4] / spread[0], [1, 1, 1, 3], rtol=0.3)
        assert spread[4] > 4 * spread[0]
        assert len(set(stacking)) == number + 1
    assert len({round(float(xi), 4) for xi in xis}) == 3
    assert 0.03 < np.mean(shares) < 0.15  # 0.1, less those whose three positions are all small
    assert all(0 <= p <= 0.25 for p in stacking)


def test_recorded_manipulation_is_what_the_simulator_does(scene, scene_rows):
    """From a recorded state, the recorded action leads to the next recorded state."""
    rows, base = scene_rows[0], scene._base
    for row in range(0, 200, 20):
        base.set_state(*(rows[key][row].astype(float) for key in ("qpos", "qvel")), rows["button_states"][row])
        scene._env.step(rows["actions"][row])
        np.testing.assert_allclose(base.data.qpos[:6], rows["qpos"][row + 1][:6], atol=2e-3)


def test_a_scene_that_loses_its_cube_is_redone(monkeypatch):
    """The health check by hand, and that an episode which fails it is played anew with other draws."""
    middle, right, left, drawer = (0.4, 0.0, 0.02), (0.4, 0.29, 0.02), (0.4, -0.3, 0.02), (0.4, -0.3, 0.07)
    assert _cube_in_sight(np.array([middle, drawer]))
    assert not _cube_in_sight(np.array([middle, right]))
    assert not _cube_in_sight(np.array([left, middle]))
    verdicts = iter([True, False, True])
    monkeypatch.setattr("floq.data.collection.experts._cube_in_sight", lambda xyz: next(verdicts))
    arm = expert("scene-play-v0", 30)
    first, redone = arm.episode(0), arm.episode(0)
    assert np.abs(first["qpos"] - redone["qpos"]).max() > 0.1


def test_experts_are_those_of_the_recipe():
    assert recipe(NAME).expert is MazeExpert
    assert "walker" not in recipe(NAME).settings
    assert recipe("scene-noisy-v0").expert is ManipulationExpert
    assert recipe("antmaze-giant-stitch-v0").settings["walker"] == "ant"


def test_ctrl_c_keeps_finished_episodes_and_says_so(short_maze, tmp_path, monkeypatch, capsys, request):
    signal_after = iter([False, True])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupt(path, rows):
        np.savez(path, **rows)
        if next(signal_after):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("floq.data.collection.collect._save_part", interrupt)
    flags = [NAME, f"--dataset_dir={tmp_path}", "--episodes=3"]
    assert cli.run(["data", "collect", *flags]) == 130
    assert "stopped with 1 of 4 episodes; the same command goes on" in capsys.readouterr().err
