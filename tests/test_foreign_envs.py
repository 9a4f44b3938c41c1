"""Environments that other people wrote: refused with a line that names the fault, sent only actions of their space, and
made in every process."""

import json
import os
import pickle
import subprocess
import sys
import threading
import types
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from floq import cli
from floq.analysis.evaluate_run import evaluate_run
from floq.data.arrays import OpenedDataset, Trajectories
from floq.data.formats.open import open_dataset, open_splits, with_unit_actions
from floq.data.options import DataOptions
from floq.envs import environments
from floq.envs.environments import EnvFactory, SeededEnv, probe
from floq.envs.spaces import action_box, box_to_unit, unit_to_box
from floq.runs import checkpoint
from floq.runs.config import Config
from floq.runs.run import Run
from floq.utils import untrusted
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec

# --- The probe ---


class Foreign(gymnasium.Env):
    """Does as Gymnasium asks, except what a test replaces; remembers the actions that it was sent."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, size=1, obs=None, reward: Any = -1.0, ended: Any = False, info=None):
        self.size, self.obs, self.reward, self.ended, self.info = size, obs, reward, ended, info or {}
        self.sent: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.sent.append(action)
        obs = np.zeros(2, np.float32) if self.obs is None else self.obs
        return obs, self.reward, self.ended, False, self.info


class OldReset(Foreign):
    def reset(self):  # type: ignore[override]
        return np.zeros(2, np.float32)


class ResetWithoutInfo(Foreign):
    def reset(self, *, seed=None, options=None):  # type: ignore[override]
        return np.zeros(2, np.float32)


class OldStep(Foreign):
    def step(self, action):  # type: ignore[override]
        return np.zeros(2, np.float32), -1.0, False, {}


class Breaks(Foreign):
    def __init__(self):
        raise OSError("no robot\nis there")


class SecondReset(Foreign):
    def reset(self, *, seed=None, options=None):
        if hasattr(self, "was_reset"):
            raise RuntimeError("reset only once")
        self.was_reset = True
        return super().reset(seed=seed)


@pytest.fixture
def register():
    """Register an environment under `Foreign-v0`, for this test."""

    def add(kind, name="Foreign-v0", **kwargs):
        gymnasium.register(name, kind, kwargs=kwargs)
        return name

    before = set(gymnasium.registry)
    yield add
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OldReset, r"unexpected keyword argument 'seed'; floq needs Gymnasium's reset\(seed="),
        (ResetWithoutInfo, r"its reset returned an array of float32 of shape \(2,\); floq needs"),
        (OldStep, r"expected 5, got 4.*floq needs Gymnasium's step\(action\)"),
        (Breaks, "Foreign-v0 could not be made: OSError: no robot is there"),
        (SecondReset, "RuntimeError: reset only once; floq needs"),
        ({"obs": np.zeros(3)}, r"its observation had the shape \(3,\), and not \(2,\)"),
        ({"obs": "left"}, "its observation was 'left', and no array of numbers"),
        ({"obs": np.array([0, np.nan])}, "its observation was not finite, in number 1"),
        ({"reward": np.zeros(1)}, r"its reward was an array of float64 of shape \(1,\), and no number"),
        ({"reward": None}, "its reward was None, and no number"),
        ({"reward": np.inf}, "its reward was inf"),
        ({"ended": None}, "its flag 'terminated' was None"),
        ({"ended": np.zeros(1, bool)}, r"its flag 'terminated' was an array of bool of shape \(1,\)"),
        ({"info": {"success": "yes"}}, r"its info\['success'\] was 'yes', and neither true nor false"),
        ({"info": {"is_success": np.array([True])}}, r"its info\['is_success'\] was an array of bool"),
        ({"nothing": 1}, "TypeError.*'nothing'.*; its arguments are given as --env_kwargs.NAME=VALUE"),
    ],
)
def test_what_an_environment_does_wrong_is_named(register, kind, said):
    name = register(kind) if isinstance(kind, type) else register(Foreign, **kind)
    with pytest.raises(UserError, match=said) as caught:
        probe(EnvFactory(name)())
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"reward": np.asarray(-1)},
        {"reward": np.float16(0.5)},
        {"reward": 1},
        {"obs": [0.0, 1]},
        {"ended": np.bool_(True), "info": {"success": np.float32(1)}},
        {"ended": 1, "info": {"is_success": np.bool_(False)}},
    ],
)
def test_what_means_the_same_is_taken(register, kwargs):
    assert probe(EnvFactory(register(Foreign, **kwargs))()) == (ObsSpec.of(2), 1)


def test_a_wrong_environment_ends_the_command_before_data_are_read(register, capsys):
    register(Foreign, reward=None)
    assert cli.run(["train", "--env_name=Foreign-v0", "--dataset=none/of/these.npz", "--offline_steps=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "its reward was None" in line


class Named(Foreign):
    observation_space = spaces.Dict(goal=spaces.Box(-1, 1, (1,)), arm=spaces.Box(-1, 1, (2,)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"goal": np.zeros(1), "arm": np.zeros(2)}, {}

    def step(self, action):
        return {"goal": np.zeros(1), "arm": np.zeros(2)}, 0.0, False, False, {}


def test_a_run_is_not_evaluated_where_observations_have_other_parts(register, tmp_path, monkeypatch):
    """The names of the parts are kept in the run; the sizes of these are the same."""
    config = Config(env_name=register(Named), dataset="logs", save_dir=str(tmp_path))
    run = Run.create(config, {"versions": {}, "data": {"observation_parts": ["arm (2)", "target (1)"]}})
    assert Run.open(run.folder).records["data"]["observation_parts"] == ["arm (2)", "target (1)"]
    agent = types.SimpleNamespace(best_of=lambda *_: None, obs_spec=ObsSpec.of(3), action_dim=1)
    saved = types.SimpleNamespace(agent=agent, step=1)
    monkeypatch.setattr(checkpoint, "load", lambda *_: saved)
    with pytest.raises(UserError, match=r"observations are arm \(2\), goal \(1\); those of .* are arm \(2\), target"):
        evaluate_run(str(run.folder), show=False)


# --- Actions ---

BOXES = {
    "integers": spaces.Box(0, 10, (2,), np.int64),
    "bytes": spaces.Box(0, 255, (2,), np.uint8),
    "small": spaces.Box(-128, 127, (2,), np.int8),
    "coinciding": spaces.Box(np.array([0, -1], np.float32), np.array([0, 1], np.float32)),
    "float64": spaces.Box(-np.pi, np.pi, (2,), np.float64),
    "float16": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "far": spaces.Box(-3e38, 3e38, (2,), np.float32),
    "farther": spaces.Box(-1.5e308, 1.5e308, (2,), np.float64),
    "unit": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "unit integers": spaces.Box(-1, 1, (2,), np.int32),
}


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_every_action_lies_within_its_space(box):
    assert action_box(box, "any") is box
    units = np.float32([[-1, 1], [0, 0], [1, -1], [1 + 1e-7, -1 - 1e-7], [0.123, -0.987], [5, -5]])
    sent = [unit_to_box(unit, box) for unit in units]
    for unit, action in zip(units, sent, strict=True):
        assert box.contains(action), (unit, action)
    np.testing.assert_array_equal(sent[0], [box.low[0], box.high[1]])
    if box is BOXES["float64"]:
        np.testing.assert_allclose(sent[4], np.pi * np.float64(units[4]), rtol=1e-12)
    env: Any = Foreign()
    env.action_space = box
    seeded = SeededEnv(env, EnvFactory("any"))
    seeded.begin_episode((0,))
    seeded.advance(np.float32([0.3, -0.7]))
    assert box.contains(env.sent[0])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (spaces.Box(-np.inf, np.inf, (1,)), "bounded, one-dimensional Box"),
        (spaces.Box(-1.0, 1.0, (1, 1)), "bounded, one-dimensional Box"),
        (spaces.Discrete(3), "bounded, one-dimensional Box"),
        (spaces.Box(float(np.finfo(np.float32).min), 1.0, (1,), np.float32), "the limits of float32"),
        (spaces.Box(0, np.iinfo(np.int64).max, (1,), np.int64), "the limits of int64"),
    ],
)
def test_bounds_that_are_none_are_refused_when_the_environment_is_made(register, box, said):
    kind = type("Unbounded", (Foreign,), {"action_space": box})
    with pytest.raises(UserError, match=f"Foreign-v0.*{said}"):
        environments.make(register(kind))


@pytest.mark.parametrize("action", [[np.nan], [np.inf], [0.0, 0.0]])
def test_an_action_that_is_none_never_arrives(action):
    env = Foreign()
    seeded = SeededEnv(env, EnvFactory("any"))
    seeded.begin_episode((0,))
    with pytest.raises(ValueError, match="it was sent an action"):
        seeded.advance(np.float32(action))
    assert not env.sent


@pytest.mark.parametrize("name", ["integers", "coinciding", "float64", "far"])
def test_scaling_to_the_unit_box_is_the_inverse(name):
    box = BOXES[name]
    units = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    units = units if box.dtype.kind == "f" else np.rint(units * 5) / 5
    found = box_to_unit(np.array([unit_to_box(unit, box) for unit in units]), box.low, box.high)
    np.testing.assert_allclose(found, np.where(box.low == box.high, 0, units), atol=1e-6)


# --- Units ---


def valve(low, high):
    env: Any = Foreign()
    env.action_space = spaces.Box(low, high, (1,), np.float32)
    return SeededEnv(env, EnvFactory("Valve-v0"))


def logged(*actions):
    rows = len(actions)
    data = Trajectories(
        np.zeros((rows, 2)), np.array(actions)[:, None], np.zeros(rows), np.ones(rows), np.arange(rows) > 1
    )
    return OpenedDataset(data, True, "logs")


def units(data, env, **options):
    """The data and the lines on how its actions are read."""
    opened = with_unit_actions(data, env, DataOptions(**options))
    return opened, opened.notes


def test_units_of_actions_are_said_and_chosen():
    data = logged(0.2, 0.3, 0.4)
    same, (said, warning) = units(data, valve(0, 1))
    assert same.data.actions is data.data.actions
    assert said.startswith(
        "actions are read as [-1, 1], which stands for the bounds of Valve-v0's, [0, 1]; --action_units=env"
    )
    assert "no action is outside [0, 1]" in warning
    scaled, (said,) = units(data, valve(0, 1), action_units="env")
    np.testing.assert_allclose(scaled.data.actions[:, 0], [-0.6, -0.4, -0.2], atol=1e-12)
    assert said == "actions are read in the environment's units, within the bounds of Valve-v0's, [0, 1]"


def test_there_is_no_warning_where_data_and_bounds_do_not_suggest_one():
    assert len(units(logged(-0.2, 0.3), valve(0, 1))[1]) == 1  # -.2 is no action of this valve
    assert len(units(logged(0.2, 0.3), valve(-2, 2))[1]) == 1  # its bounds include [-1, 1]
    assert units(logged(0.2, 0.3), valve(-1, 1))[1] == ()
    assert units(logged(0.2)._replace(scaled=True), valve(0, 1), action_units="env")[1] == ()


def test_actions_are_scaled_from_a_range_and_clipped():
    scaled, (said,) = units(logged(-4.0, 0.0, 2.0), valve(0, 1), rescale_actions=(-4, 4))
    np.testing.assert_allclose(scaled.data.actions[:, 0], [-1, 0, 0.5])
    assert said == "actions are scaled from [-4, 4], as --rescale_actions says"
    clipped, (said,) = units(logged(-1.5, 0.2, 1.01), None, clip_actions=True)
    np.testing.assert_array_equal(clipped.data.actions[:, 0], [-1, 0.2, 1])
    assert said == "actions are clipped to [-1, 1] in 66.67% of the rows, the largest was 1.5"
    both, notes = units(logged(0.2, 1.5), valve(0, 1), action_units="env", clip_actions=True)
    np.testing.assert_allclose(both.data.actions[:, 0], [-0.6, 1.0])
    assert len(notes) == 2
    assert units(logged(0.2, 1.0), None, clip_actions=True)[1] == ()


def test_units_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match=r"logs: actions lie outside the bounds of Valve-v0's, \[0, 1\], in 1 of 2 rows.*row 1"
    ):
        units(logged(0.2, 1.5), valve(0, 1), action_units="env")
    with pytest.raises(
        UserError, match=r"outside \[-2, 1\], as --rescale_actions says, in 1 of 2 rows.*row 1 \(\[1.5\]\)"
    ):
        units(logged(0.2, 1.5), None, rescale_actions=(-2, 1))
    with pytest.raises(UserError, match="--action_units=env: give the environment whose units they are"):
        units(logged(0.2), None, action_units="env")
    with pytest.raises(UserError, match="--rescale_actions: logs states the bounds of its actions, leave it out"):
        units(logged(0.2)._replace(scaled=True), None, rescale_actions=(0, 1))
    for given, message in {
        "--action_units=env: give the environment": {"env_name": None, "dataset": "logs", "action_units": "env"},
        "--rescale_actions 1 0: give the lower bound": {"dataset": "logs", "rescale_actions": (1, 0)},
        "--score_range 1 1: give the lower bound": {"score_range": (1, 1)},
        "both say how actions": {"dataset": "logs", "rescale_actions": (0, 1), "action_units": "env"},
        "--clip_actions: it says how --dataset is read, give one": {"clip_actions": True},
        "--columns: reward is missing": {"dataset": "a.csv", "columns": {"observations": ["x"], "actions": ["u"]}},
    }.items():
        with pytest.raises(UserError, match=given):
            Config(**message)


def test_data_in_units_beyond_one_are_read(tmp_path):
    """The readers leave to the environment's bounds what is scaled by them."""
    for number in range(2):
        np.savez(
            tmp_path / f"{number}.npz",
            observations=np.zeros((4, 2)),
            actions=np.full((3, 1), 2.0),
            rewards=np.arange(3.0),
        )
    with pytest.raises(
        UserError, match=r"0\.npz: actions lie outside \[-1, 1\] in 3 of 3 rows.*--rescale_actions LOW HIGH"
    ):
        open_dataset(str(tmp_path), "none")
    splits = open_splits(str(tmp_path), "none", options=DataOptions(rescale_actions=(0, 4)))
    assert (np.asarray(splits.train.actions) == 0).all()


