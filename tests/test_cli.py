"""The command line as a user types it, in a fresh process or in this one."""

import json
import shlex
import subprocess
import sys

import pytest
from conftest import TINY

from floq import cli
from floq.runs.config import FAMILIES, configure, family


def dry_run(capsys, *flags):
    assert cli.run(["train", "--dry_run", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plain_dry_run_shows_the_demonstration(capsys):
    config = dry_run(capsys)
    assert config["env_name"] == "pointmaze-medium-navigate-singletask-v0"
    assert (config["agent"]["critic"], config["agent"]["actor"]) == ("floq", "fql")
    assert config["normalize_observations"] is True


def test_published_spellings(capsys):
    """`--x=True`, bare switches, tuples in quotes, `--agent=NAME` beside `--agent.FIELD=VALUE`, the path form."""
    words = (
        '--agent=agents/floq.py --agent.alpha=300 "--agent.value_hidden_dims=(64, 32)" --agent.use_resnets '
        "--agent.layer_norm=False --env_name=cube-double-play-singletask-v0 --agent.block_depth 2 --seed=3"
    )
    config = dry_run(capsys, *shlex.split(words))
    agent = config["agent"]
    assert (agent["alpha"], agent["value_hidden_dims"], agent["block_depth"]) == (300.0, [64, 32], 2)
    assert agent["use_resnets"] is True
    assert agent["layer_norm"] is False
    assert config["seed"] == 3
    assert config["offline_steps"] == 2_000_000


def test_precedence(capsys):
    giant = "--env_name=antmaze-giant-navigate-singletask-task3-v0"
    assert dry_run(capsys, giant)["agent"]["critic_flow_steps"] == 8
    best = dry_run(capsys, giant, "--preset=best")["agent"]
    assert (best["critic_flow_steps"], best["q_agg"], best["discount"]) == (4, "min", 0.995)
    assert dry_run(capsys, giant, "--preset=best", "--agent.critic_flow_steps=2")["agent"]["critic_flow_steps"] == 2
    path_form = dry_run(capsys, giant, "--agent=agents/floq.py")["agent"]
    assert (path_form["q_agg"], path_form["discount"]) == ("mean", 0.99)
    fql = dry_run(capsys, giant, "--agent=fql")["agent"]
    assert (fql["critic"], fql["q_agg"], fql["alpha"]) == ("scalar", "min", 10.0)


def test_parts_pair_freely_and_fqls_own_names_work(capsys):
    mixed = dry_run(capsys, "--agent=floq", "--agent.critic=scalar", "--agent.flow_steps=3")["agent"]
    assert (mixed["critic"], mixed["actor_flow_steps"], mixed["alpha"]) == ("scalar", 3, 3.0)
    assert "critic_flow_steps" not in mixed


def test_a_family_without_settings_of_its_own_is_mentioned(capsys):
    assert cli.run(["train", "--dry_run", "--env_name=cube-triple-play-singletask-v0"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["agent"]["alpha"] == 10.0
    assert captured.err.splitlines() == [
        "floq: no published settings for cube-triple with floq: using its defaults, set --agent.alpha at least"
    ]


@pytest.mark.parametrize("agent", FAMILIES)
def test_every_family_has_a_complete_configuration(agent):
    for name in FAMILIES[agent]:
        kind = "navigate" if "maze" in name or "soccer" in name else "play"
        config = configure(f"{name}-{kind}-singletask-task2-v0", agent)
        assert family(config.env_name) == name
        assert config.agent.flat()["alpha"] == FAMILIES[agent][name]["alpha"]
        assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_digest_ignores_the_seed_alone():
    digests = [configure(seed=seed, alpha=alpha).digest() for seed, alpha in ((0, 1.0), (1, 1.0), (0, 2.0))]
    assert digests[0] == digests[1] != digests[2]


WRONG = [
    (["train", "--agent.alhpa=3"], "unknown flag --agent.alhpa for this agent; did you mean '--agent.alpha'?"),
    (["train", "--agent=fql", "--agent.critic_flow_steps=2"], "unknown flag --agent.critic_flow_steps"),
    (["train", "--enviroment=x"], "unknown flag --enviroment"),
    (["train", "--agent=flqo"], "unknown agent; choose floq or fql or fql_iqn; did you mean 'floq'?"),
    (["train", "--agent.critic=scaler"], "did you mean 'scalar'?"),
    (["train", "--preset=bset"], "did you mean 'best'?"),
    (["train", "--agent.lr=fast"], "could not convert string to float: 'fast'"),
    (["train", "--agent.q_agg=max"], "Expected one of ('mean', 'min', 'lcb',"),
    (["train", "--agent.discount=1.0"], "discount=1.0: must be at least 0 and less than 1"),
    (["train", "--offline_steps=0"], "offline_steps=0: must be greater than 0"),
    (["train", "--eval_interval"], "Missing value for argument '--eval_interval'"),
    (["train", "cube"], "unexpected argument 'cube'"),
    (["train", "--agent=agents/floq.py--agent.alpha=3"], "write --agent=agents/floq.py --agent.alpha=3"),
    (["train", "--agent.time_embedding=fourier", "--agent.time_embed_dim=7"], "time_embed_dim=7: must be even"),
    (
        ["trian"],
        "unknown command 'trian'; commands are train, eval, ope, inspect, export, bench, sweep, watch, report, data",
    ),
    (["trian"], "did you mean 'train'?"),
    (["train", "--offline_steps=many"], "Error parsing --offline_steps"),
    (["train", "--precision=fp16"], "Expected one of ('auto', 'tf32', 'f32', 'bf16')"),
    (["train", "--batch_devices=3"], "--batch_devices=3: does not divide --agent.batch_size=128"),
    (["train", "--agent.integration=fused"], "give --precision=bf16"),
    (["train", "--agent.integration=folded", "--agent.layer_norm=False"], "use plain"),
    (["data", "colect"], "did you mean 'data collect'?"),
    (["data", "collect", "cube-single-v0"], "experts make {pointmaze,antmaze}-MAZE"),
    (["data", "collect", "humanoidmaze-large-navigate-v0"], "floq brings no expert for that"),
    (["train", "--seed=1", "--seeds", "1", "2"], "--seed and --seeds exclude each other"),
    (["train", "--seeds", "1", "two"], "give whole numbers, as in --seeds 0 1 2"),
    (["train", "--seeds"], "give whole numbers, as in --seeds 0 1 2"),
    (["train", "--encoder=impala_small"], "did you mean '--agent.encoder'?"),
    (["train", "--balanced_sampling=1"], "is about the batches of the online phase: give --online_steps"),
    (["train", "--offline_share=0.3"], "give --online_steps or --restore_path"),
    (["train", "--offline_share=0.3", "--balanced_sampling=1", "--online_steps=10"], "leave one of them out"),
    (["train", "--offline_share=2", "--online_steps=10"], "offline_share=2.0: must be between 0 and 1"),
    (["train", "--offline_share_steps=9", "--online_steps=10"], "give --online_steps and --offline_share too"),
    (["train", "--offline_share_steps=0", "--online_steps=10"], "offline_share_steps=0: must be greater than 0"),
    (["train", "--online_steps=10", "--num_envs=4"], "must be a multiple of --num_envs=4"),
    (["train", "--online_steps=10", "--batch_devices=2"], "divides batches offline only"),
    (["train", "--video_episodes=51"], "an evaluation has --eval_episodes=50, give at most that"),
    (["train", "--seed=4294967296"], "seed=4294967296: must be at least 0 and less than"),
    (["train", "--seeds", "0", "99999999999999999999"], "must be at least 0 and less than"),
    (["train", "--save_dir=~nosuchuser/x"], "there is no such home folder"),
    (["train", "--dataset_dir=~nosuchuser/x"], "there is no such home folder"),
    (["train", "--resume=~nosuchuser/x"], "there is no such home folder"),
    (["data", "collect", "cube-single-play-v0", "--dataset_dir=~nosuchuser/x"], "there is no such home folder"),
    (["data", "collect", "cube-single-play-v0", f"--dataset_dir={'x' * 300}"], "File name too long: give another path"),
    (["train", f"--dataset={'x' * 300}.npz"], "File name too long: give another path"),
    (["report", "x" * 300], "File name too long: give another path"),
    (["train", "--env_name=foo:cube-single-play-singletask-v0"], "unknown environment"),
    (["train", "--env_name=cube-single-play-singletask"], "did you mean 'cube-single-play-singletask-v0'?"),
    (["train", "--env_name=cube-single-v0:x"], "is not an OGBench single task"),
    (["train", "--env_name=cube-singel-play-singletask-v0"], "did you mean 'cube-single-play-singletask-v0'?"),
    (["train", "--agent.critic="], "choose floq or looped or scalar or quantile"),
    (["train", "--restore_epoch=5"], "give that too"),
    (["train", "--restore_path=/nonexistent"], "not a run folder"),
    (["train", "--resume"], "--resume needs a run's folder, or several"),
    (["train", "--resume", "a", "b"], "a is not a run folder"),
    (["train", "--resume=/nonexistent"], "not a run folder"),
    (["train", "--resume=/nonexistent", "--seed=3"], "--seed with --resume"),
    (["train", "--agent=fql", "--match=foo"], "--match=foo: choose params or flops"),
    (["train", "--agent=fql", "--match=param"], "did you mean 'params'?"),
    (["train", "--agent=fql", "--match=params", "--match_by=depth"], "--match_by=depth: choose width or members"),
    (["train", "--agent=fql", "--match_by=width"], "give --match=params or flops too"),
    (["train", "--match=params"], "this agent has that critic: give another one, as in --agent=fql"),
    (["train", "--agent=fql", "--match=params", "--agent.critic=floq"], "this agent has that critic"),
    (
        ["train", "--agent=fql", "--match=params", "--agent.critic_flow_stepz=2"],
        "unknown flag --agent.critic_flow_stepz",
    ),
    (["train", "--agent=fql", "--match=params", "--agent.critic_flow_steps=0"], "must be greater than 0"),
    (["train", "--agent=fql", "--match=params", "--env_name=cube-singel-play-singletask-v0"], "unknown environment"),
    (
        ["train", "--agent=fql", "--match=params", "--env_name=None", "--dataset=none.hdf5"],
        "there is no file none.hdf5",
    ),
    (
        ["train", "--agent=fql", "--match=params", "--agent.value_num_ensembles=999999", "--dry_run"],
        "even value_hidden_dims=(1, 1, 1) comes to",
    ),
    (["train", "--resume=/nonexistent", "--match=params"], "--match with --resume"),
    (["train", "--resume=/nonexistent", "--agent=fql"], "--agent with --resume"),
    (["train", "--dataset=none.hdf5"], "there is no file none.hdf5"),
    (["train", "--dataset=nothing/here-v0"], "no such Minari dataset in the local store, nor a file or folder"),
    (["train", "--dataset=none.npz", "--env_name=Hoper-v5"], "did you mean 'Hopper-v5'?"),
    (["train", "--dataset=none.npz", "--env_name=CartPole-v1"], "floq needs a bounded, one-dimensional Box of actions"),
    (["train", "--env_name=None"], "give --env_name, or data with --dataset"),
    (["data", "convert"], "required"),
    (["data", "convert", "a.npz", "b.hdf5"], "write FILE.npz for OGBench's layout"),
    (["data", "collect"], "required"),
    (["eval"], "required"),
    (["eval", "/nonexistent"], "not a run folder"),
    (["eval", "/nonexistent", "--success_timing=during"], "Expected one of"),
    (["train", "--dry_run=yes"], "--dry_run=yes: write --dry_run"),
    (
        ["data", "collect", "--episodes=1", "pointmaze-medium-navigate-v0", "--workers=0"],
        "workers=0: must be at least 1",
    ),
    (["data", "collect", "pointmaze-medium-navigate-v0", "--seed=-1"], "seed=-1: must be at least 0"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(argv) for argv, _ in WRONG])
def test_wrong_input_gets_one_line_and_exit_code_2(capsys, argv, message):
    assert cli.run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("floq: ")
    assert message in captured.err


def test_several_seeds_in_any_spelling(capsys):
    assert dry_run(capsys, "--seeds", "3", "1", "3")["seeds"] == [3, 1]
    assert dry_run(capsys, "--seeds=(2,)")["seed"] == 2


def test_a_wrong_environment_leaves_nothing_behind(capsys, tmp_path):
    flags = ["--env_name=pointmaze-mediun-navigate-singletask-v0", f"--save_dir={tmp_path / 'exp'}"]
    assert cli.run(["train", *flags, f"--dataset_dir={tmp_path / 'data'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean 'pointmaze-medium-navigate-singletask-v0'?" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env_name", "message"),
    [
        ("Hopper-v5", "is not an OGBench single task"),
        ("pointmaze-medium-navigate-v0", "is not an OGBench single task"),
        ("pointmaze-medium-navigate-singletask-task9-v0", "unknown environment"),
    ],
)
def test_environments_without_data(capsys, tmp_path, env_name, message):
    assert cli.run(["train", f"--env_name={env_name}", f"--save_dir={tmp_path}", f"--dataset_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_save_dir(capsys, dataset_dir, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.run(["train", *TINY, f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}/file/exp"]) == 2
    assert "choose another --save_dir" in capsys.readouterr().err


def test_a_folder_name_that_is_too_long_leaves_nothing_behind(capsys, dataset_dir, tmp_path):
    flags = [*TINY, f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}/exp", f"--run_group={'x' * 300}"]
    assert cli.run(["train", *flags]) == 2
    assert "has 300 bytes in one name, file systems allow 255: shorten it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_searched(capsys, monkeypatch, tmp_path):
    """Tests may run as root, who may do all: let the question be answered as for anybody else."""
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cli.run(["train", f"--save_dir={tmp_path}/exp"]) == 2
    assert "choose another --save_dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_fast_preset_is_for_every_family_of_floq(capsys):
    for env_name in ("cube-double-play-singletask-v0", "cube-triple-play-singletask-v0"):
        agent = dry_run(capsys, f"--env_name={env_name}", "--preset=fast")["agent"]
        assert (agent["distill_target"], agent["noise_samples"], agent["target_noise_samples"]) == ("one_pass", 4, 2)
        assert agent["critic_flow_steps"] == 8
    assert cli.run(["train", "--dry_run", "--agent=fql", "--preset=fast"]) == 0
    assert "--preset=fast changes nothing for pointmaze-medium with fql" in capsys.readouterr().err


def test_a_preset_that_changes_nothing_says_so(capsys):
    dry_run_flags = ["--preset=best", "--env_name=scene-play-singletask-v0"]
    assert cli.run(["train", "--dry_run", *dry_run_flags]) == 0
    assert capsys.readouterr().err == "floq: --preset=best changes nothing for scene with floq\n"
    words = ["--env_name=antmaze-giant-navigate-singletask-v0", "--agent=agents/floq.py", "--preset=best"]
    assert cli.run(["train", "--dry_run", *words]) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["agent"]["critic_flow_steps"], shown.err) == (4, "")


def test_every_command_helps():
    for argv in (
        ["--help"],
        ["train", "--help"],
        ["train", "--resume", "--help"],
        ["eval", "--help"],
        ["data", "collect", "--help"],
        ["data", "inspect", "--help"],
        ["data", "convert", "--help"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "floq", *argv], capture_output=True, text=True, timeout=60, check=True
        )
        assert "usage" in done.stdout.lower() or "floq train" in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("flag", ["--workers=-1", "--seed=-1"])
def test_floq_eval_refuses_what_cannot_be(run_dir, capsys, flag):
    assert cli.run(["eval", flag, str(run_dir)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_function_train_survives_the_import_of_its_module():
    code = "import floq.training.train; assert callable(floq.train); print(floq.train.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "train\n"
    assert done.stderr == ""


def test_floq_eval_prints_the_protocol(run_dir, capsys):
    assert cli.run(["eval", str(run_dir), "--eval_episodes=2", "--step=4"]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint of step 4" in printed
    assert "2 episodes, success_timing=post" in printed
    assert "95% interval" in printed


def test_the_end_of_training_is_a_short_table(dataset_dir, tmp_path, capsys):
    flags = [f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}", "--agent=fql"]
    assert cli.run(["train", *TINY, *flags]) == 0
    printed = capsys.readouterr().out
    assert "3 of the published 1000 episodes" in printed
    for word in ("success", "95% interval", "success_timing=post", "updates/s", str(tmp_path)):
        assert word in printed.replace("\n", ""), word
    (folder,) = tmp_path.glob("floq/debug/*/*")
    assert {p.name for p in (folder / "plots").iterdir()} == {"learning_curve.png", "value_map.png"}
