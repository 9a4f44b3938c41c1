"""Readers of files: the same transitions in every format, nothing lost in a conversion, and damage explained."""

import json
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import gymnasium
import minari as package
import numpy as np
import pytest
from conftest import MAZE_DATA
from episodes import (
    STRUCTURES,
    expected,
    flat,
    make_episodes,
    same,
    transitions,
    write_folder,
    write_hdf5,
    write_minari,
)
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from hypothesis import given, settings
from minari.data_collector import EpisodeBuffer

from floq import cli
from floq.data.arrays import as_float32, from_episodes
from floq.data.dataset import Dataset
from floq.data.formats import d4rl, npz
from floq.data.formats.convert import convert
from floq.data.formats.open import open_dataset, open_splits
from floq.data.formats.tables import Columns, trajectories
from floq.data.options import DataOptions
from floq.envs import environments
from floq.utils import untrusted
from floq.utils.errors import UserError
from floq.utils.schema import read_toml

TASK = MAZE_DATA.replace("-v0", "-singletask-v0")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:minari")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store of Minari datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@given(STRUCTURES)
@settings(max_examples=15, deadline=None)
def test_every_format_gives_the_same_transitions(structure):
    episodes = make_episodes(structure)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", f"{folder}/store")
        here = Path(folder)
        np.savez(here / "flat.npz", **flat(episodes, with_next=True))
        sources = [
            write_hdf5(here / "a.hdf5", flat(episodes, with_next=True)),
            write_folder(here / "episodes", episodes),
            here / "flat.npz",
            write_minari("test/tiny-v0", episodes),
            write_minari("test/wide-v0", episodes, limit=4.0),
        ]
        for source in sources:
            data, has_rewards, *_ = open_dataset(str(source), folder)
            assert has_rewards
            same(transitions(data), expected(episodes))
        whole = from_episodes(episodes)
        for target in (f"{folder}/b.npz", "test/copy-v1", f"{folder}/copy-v1"):
            written = convert(whole, True, target, "made up")
            assert written.exists()
            for back, before in zip(open_dataset(target, folder).data, whole, strict=True):
                rows = ~whole.ends if back.ndim == 1 and back.dtype != bool else slice(None)
                np.testing.assert_array_equal(back[rows], before[rows])
        assert not [path for path in here.rglob("*partial*")]


def test_d4rl_without_next_observations_and_antmaze(tmp_path):
    episodes = make_episodes([(3, True), (4, False), (1, True)])
    arrays = flat(episodes, with_next=False)
    same(
        transitions(d4rl.read(write_hdf5(tmp_path / "hopper.hdf5", arrays)).data), expected(episodes, keeps_last=False)
    )
    name = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"  # as D4RL's files are called
    column = write_hdf5(tmp_path / name, arrays | {"rewards": arrays["rewards"][:, None]})
    np.testing.assert_array_equal(d4rl.read(column).data.rewards[:3], arrays["rewards"][:3] - 1)


def test_minari_dictionaries_are_laid_end_to_end_in_the_order_of_their_keys(store):
    episodes = make_episodes([(3, True), (2, False)])
    write_minari("test/dict-v0", episodes, observations=lambda x: {"b": x[:, 1:], "a": x[:, :1]})
    for name in ("test/dict-v0", str(store / "test" / "dict-v0")):
        data = open_dataset(name, "none").data
        same(transitions(data), expected(episodes))
        assert (data.observations[:, 1] == -data.observations[:, 0]).all()


PARTS = {
    "goal": Box(-9, 9, (2,)),
    "buttons": MultiBinary(3),
    "arm": Tuple((Discrete(3, start=1), Box(-1, 1, (1, 2)), MultiDiscrete([2, 3]))),
    "deep": Dict({"z": Box(0, 1, (1,)), "a": Box(0, 255, (2, 2), np.uint8)}),
}
LAYOUTS = {
    "mapping": lambda: Dict(PARTS),
    "keywords": lambda: Dict(**PARTS),
    "ordered": lambda: Dict(OrderedDict(PARTS)),
    "pairs": lambda: Dict(list(PARTS.items())),
}


class Written(gymnasium.Env):
    """Observations in a space that is written down in different ways."""

    action_space = Box(-1, 1, (1,))

    def __init__(self, layout):
        self.observation_space = LAYOUTS[layout]()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), 0.0, False, self.time == 3, {}


