"""OGBench files: our labels equal its own, and damaged or missing files are explained."""

import json
import urllib.error

import jax
import numpy as np
import ogbench
import pytest

from floq.data.ogbench import load, provenance, read_rows
from floq.errors import UserError

NAME = "pointmaze-medium-navigate-v0"


@pytest.mark.parametrize("task", ["singletask", "singletask-task3", "singletask-task5"])
def test_transitions_equal_ogbenchs_own_loader(dataset_dir, task):
    env_name = NAME.replace("-v0", f"-{task}-v0")
    ours = load(env_name, dataset_dir)
    _, *theirs = ogbench.make_env_and_datasets(env_name, dataset_dir=str(dataset_dir))
    for split, reference in zip((ours.train, ours.validation), theirs, strict=True):
        batch = jax.vmap(lambda row, split=split: split.transition(row, 1, 0.99))(split.starts)
        for key in ("observations", "actions", "next_observations", "rewards", "masks", "terminals"):
            np.testing.assert_array_equal(batch[key], reference[key], err_msg=key)
    assert "3 of the published 1000 episodes" in ours.provenance


def test_post_labels_come_from_the_next_state(dataset_dir):
    successes = 0
    for task in range(1, 6):
        env_name = NAME.replace("-v0", f"-singletask-task{task}-v0")
        pre, post = (load(env_name, dataset_dir, timing).train for timing in ("pre", "post"))
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


def test_a_missing_dataset_names_the_file_the_source_and_the_remedy(tmp_path, monkeypatch):
    def refuse(*_):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(ogbench, "download_datasets", refuse)
    with pytest.raises(UserError) as error:
        load("pointmaze-large-navigate-singletask-v0", tmp_path)
    message = str(error.value)
    assert str(tmp_path / "pointmaze-large-navigate-v0.npz") in message
    assert "no route to host" in message
    assert "floq data collect pointmaze-large-navigate-v0" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no scripted expert can make it"):
        load("antmaze-large-navigate-singletask-v0", tmp_path)


def test_half_a_dataset_is_named(tmp_path, dataset_dir):
    (tmp_path / f"{NAME}.npz").write_bytes((dataset_dir / f"{NAME}.npz").read_bytes())
    with pytest.raises(UserError, match=f"{NAME}-val.npz is missing beside"):
        load(NAME.replace("-v0", "-singletask-v0"), tmp_path)


def test_damaged_files_are_refused(tmp_path, dataset_dir):
    whole = (dataset_dir / f"{NAME}.npz").read_bytes()
    truncated, pickled, incomplete = (tmp_path / f"{name}.npz" for name in ("truncated", "pickled", "incomplete"))
    truncated.write_bytes(whole[: len(whole) // 2])
    np.savez(pickled, observations=np.array([{}], dtype=object), actions=np.zeros(1), terminals=np.zeros(1))
    np.savez(incomplete, observations=np.zeros((2, 1)))
    for path, message in ((truncated, "cannot be read"), (pickled, "cannot be read"), (incomplete, "lacks actions")):
        with pytest.raises(UserError, match=message):
            read_rows(path)