# --- Processes and arguments ---


def test_what_a_script_registers_goes_to_another_process(register, tmp_path):
    """Pickled by a script, as to its workers, with a class that only its main module has."""
    (tmp_path / "script.py").write_text(
        "import pickle, gymnasium, sys\n"
        "from test_foreign_envs import Foreign\n"
        "from floq.envs.environments import EnvFactory\n"
        "from floq.utils.schema import FrozenDict\n"
        "class Mine(Foreign): pass\n"
        "gymnasium.register('Mine-v0', Mine)\n"
        "pickle.dump(EnvFactory('Mine-v0', None, FrozenDict(size=7)), open(sys.argv[1], 'wb'))\n"
    )
    path = tmp_path / "factory"
    found = subprocess.run(
        [sys.executable, tmp_path / "script.py", path], env=environment(), capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Mine-v0" not in gymnasium.registry
    register(Foreign)  # so that the fixture removes what comes with the pickle
    env: Any = pickle.loads(path.read_bytes())()
    assert probe(env) == (ObsSpec.of(2), 1)
    assert env.unwrapped.size == 7


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.filterwarnings("ignore:.*Using the latest versioned environment")
def test_an_id_without_its_version_goes_along_too(register):
    """Gymnasium makes the newest version, of those that this process has registered."""
    register(Foreign, "Foreign-v0", size=2)
    register(Foreign, "Foreign-v1", size=3)
    sent = pickle.dumps(EnvFactory("Foreign"))
    del gymnasium.registry["Foreign-v0"], gymnasium.registry["Foreign-v1"]
    env: Any = pickle.loads(sent)()
    assert env.unwrapped.size == 3


def test_what_cannot_be_sent_is_said(register):
    lock = threading.Lock()
    name = register(lambda **kwargs: (lock, Foreign(**kwargs))[1])
    with pytest.raises(UserError, match="Foreign-v0 cannot be sent to other processes: TypeError"):
        pickle.dumps(EnvFactory(name))


def test_arguments_of_an_environment_reach_it_and_the_configuration(capsys):
    words = [
        "--env_kwargs.size=10",
        "--env_kwargs.name=long",
        "--env_kwargs.parts=[1, 2]",
        "--env_kwargs.on=True",
        "--env_kwargs.no=",
    ]
    assert cli.run(["train", "--env_name=Foreign-v0", "--dataset=x.npz", "--dry_run", *words]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["env_kwargs"] == {"size": 10, "name": "long", "parts": [1, 2], "on": True, "no": ""}
    config = Config.from_json(shown)
    assert config.make_env.kwargs == shown["env_kwargs"]
    assert hash(config) == hash(Config.from_json(shown))
    assert Config().digest() == Config(env_kwargs={}).digest() != Config(env_kwargs={"size": 1}).digest()
    with pytest.raises(UserError, match=r"env_kwargs: .*give texts, numbers"):
        Config(env_kwargs={"size": object()})


def test_naming_a_module_on_the_command_line_is_consent(run_folder, tmp_path, monkeypatch, capsys):
    """The console script does not have the current folder on its path; the environment that a run names is not enough,
    and another one is none."""
    monkeypatch.setenv(untrusted.CONSENT, "")
    monkeypatch.setattr(sys, "path", [word for word in sys.path if word not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\nfrom test_foreign_envs import Foreign\ngymnasium.register('My-v0', Foreign)\n"
    )
    with pytest.raises(UserError, match=r"would import the Python module 'my_envs'.*--env_name=my_envs:My-v0"):
        Run.open(run_folder)
    assert Run.open(run_folder, makes_env=False).config.env_name == "my_envs:My-v0"
    with pytest.raises(UserError, match=r"--env_name=other:My-v0: .* is a run in my_envs:My-v0"):
        Run.open(run_folder, "other:My-v0")
    run = Run.open(run_folder, "my_envs:My-v0")
    try:
        assert probe(run.config.make_env()) == (ObsSpec.of(2), 1)
    finally:
        gymnasium.registry.pop("My-v0", None)


@pytest.fixture
def run_folder(tmp_path):
    config = Config(env_name="my_envs:My-v0", dataset="logs", save_dir=str(tmp_path / "exp"))
    return Run.create(config, {"versions": {}, "data": {}}).folder