@pytest.fixture
def written():
    for layout in LAYOUTS:
        gymnasium.register(f"Written-{layout}-v0", "test_readers:Written", kwargs={"layout": layout})
    yield
    for layout in LAYOUTS:
        del gymnasium.registry[f"Written-{layout}-v0"]


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up")  # Minari leaves its folders to the garbage collector
@pytest.mark.parametrize("layout", LAYOUTS)
def test_observations_with_names_have_one_order(store, tmp_path, written, layout):
    """However their space was written: in data collected with Minari, converted, and in the environment."""
    name = f"Written-{layout}-v0"
    recorder = package.DataCollector(gymnasium.make(name), jpeg_encoding=False)
    seen = []
    for seed in range(2):
        seen.append(recorder.reset(seed=seed)[0])
        over = False
        while not over:
            obs, _, _, over, _ = recorder.step(np.zeros(1, np.float32))
            seen.append(obs)
    recorder.create_dataset("lab/written-v0", author="a", author_email="b", code_permalink="c", algorithm_name="d")
    recorder._tmp_dir.cleanup()
    wanted = [spaces.flatten(Dict(PARTS), obs) for obs in seen]  # Gymnasium sorts a mapping

    assert cli.run(["data", "convert", "lab/written-v0", str(tmp_path / "copy.npz")]) == 0
    env = environments.make(name)
    for source in ("lab/written-v0", str(tmp_path / "copy.npz")):
        found = open_splits(source, "none", name)
        assert found.parts == env.parts
        np.testing.assert_allclose(open_dataset(source, "none").data.observations, wanted, rtol=1e-6)
    np.testing.assert_allclose(env.reset(seed=7)[0], spaces.flatten(Dict(PARTS), Written(layout).reset(seed=7)[0]))
    assert env.parts == ("arm/0 (3)", "arm/1 (2)", "arm/2 (5)", "buttons (3)", "deep/a (4)", "deep/z (1)", "goal (2)")


def test_a_faulty_file_of_a_folder_is_named(tmp_path):
    for number in range(12):
        obs = np.zeros((3, 1)) if number != 10 else np.full((3, 1), np.nan)
        np.savez(tmp_path / f"{number}.npz", observations=obs, actions=np.zeros((2, 1)), rewards=np.zeros(2))
    with pytest.raises(UserError, match=r", 10\.npz: observations is not finite in 3 of 3 rows"):
        npz.read(tmp_path)


def test_other_names_of_the_same_sizes_are_refused(tmp_path, written):
    data = from_episodes([{"observations": np.zeros((3, 20)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2)}] * 2)
    env = environments.make("Written-pairs-v0")
    convert(data, True, str(tmp_path / "a.npz"), "here", [*env.parts[:-1], "aim (2)"])
    with pytest.raises(UserError, match=r"observations are arm/0 \(3\), .*aim \(2\); those of Written-pairs-v0 are"):
        open_splits(str(tmp_path / "a.npz"), "none", "Written-pairs-v0")


@pytest.mark.parametrize(
    ("space", "values", "reason"),
    [
        (Box(0, 255, (4, 4, 3), np.uint8), np.zeros((3, 50), np.uint8), r"uint8 of shape \(50,\), their space says"),
        (Box(-1, 1, (2,)), np.zeros((3, 3)), r"float64 of shape \(3,\), their space says float32 of shape \(2,\)"),
        (MultiBinary(2), np.full((3, 2), 0.5), r"float64 of shape \(2,\), their space says int8"),
        (
            Dict(cam=Box(0, 255, (2, 2, 3), np.uint8)),
            {"cam": np.zeros((3, 9), np.uint8)},
            r"observations/cam are uint8",
        ),
        (Dict(mission=Text(5)), {"mission": np.zeros((3, 1))}, r"observations/mission is of the space 'Text'"),
        (
            Box(0, 255, (320, 320, 3), np.uint8),
            np.zeros((3, 320, 320, 3), np.uint8),
            r"floq reads up to 262,144 numbers",
        ),
    ],
)
def test_arrays_are_what_their_space_says(store, space, values, reason):
    arrays = dict(actions=np.zeros((2, 1), np.float32), rewards=[0, 0], terminations=[0, 0], truncations=[0, 1])
    buffer = EpisodeBuffer(observations=values, **arrays)
    package.create_dataset_from_buffers("test/odd-v0", [buffer], observation_space=space, action_space=Box(-1, 1, (1,)))
    with pytest.raises(UserError, match=reason) as error:
        open_dataset("test/odd-v0", "none")
    assert "fetch it again" not in str(error.value)


