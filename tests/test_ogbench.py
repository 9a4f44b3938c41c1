"""OGBench files: our labels equal its own, and damaged or missing files are explained."""

import dataclasses
import json
import warnings
from typing import Any

import jax
import numpy as np
import ogbench
import pytest

from floq import cli
from floq.data.collection.collect import collect, recipe
from floq.data.formats import npz
from floq.data.formats.ogbench import load_tasks, provenance
from floq.envs import environments
from floq.utils.errors import UserError

NAME = "pointmaze-medium-navigate-v0"
TASKS = ["singletask", "singletask-task1"]


@pytest.mark.parametrize("task", ["singletask", "singletask-task3", "singletask-task5"])
def test_transitions_equal_ogbenchs_own_loader(dataset_dir, task):
    env_name = NAME.replace("-v0", f"-{task}-v0")
    ours = load_tasks([env_name], dataset_dir)[0]
    _, *theirs = ogbench.make_env_and_datasets(env_name, dataset_dir=str(dataset_dir))
    for split, reference in zip((ours.train, ours.validation), theirs, strict=True):
        batch = jax.jit(jax.vmap(lambda split, row: split.transition(row, 1, 0.99), (None, 0)))(split, split.starts)
        for key in ("observations", "actions", "next_observations", "rewards", "masks", "terminals"):
            np.testing.assert_array_equal(batch[key], reference[key], err_msg=key)
    assert "3 of the published 1000 episodes" in ours.provenance


def test_tasks_share_observations_and_actions_on_the_device(dataset_dir):
    names = [NAME.replace("-v0", f"-singletask{task}-v0") for task in ("-task1", "-task2", "-task3", "", "-task5")]
    together, alone = load_tasks(names, dataset_dir), [load_tasks([name], dataset_dir)[0] for name in names]
    for one, other in zip(together, alone, strict=True):
        assert one.train.fingerprint() == other.train.fingerprint()
        assert one.validation.fingerprint() == other.validation.fingerprint()
    for key in ("observations", "actions", "ends", "starts"):
        assert len({getattr(splits.train, key).unsafe_buffer_pointer() for splits in together}) == 1
    assert len({splits.train.fingerprint() for splits in together}) > 1
    with pytest.raises(UserError, match="do not share one dataset: pointmaze-medium-navigate-v0, pointmaze-large"):
        load_tasks([names[0], "pointmaze-large-navigate-singletask-v0"], dataset_dir)


@pytest.fixture
def manipulation_dir(tmp_path, monkeypatch, name):
    """Two episodes of a manipulation dataset, in which some rows are made to solve a task."""
    made = dataclasses.replace(recipe(name), rows=400)
    monkeypatch.setattr("floq.data.collection.collect.recipe", lambda name: made)
    collect(name, tmp_path, episodes=1, workers=2)
    for task in TASKS:
        env = environments.make(name.replace("-v0", f"-{task}-v0"))
        env.reset()
        base: Any = env.unwrapped
        first = 100 * (1 + TASKS.index(task))
        for file in (f"{name}.npz", f"{name}-val.npz"):
            with np.load(tmp_path / file) as stored:
                rows = dict(stored)
            if "cube" in name:  # the first cube is in place in 50 rows, the second in 25 of these
                rows["qpos"][first : first + 50, 14:17] = base._data.mocap_pos[0]
                rows["qpos"][first : first + 25, 21:24] = base._data.mocap_pos[1]
            else:
                rows["button_states"][first : first + 50] = base._target_button_states
            np.savez(tmp_path / file, **rows)
    return tmp_path


@pytest.mark.parametrize("name", ["cube-double-play-v0", pytest.param("puzzle-3x3-play-v0", marks=pytest.mark.slow)])
def test_manipulation_labels_equal_ogbenchs_own(manipulation_dir, name):
    for task in TASKS:
        env_name = name.replace("-v0", f"-{task}-v0")
        ours = load_tasks([env_name], manipulation_dir)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OGBench's spaces
            _, *theirs = ogbench.make_env_and_datasets(env_name, dataset_dir=str(manipulation_dir))
        for split, reference in zip((ours.train, ours.validation), theirs, strict=True):
            starts = np.asarray(split.starts)
            for key in ("observations", "actions", "rewards", "masks"):
                np.testing.assert_array_equal(np.asarray(getattr(split, key))[starts], reference[key], err_msg=key)
            np.testing.assert_array_equal(np.asarray(split.observations)[starts + 1], reference["next_observations"])
            np.testing.assert_array_equal(np.asarray(split.ends)[starts + 1], reference["terminals"])
            assert 20 < (reference["masks"] == 0).sum() < 200
            assert len(np.unique(reference["rewards"])) > 2
    post = load_tasks([env_name], manipulation_dir, "post")[0].train
    starts = np.asarray(ours.train.starts)
    np.testing.assert_array_equal(np.asarray(post.rewards)[starts], np.asarray(ours.train.rewards)[starts + 1])


def test_post_labels_come_from_the_next_state(dataset_dir):
    successes = 0
    for task in range(1, 6):
        env_name = NAME.replace("-v0", f"-singletask-task{task}-v0")
        pre, post = (load_tasks([env_name], dataset_dir, timing)[0].train for timing in ("pre", "post"))
        starts = np.asarray(pre.starts)
        np.testing.assert_array_equal(np.asarray(post.rewards)[starts], np.asarray(pre.rewards)[starts + 1])
        np.testing.assert_array_equal(np.asarray(post.masks)[starts], np.asarray(pre.masks)[starts + 1])
        successes += int((pre.masks == 0).sum())
    assert successes > 0


