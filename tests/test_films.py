"""Films: their frames, those that are made beside training, and what cannot be filmed."""

import jax
import numpy as np
import pytest
from helpers import ACTOR, SCALAR, agent_config
from online_runs import FLAGS, config, episodes, write_data

from floq import cli
from floq.agent.agent import Agent
from floq.analysis.figures.episodes import Played, draw_panel
from floq.analysis.video import Films, Recorder, Take, open_recorder
from floq.envs.environments import EnvFactory
from floq.evaluation.rollouts import Evaluator
from floq.training.train import train
from floq.utils.errors import UserError
from floq.utils.progress import Display

pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called"),  # JAX 0.8; films are made in a process without it
]
PAINTED = EnvFactory("probe_envs:Painted-v0")
ACTIONS = np.zeros((6, 1), np.float32)


def count_frames(path) -> int:
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))[0]


def test_the_frames_of_a_film():
    """The first, one every second step, the last, and a second of rest: Painted, of 32 x 48 pixels, each of which is
    repeated ten times, is as bright as steps are taken."""
    takes = [Take((0, 0, 0), ACTIONS[:5]), Take((0, 0, 1), ACTIONS[:2])]
    frames = list(Recorder(PAINTED).frames(PAINTED.name, takes, 2))
    assert all((frame == frame.max()).all() and frame.shape == (320, 480, 3) for frame in frames)
    steps = [int(frame.max()) // 40 for frame in frames]
    assert steps == [0, 2, 4, *[5] * 26, 0, *[2] * 26]


def test_a_panel_marks_the_time():
    rewards = -np.ones(6)
    episode = Played((0, 0), np.arange(6), ACTIONS, rewards, rewards, np.arange(-6.0, 0), 6, True, False)
    panel = draw_panel(episode, "0: success")
    assert panel.pixels.shape == (480, 640, 3)
    assert (np.diff(panel.columns) > 20).all()
    *_, last = Recorder(PAINTED).frames(PAINTED.name, [Take((0, 0), ACTIONS, panel)], 4)
    assert last.shape == (480, 480 + 640, 3)
    assert (last[:320, :480] == 240).all()
    assert (last[:, 480 + panel.columns[6]] == 34).all()
    assert (last[100:, 480 + panel.columns[3]] != 34).any()


def test_recorded_actions_repeat_an_evaluations_episodes():
    """In Choice the return is the first action less the second."""
    policy = Agent.init(jax.random.key(0), 1, 1, agent_config(SCALAR, ACTOR)).policy
    with Evaluator(EnvFactory("probe_envs:Choice-v0"), 4, workers=2, num_recorded=3) as evaluator:
        found = evaluator(policy, 0, 5)
    assert found is not None
    assert [actions.shape for actions in found.actions] == [(2, 1)] * 3
    returns = [float(actions[0, 0] - actions[1, 0]) for actions in found.actions]
    assert returns == pytest.approx([result.episode_return for result in found.episodes[:3]], rel=1e-5)
    assert len({round(x, 4) for x in returns}) == 3


def test_evaluations_are_filmed_beside_training(tmp_path):
    settings = {"video_episodes": 2, "video_frame_skip": 30, "eval_episodes": 3, "eval_interval": 2, "online_steps": 0}
    run = train(config(tmp_path, "Painted", **settings), episodes(), show=False)
    films = sorted(path.name for path in (run.folder / "plots").iterdir())
    assert films == ["film_1.mp4", "film_2.mp4", "film_3.mp4"]
    assert count_frames(run.folder / "plots" / "film_3.mp4") == 2 * (1 + 1 + 25)


def test_a_film_that_fails_is_a_note_and_the_next_is_made(tmp_path, capsys):
    with open_recorder(PAINTED, (0, 0), "--video") as workers:
        films = Films(workers, 2, Display(True))
        films.add(tmp_path / "other.mp4", "probe_envs:Nothing-v0", [Take((0, 0), ACTIONS)])
        films.add(tmp_path / "film.mp4", PAINTED.name, [Take((0, 0), ACTIONS)])
        while films:
            films.go_on(wait=1.0)
    said = "".join(capsys.readouterr().out.split("\n"))
    assert "unknown environment 'probe_envs:Nothing-v0'" in said
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert count_frames(tmp_path / "film.mp4") == 4 + 25


def test_what_cannot_be_looked_at_is_refused(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    complaint = "MUJOCO_GL=egl and osmesa: TypeError: the environment renders no pictures"
    with (
        pytest.raises(UserError, match=complaint) as it,
        open_recorder(EnvFactory("probe_envs:Unseen-v0"), (0, 0), "--video"),
    ):
        pass
    assert "\n" not in str(it.value)
    assert "leave --video out" in str(it.value)


def test_training_that_cannot_be_filmed_does_not_begin(tmp_path, capsys):
    data = [f"--dataset={write_data(tmp_path / 'choice.npz')}", f"--save_dir={tmp_path / 'exp'}", "--video_episodes=1"]
    for flags, complaint in (
        (["--env_name=probe_envs:Choice-v0"], "render_mode"),
        (["--env_name=probe_envs:Painted-v0", "--eval_interval=0"], "no episodes that can be filmed"),
        (["--env_name=probe_envs:Painted-v0", "--video_episodes=2"], "an evaluation has --eval_episodes=1"),
        ([], "no episodes that can be filmed"),
    ):
        assert cli.run(["train", *FLAGS, *data, *flags]) == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("\n") == 1
    assert not list((tmp_path / "exp").glob("floq/debug/*/*"))