@pytest.mark.parametrize("kind", ["discrete", "dictionary"])
def test_minari_actions_that_are_no_vector(store, kind):
    space = spaces.Discrete(2) if kind == "discrete" else spaces.Dict({"a": spaces.Box(-1, 1, (1,))})
    actions = np.zeros(2, int) if kind == "discrete" else {"a": np.zeros((2, 1), np.float32)}
    buffer = EpisodeBuffer(observations=np.zeros((3, 1)), actions=actions, rewards=[0, 0], terminations=[False, True],
                           truncations=[False, False])  # type: ignore[arg-type]  # fmt: skip
    package.create_dataset_from_buffers(
        "test/odd-v0", [buffer], observation_space=spaces.Box(-1, 1, (1,)), action_space=space
    )
    with pytest.raises(UserError, match="floq needs a vector of continuous actions, this dataset has"):
        open_dataset("test/odd-v0", "none")


def test_minari_never_makes_the_environment_that_a_stranger_names(store, tmp_path):
    """Metadata without spaces make Minari call the entry point that they name: here a function that leaves a file."""
    write_minari("test/tiny-v0", make_episodes([(2, True)]))
    metadata = store / "test" / "tiny-v0" / "data" / "metadata.json"
    values = json.loads(metadata.read_text())
    del values["observation_space"]
    trap = {"id": "Trap-v0", "entry_point": "pathlib:Path.touch", "kwargs": {"self": str(tmp_path / "sprung")}}
    values["env_spec"] = json.dumps(trap)
    metadata.write_text(json.dumps(values))
    with pytest.raises(UserError, match="its metadata lack the spaces"):
        open_dataset("test/tiny-v0", "none")
    assert not (tmp_path / "sprung").exists()


# --- which file a name means, and what a run is given ---


def test_a_file_is_validated_on_its_neighbour_or_on_held_out_episodes(dataset_dir, tmp_path):
    file = str(dataset_dir / f"{MAZE_DATA}.npz")
    with_neighbour = open_splits(file, "none", TASK)
    by_name = open_splits(MAZE_DATA, str(dataset_dir), TASK)
    of_task = open_splits(TASK, str(dataset_dir))
    for splits in (with_neighbour, by_name, of_task):
        assert (len(splits.train), len(splits.validation)) == (3000, 1000)
        assert "3 of the published 1000 episodes" in splits.provenance
        assert splits.provenance.endswith(f"rewards of {TASK}; validated on {MAZE_DATA}-val.npz")
        assert splits.train.fingerprint() == with_neighbour.train.fingerprint()
    shutil.copy(file, tmp_path / "alone.npz")
    alone = open_splits(str(tmp_path / "alone.npz"), "none", TASK)
    assert (len(alone.train), len(alone.validation)) == (2000, 1000)
    assert alone.provenance == f"{tmp_path}/alone.npz, rewards of {TASK}; its last episode held out"


def test_both_parts_are_checked(dataset_dir, tmp_path):
    episodes = make_episodes([(3, True), (4, False)])
    convert(from_episodes(episodes), True, str(tmp_path / "a.npz"), "made up")
    rows = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "terminals": np.zeros(4)}
    np.savez(tmp_path / "a-val.npz", **rows)
    with pytest.raises(UserError, match=r"a-val\.npz has no rewards"):
        open_splits(str(tmp_path / "a.npz"), "none")
    labels = {"rewards": np.zeros(4), "masks": np.ones(4)}
    for odd, message in (
        ({"observations": np.zeros((4, 3))}, "observations has 3 numbers per row, .*a.npz has 2"),
        ({"actions": np.full((4, 1), 7.0)}, "actions lie outside"),
    ):
        np.savez(tmp_path / "a-val.npz", **(rows | labels | odd))
        with pytest.raises(UserError, match=message):
            open_splits(str(tmp_path / "a.npz"), "none")
    with pytest.raises(UserError, match=f"is another: give --dataset={MAZE_DATA}"):
        open_splits(TASK, str(dataset_dir), TASK.replace("-v0", "-task2-v0"))