def test_provenance_without_a_record(tmp_path):
    assert provenance(NAME, tmp_path) == f"{NAME}: not collected here"


def test_provenance_of_a_full_collection(tmp_path):
    record = {"episodes": 1000, "published_episodes": 1000, "seed": 4}
    (tmp_path / f"{NAME}.json").write_text(json.dumps(record))
    assert provenance(NAME, tmp_path) == f"{NAME}: 1000 episodes, collected here with seed 4"


def test_half_a_dataset_is_named(tmp_path, dataset_dir):
    (tmp_path / f"{NAME}.npz").write_bytes((dataset_dir / f"{NAME}.npz").read_bytes())
    with pytest.raises(UserError, match=f"{NAME}-val.npz is missing beside"):
        load_tasks([NAME.replace("-v0", "-singletask-v0")], tmp_path)


def test_damaged_files_are_refused(tmp_path, dataset_dir):
    whole = (dataset_dir / f"{NAME}.npz").read_bytes()
    truncated, pickled, incomplete = (tmp_path / f"{name}.npz" for name in ("truncated", "pickled", "incomplete"))
    truncated.write_bytes(whole[: len(whole) // 2])
    np.savez(pickled, observations=np.array([{}], dtype=object), actions=np.zeros(1), terminals=np.zeros(1))
    np.savez(incomplete, observations=np.zeros((2, 1)))
    flat = tmp_path / "flat.npz"
    np.save(tmp_path / "flat.npy", np.zeros(3))
    (tmp_path / "flat.npy").rename(flat)
    empty = tmp_path / "empty.npz"
    np.savez(empty, observations=np.zeros((0, 2)), actions=np.zeros((0, 2)), terminals=np.zeros(0))
    for path, message in (
        (flat, "cannot be read"),
        (empty, "there are no rows"),
        (truncated, "cannot be read"),
        (pickled, "cannot be read"),
        (incomplete, "lacks actions"),
    ):
        with pytest.raises(UserError, match=message):
            npz.read(path)


def test_random_damage_is_one_kind_of_error(tmp_path):
    """Flipped bytes anywhere in a compressed file: it is read, or refused with a UserError, and nothing else."""
    whole, random = tmp_path / "whole.npz", np.random.default_rng(0)
    np.savez_compressed(whole, observations=np.arange(20.0).reshape(10, 2), actions=np.zeros((10, 1)),
                        terminals=np.arange(10) == 9)  # fmt: skip
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole.read_bytes())
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            npz.read(tmp_path / "damaged.npz")
        except UserError:
            refused += 1
    assert refused > 200


def test_a_truncated_download_is_named_on_one_line(tmp_path, dataset_dir, capsys):
    for file in (f"{NAME}.npz", f"{NAME}-val.npz"):
        whole = (dataset_dir / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    assert cli.run(["train", f"--dataset_dir={tmp_path}", f"--save_dir={tmp_path / 'exp'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "delete it and fetch or collect it again" in line
    assert {path.name for path in tmp_path.iterdir()} == {f"{NAME}.npz", f"{NAME}-val.npz"}


def with_rows(directory, dataset_dir, **changes):
    """A copy of the collected dataset in which some arrays are others; None removes one."""
    for file in (f"{NAME}.npz", f"{NAME}-val.npz"):
        with np.load(dataset_dir / file) as stored:
            rows = dict(stored)
        rows |= {key: change(rows[key].copy()) for key, change in changes.items() if change is not None}
        np.savez(directory / file, **{key: x for key, x in rows.items() if changes.get(key, x) is not None})


def nan_in_row_7(x):
    x[7] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": nan_in_row_7}, "v0.npz: observations is not finite in 1 of 3003 rows, the first is row 7"),
        ({"qpos": nan_in_row_7}, "qpos is not finite in 1 of 3003 rows, the first is row 7"),
        (
            {"actions": lambda x: x[:-1]},
            "all arrays must have equally many rows, but they have: observations 3003, act",
        ),
        ({"actions": lambda x: x[:, 0]}, "actions has shape (3003,), it must be (rows, size)"),
        ({"terminals": lambda x: np.stack([x, x], 1)}, "terminals has shape (3003, 2), it must be (rows,)"),
        ({"observations": lambda x: np.hstack([x, x])}, "observations has 4 numbers per row, pointmaze-medium"),
        ({"actions": lambda x: np.hstack([x, x])}, "actions has 4 numbers per row"),
        ({"qpos": lambda x: x[:, :1]}, "qpos has 1 numbers per row"),
        ({"qpos": None}, "lacks qpos, which the rewards of"),
        ({"actions": lambda x: x.astype("U8")}, "actions holds <U8, not numbers"),
    ],
)
def test_wrong_data_is_named_on_one_line_and_nothing_is_written(dataset_dir, tmp_path, capsys, changes, message):
    with_rows(tmp_path, dataset_dir, **changes)
    assert cli.run(["train", f"--dataset_dir={tmp_path}", f"--save_dir={tmp_path / 'exp'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert message in line
    assert f"{tmp_path}" in line
    assert not (tmp_path / "exp").exists()