def test_flat_files_with_masks_as_ogbenchs_loader_returns_them(dataset_dir, tmp_path):
    import ogbench

    arrays = ogbench.make_env_and_datasets(TASK, dataset_dir=str(dataset_dir))[1]
    np.savez(tmp_path / "flat.npz", **arrays)
    found = open_dataset(str(tmp_path / "flat.npz"), "none").data
    wanted = open_dataset(TASK, str(dataset_dir)).data
    assert (wanted.masks[~wanted.ends] == 0).any()
    same(transitions(found), transitions(wanted))


def test_rows_that_all_are_ends_are_no_data(tmp_path, capsys):
    arrays = {"observations": np.zeros((2, 3)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2)}
    np.savez(tmp_path / "ends.npz", **arrays, masks=np.ones(2), terminals=np.ones(2))
    assert cli.run(["data", "inspect", str(tmp_path / "ends.npz")]) == 2
    assert "has no transition whose next state is known" in capsys.readouterr().err


def test_a_conversion_keeps_the_rewards_of_the_task(dataset_dir, tmp_path, store, capsys):
    file, before = str(tmp_path / "maze.npz"), open_dataset(TASK, str(dataset_dir)).data
    for words in ([TASK, file], [file, "lab/maze-v0"], ["lab/maze-v0", f"{tmp_path}/maze-v1"]):
        assert cli.run(["data", "convert", *words, f"--dataset_dir={dataset_dir}"]) == 0
        assert "3,000 transitions in 3 trajectories" in capsys.readouterr().out
    for name in (file, "lab/maze-v0", f"{tmp_path}/maze-v1"):
        after = open_dataset(name, "none").data
        assert (before.masks[~before.ends] == 0).any()
        same(transitions(after), transitions(before))


def test_ogbenchs_loader_opens_a_conversion(tmp_path):
    import ogbench

    episodes = make_episodes([(3, True), (2, False)])
    convert(from_episodes(episodes), True, str(tmp_path / "mine.npz"), "made up")
    theirs = ogbench.load_dataset(str(tmp_path / "mine.npz"))
    wanted = [(obs, next_obs) for obs, _, _, _, next_obs in expected(episodes)]
    assert list(zip(theirs["observations"][:, 0], theirs["next_observations"][:, 0], strict=True)) == wanted


# --- errors ---


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("there.npz", "exists already: delete it, or write to another name"),
        ("nowhere", "write FILE.npz for OGBench's layout, or for Minari an id or a ./FOLDER that ends in a version"),
        ("./robot", "that ends in a version"),
        ("lab/robot-v0", "has no rewards to convert: name a task"),
        ("new/robot.npz", "has no rewards to convert: name a task"),
    ],
)
def test_what_cannot_be_converted(dataset_dir, tmp_path, store, monkeypatch, capsys, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_bytes(b"precious")
    assert cli.run(["data", "convert", MAZE_DATA, target, f"--dataset_dir={dataset_dir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (tmp_path / "there.npz").read_bytes() == b"precious"


def test_a_conversion_that_breaks_off_leaves_nothing(tmp_path, store, monkeypatch):
    data = from_episodes(make_episodes([(3, True)]))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr("minari.create_dataset_from_buffers", full)
    for target in ("new/a.npz", "robot-v0"):
        with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
            convert(data, True, str(tmp_path / target), "made up")
    assert [path for path in tmp_path.rglob("*") if path != store] == []


def test_numbers_that_are_too_large_for_the_target(tmp_path):
    episode = make_episodes([(3, True)])[0]
    data = from_episodes([episode | {"rewards": np.array([0.0, 1e300, 0.0])}])
    with pytest.raises(UserError, match="made up, as 32-bit floats: rewards is not finite in 1 of 4 rows"):
        convert(data, True, str(tmp_path / "a.npz"), "made up")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./robot-play-logs", "robot-play-logs is not there: give a file, a folder or a name"),
        (
            "notes.pkl",
            r"of no format that floq reads: robomimic \(\.hdf5 \.h5\), D4RL .*, table \(\.csv \.parquet\), npz",
        ),
        (
            "project",
            r"project is of no format that floq reads: .* or a folder of them; folders of Minari, LeRobot\. See docs",
        ),
        ("~/robot-v0", "robot-v0 is not there"),
        ("robot-v0", "no such Minari dataset in the local store"),
    ],
)
def test_what_a_name_could_mean(tmp_path, store, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.pkl").write_text("a,b\n")
    (tmp_path / "project" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        open_dataset(name, "none")


def test_d4rl_files_that_are_none(tmp_path):
    arrays = flat(make_episodes([(2, True)]), with_next=False)
    del arrays["rewards"]
    with pytest.raises(UserError, match="lacks rewards: it is not a D4RL dataset"):
        d4rl.read(write_hdf5(tmp_path / "a.hdf5", arrays))
    group = write_hdf5(tmp_path / "c.hdf5", arrays | {"rewards/more": np.zeros(2)})
    with pytest.raises(UserError, match="rewards is not an array"):
        d4rl.read(group)


def test_a_folder_of_episodes_that_is_none(tmp_path):
    folder = write_folder(tmp_path / "episodes", make_episodes([(3, True), (2, False)]))
    (folder / "000.npz").write_bytes(b"not a zip file")
    with pytest.raises(UserError, match=r"000\.npz cannot be read .*: repair it, or take it out of the folder"):
        npz.read(folder)


def test_a_flat_file_that_lacks_something(tmp_path):
    arrays = flat(make_episodes([(2, True)]), with_next=False)
    del arrays["terminals"]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match="has rewards but lacks terminals: see"):
        open_dataset(str(tmp_path / "a.npz"), "none")


def robomimic_file(path, episodes, masks=None, **changes):
    """As robomimic writes it: two groups of observations, `x` and the object's, and what came after each action."""
    import h5py

    with h5py.File(path, "w") as file:
        for number, e in enumerate(episodes):
            demo, states = file.create_group(f"data/demo_{number}"), e["observations"]
            for group, rows in (("obs", states[:-1]), ("next_obs", states[1:])):
                demo[f"{group}/object"], demo[f"{group}/x"] = rows[:, 0], rows[:, 1:]
            arrays = {"actions": e["actions"], "rewards": e["rewards"], "dones": e["terminations"].astype(int)}
            for key, x in (arrays | changes).items():
                demo[key] = x
        for name, numbers in (masks or {}).items():
            file[f"mask/{name}"] = np.array([f"demo_{number}" for number in numbers], "S8")
    return path


def table_file(path, episodes, with_next=False):
    """A row for each transition, with the headers that are guessed; one column of texts is not used."""
    import pyarrow
    from pyarrow import csv, parquet

    arrays = flat(episodes, with_next=with_next)
    columns = {"episode": np.repeat([f"run {n}" for n in range(len(episodes))], [len(e["actions"]) for e in episodes])}
    columns |= {"x0": arrays["observations"][:, 0], "x1": arrays["observations"][:, 1], "a0": arrays["actions"][:, 0]}
    columns |= {"reward": arrays["rewards"], "terminated": arrays["terminals"], "truncated": arrays["timeouts"]}
    if with_next:
        columns |= {"then0": arrays["next_observations"][:, 0], "then1": arrays["next_observations"][:, 1]}
    table = pyarrow.table(columns | {"operator": np.array(["Ada"] * len(arrays["rewards"]))})
    path.parent.mkdir(exist_ok=True)
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(table, path)
    return path


NAMED = {"observations": "x*", "actions": "a0", "reward": "reward", "terminated": "terminated", "episode": "episode"}
NEXT = NAMED | {"next_observations": ["then0", "then1"]}


@given(STRUCTURES)
@settings(max_examples=15, deadline=None)
def test_tables_and_demonstrations_give_the_same_transitions(structure):
    pytest.importorskip("pyarrow", reason="needs floq[tables]")
    episodes = make_episodes(structure)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for suffix in ("csv", "parquet"):
            known = table_file(here / f"next.{suffix}", episodes, with_next=True)
            found = open_dataset(str(known), "none", options=DataOptions(columns=NEXT)).data
            same(transitions(as_float32(found, "")), expected(episodes))
            for number, episode in enumerate(episodes):
                table_file(here / suffix / f"{number}.{suffix}", [episode])
            known_ends = [e for e in episodes if len(e["actions"]) > 1 or e["terminations"].any()]
            for source in (table_file(here / f"a.{suffix}", known_ends), here / suffix) if known_ends else ():
                if source == here / suffix and known_ends != episodes:
                    continue  # one of its files has no transition whose next state is known
                guessed = open_dataset(str(source), "none", options=DataOptions(guess_columns=True))
                same(transitions(as_float32(guessed.data, "")), expected(known_ends, keeps_last=False))
                assert "operator" in guessed.notes[0]
        for name, obs_keys in (("a.hdf5", ()), ("b.H5", ("object", "x"))):
            found = open_dataset(
                str(robomimic_file(here / name, episodes)), "none", options=DataOptions(obs_keys=obs_keys)
            )
            same(transitions(found.data), expected(episodes))
            assert found.parts == ("object", "x")


def test_names_of_arrays_in_other_libraries(tmp_path):
    episodes = make_episodes([(3, True), (2, False), (2, True)])
    arrays, wanted = flat(episodes, with_next=False), expected(episodes, keeps_last=False)
    common = {"observations": arrays["observations"], "actions": arrays["actions"], "rewards": arrays["rewards"]}
    ends = arrays["terminals"] | arrays["timeouts"]
    written = {
        "gymnasium.npz": {"terminations": arrays["terminals"], "truncations": arrays["timeouts"]},
        "columns.NPZ": {"terminated": arrays["terminals"][:, None], "truncated": arrays["timeouts"][:, None]},
        "sb3.npz": {"dones": ends[:, None], "timeouts": arrays["timeouts"]},
    }
    for name, flags in written.items():
        with open(tmp_path / name, "wb") as file:
            np.savez(file, **common, **flags)
        same(transitions(open_dataset(str(tmp_path / name), "none").data), wanted)
    short = {
        "obs": common["observations"],
        "acts": common["actions"],
        "rews": common["rewards"][:, None],
        "dones": ends,
    }
    np.savez(tmp_path / "imitation.npz", **short)
    with pytest.raises(
        UserError, match=r"imitation\.npz has 'dones' but no 'terminals': rename it .* give those as 'trunc"
    ):
        open_dataset(str(tmp_path / "imitation.npz"), "none")
    (tmp_path / "folder").mkdir()
    for number in range(2):
        write_hdf5(tmp_path / "folder" / f"{number}.hdf5", short | {"truncations": arrays["timeouts"]})
    (tmp_path / "mixed").mkdir()
    np.savez(tmp_path / "mixed" / "0.npz", **short, truncations=arrays["timeouts"])
    np.savez(tmp_path / "mixed" / "1.npz", **short, truncations=arrays["timeouts"])
    for folder in ("folder", "mixed"):
        same(transitions(open_dataset(str(tmp_path / folder), "none").data), 2 * wanted)


def test_minari_without_the_last_observation(store):
    episodes = make_episodes([(3, True), (4, False)])
    write_minari("test/short-v0", [e | {"observations": e["observations"][:-1]} for e in episodes])
    same(transitions(open_dataset("test/short-v0", "none").data), expected(episodes, keeps_last=False))


def test_rows_of_episodes_that_alternate_are_taken_apart():
    episodes = make_episodes([(3, True), (3, False)])
    arrays = flat(episodes, with_next=False)
    order = np.array([0, 3, 1, 4, 2, 5])
    table = {
        "state": list(arrays["observations"][order]),
        "u": arrays["actions"][order, 0],
        "r": arrays["rewards"][order],
        "end": arrays["terminals"][order],
        "number": np.array([7, 2, 7, 2, 7, 2]),
    }
    data, left_out = trajectories(table, Columns(("state",), ("u",), "r", "end", episode="number"))
    same(transitions(data), expected(episodes, keeps_last=False))
    assert left_out
    dataset = Dataset.from_table(table, ["state"], ["u"], "r", terminated="end", episode="number")
    np.testing.assert_array_equal(dataset.observations, data.observations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"a\.csv: name its columns, as in .*FILE.toml; they are episode x0 .*; --guess_columns reads them as ",
        ),
        (
            {"columns": NAMED | {"reward": "rewrad"}},
            r"a\.csv has no column 'rewrad' for reward; did you mean 'reward'\?",
        ),
        (
            {"columns": NAMED | {"actions": "operator"}},
            "column 'operator' is 'Ada' in row 0, no number: repair or leave",
        ),
        ({"columns": {"observations": "x0"}}, "--columns: actions is missing"),
        ({"columns": NAMED | {"obs": "x0"}}, "--columns: unknown key 'obs'"),
        ({"obs_keys": ("x",)}, r"--obs_keys: it is for a LeRobot dataset, .*a\.csv is table: leave it out"),
    ],
)
def test_tables_that_are_not_understood(tmp_path, options, message):
    pytest.importorskip("pyarrow", reason="needs floq[tables]")
    file = table_file(tmp_path / "a.csv", make_episodes([(3, True)]))
    with pytest.raises(UserError, match=message):
        open_dataset(str(file), "none", options=DataOptions(**options))


def test_a_guess_is_shown_or_not_made(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="needs floq[tables]")
    file = table_file(tmp_path / "a.csv", make_episodes([(3, True), (3, True)]))
    assert cli.run(["data", "inspect", str(file), "--guess_columns", f"--out={tmp_path / 'a.png'}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "columns are read as observations x0 x1; actions a0; reward reward; terminated terminated" in shown
    (tmp_path / "b.csv").write_text("x;y;u;reward\n1;2;0;1\n2;3;0;1\n")
    with pytest.raises(UserError, match="they are x y u reward, too unlike for --guess_columns"):
        open_dataset(str(tmp_path / "b.csv"), "none", options=DataOptions(guess_columns=True))
    (tmp_path / "columns.toml").write_text("observations = ['x', 'y']\nactions = ['u']\nreward = 'reward'\n")
    named = DataOptions(columns=read_toml(tmp_path / "columns.toml"))  # without ends the file is one episode
    found = transitions(open_dataset(str(tmp_path / "b.csv"), "none", options=named).data)
    assert found == [(1, 0, 1, 1, 2)]
    pattern = DataOptions(columns={"observations": ["?"], "actions": "u", "reward": "rew*"})  # which names one column
    with pytest.raises(UserError, match=r"has no column 'rew\*' for reward; did you mean 'reward'"):
        open_dataset(str(tmp_path / "b.csv"), "none", options=pattern)


def test_a_cell_that_is_missing(tmp_path):
    pytest.importorskip("pyarrow", reason="needs floq[tables]")
    (tmp_path / "a.csv").write_text("x0,a0,reward\n1,0.5,1\n,0.5,1\n3,0.5,1\n")
    with pytest.raises(UserError, match="observations is not finite in 1 of 3 rows, the first is row 1"):
        open_dataset(str(tmp_path / "a.csv"), "none", options=DataOptions(guess_columns=True))


def test_demonstrations_are_validated_as_their_masks_say(tmp_path):
    episodes = make_episodes([(3, True), (2, True), (4, False), (1, True)])
    file = robomimic_file(tmp_path / "a.hdf5", episodes, {"train": [0, 3], "valid": [1], "20_percent": [2]})
    splits = open_splits(str(file), "none")
    assert (len(splits.train), len(splits.validation)) == (4, 2)  # the third is in neither
    np.testing.assert_array_equal(splits.validation.observations, episodes[1]["observations"])
    assert splits.provenance.endswith("validated on its mask valid")
    assert open_dataset(str(robomimic_file(tmp_path / "b.hdf5", episodes)), "none").held_out is None


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"obs/camera": np.zeros((3, 4, 4, 3), np.float32)},
            {},
            r"obs/camera has the shape \(3, 4, 4, 3\), floq reads vect.*--obs_keys object x",
        ),
        ({}, {"obs_keys": ("objet",)}, r"/data/demo_0/obs lacks objet; did you mean 'object'\?: it has object, x"),
        ({"actions": np.full((3, 1), 2.0)}, {}, r"a\.hdf5, demo_0: actions lie outside \[-1, 1\] in 3 of 3 rows"),
        ({"rewards": np.zeros(2)}, {}, r"a\.hdf5, demo_0: all arrays must have equally many rows"),
    ],
)
def test_demonstrations_that_are_none(tmp_path, changes, options, message):
    file = robomimic_file(tmp_path / "a.hdf5", make_episodes([(3, True)]), **changes)
    with pytest.raises(UserError, match=message):
        open_dataset(str(file), "none", options=DataOptions(**options))


DAMAGED = {
    "csv": lambda folder, e: table_file(folder / "a.csv", e),
    "parquet": lambda folder, e: table_file(folder / "a.parquet", e),
    "robomimic": lambda folder, e: robomimic_file(folder / "a.hdf5", e, {"train": [0], "valid": [1]}),
    "hdf5": lambda folder, e: write_hdf5(folder / "a.hdf5", flat(e, with_next=True)),
    "flat": lambda folder, e: np.savez_compressed(folder / "a.npz", **flat(e, with_next=True)) or folder / "a.npz",
    "episodes": lambda folder, e: write_folder(folder / "episodes", e) / "000.npz",
    "minari": lambda folder, e: write_minari("a-v0", e) and folder / "store" / "a-v0" / "data" / "main_data.hdf5",
    "minari metadata": lambda folder, e: (
        write_minari("a-v0", e) and folder / "store" / "a-v0" / "data" / "metadata.json"
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_one_kind_of_error(tmp_path, store, kind):
    """Cut short or with other bytes in it, a file is read, or refused with a UserError, and nothing else."""
    file = DAMAGED[kind](tmp_path, make_episodes([(3, True), (4, False)]))
    name = "a-v0" if kind.startswith("minari") else str(file.parent if kind == "episodes" else file)
    whole, random, refused = file.read_bytes(), np.random.default_rng(0), 0
    places = np.flatnonzero(np.frombuffer(whole, np.uint8))  # HDF5 is mostly padding
    for attempt in range(60):
        damaged = bytearray(whole)
        for place in random.choice(places, 5):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged[: random.integers(len(whole))] if attempt % 3 == 0 else damaged)
        try:
            open_dataset(name, "none", options=DataOptions(guess_columns=kind in ("csv", "parquet")))
        except UserError:
            refused += 1
    assert refused > 20


def test_files_that_unpack_to_more_than_the_machine_holds(tmp_path, store, monkeypatch):
    """Zeros compress a thousandfold; what is declared is refused before anything is unpacked."""
    n = 200_000
    zeros = {"observations": np.zeros((n, 2)), "actions": np.zeros((n, 1)), "rewards": np.zeros(n)}
    zeros |= {"terminals": np.zeros(n)}
    np.savez_compressed(tmp_path / "bomb.npz", **zeros)
    import h5py

    with h5py.File(tmp_path / "bomb.hdf5", "w") as file:
        for key, x in zeros.items():
            file.create_dataset(key, data=x, compression="gzip")
    (tmp_path / "episodes").mkdir()
    shutil.copy(tmp_path / "bomb.npz", tmp_path / "episodes")
    episode = {key: x[1:] for key, x in zeros.items()} | {"terminations": np.zeros(n - 1, bool)}
    write_minari("bomb-v0", [episode | {"observations": np.zeros((n, 2), np.float32)}])
    monkeypatch.setattr(untrusted, "SIZE_LIMIT", 2**20)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({key: x.reshape(n, -1)[:, 0] for key, x in zeros.items()}), tmp_path / "bomb.parquet"
    )
    demo = {"obs/x": zeros["observations"][1:], **{key: zeros[key][1:] for key in ("actions", "rewards")}}
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for key, x in (demo | {"dones": zeros["terminals"][1:]}).items():
            file.create_dataset(f"data/demo_0/{key}", data=x, compression="gzip")
    for name in ("bomb.npz", "bomb.hdf5", "demos.hdf5", "episodes", "bomb.parquet"):
        assert (tmp_path / name).exists()
        with pytest.raises(UserError, match="would unpack to"):
            open_dataset(str(tmp_path / name), "none", options=DataOptions(guess_columns="parquet" in name))
    with pytest.raises(UserError, match="would unpack to"):
        open_dataset("bomb-v0", "none")


def test_an_array_that_claims_more_than_its_entry_holds(tmp_path):
    """The header of an npy inside the zip says 2^40 numbers, its data are three."""
    import io
    import zipfile

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("observations.npy", buffer.getvalue() + np.zeros(3).tobytes())
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(str(tmp_path / "liar.npz"), "none")
