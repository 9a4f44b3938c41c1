"""How well the ant walks that the antmaze datasets are collected with: on the task it has learned, and in the mazes.

    python benchmarks/walker.py                  # the one that floq brings along
    python benchmarks/walker.py RUN_DIR --out=FILE.safetensors

A run folder of `floq train --env_name=online-ant-xy-v0` with the Gaussian actor becomes such a file, with how it was
made in its header; it is shipped in `src/floq/data/collection/`. The table says how far the ant comes in the
commanded direction, which changes every 100 steps, and how many goals an episode of the published collection reaches.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tyro.conf import Positional

from floq.actors.gaussian import GaussianActor, GaussianConfig
from floq.agent.config import LearningSettings
from floq.critics.scalar import ScalarConfig
from floq.data.collection.collect import recipe
from floq.data.collection.experts import Walker
from floq.envs import environments
from floq.networks.mlp import PlainBody
from floq.runs import checkpoint
from floq.runs.run import Run

TASK = "online-ant-xy-v0"
MAZES = ("medium", "large", "giant", "teleport")


@dataclass(frozen=True)
class Arguments:
    """Measure a walker; make its file first, if a run is given."""

    run_dir: Positional[str | None] = None
    """A run on the directed task; by default the shipped walker is measured."""
    step: int | None = None
    """Which of its checkpoints; by default the newest."""
    out: str = "ant.safetensors"
    """The file to write, if a run is given."""
    episodes: int = 10
    """Episodes of each kind."""


def main() -> None:
    arguments = tyro.cli(Arguments)
    if arguments.run_dir is None:
        name = "ant"
    else:
        name = arguments.out
        walker_of(Run.open(arguments.run_dir), arguments.step).save(Path(name))
        print(f"wrote {name}, {Path(name).stat().st_size / 1e3:.0f} kB")
    walker = Walker.load(name)
    for key, value in walker.about.items():
        print(f"{key:8} {value}")
    print(
        f"\n{arguments.episodes} episodes each, without noise on the directed task, with the published noise in mazes\n"
    )
    print(directed(walker, arguments.episodes))
    for maze in MAZES:
        for kind in ("navigate", "stitch"):
            print(collected(name, f"antmaze-{maze}-{kind}-v0", arguments.episodes))


def walker_of(run: Run, step: int | None) -> Walker:
    """The walker that a run has trained."""
    saved = checkpoint.load(run.folder / "checkpoints", step)
    actor, stats = saved.agent.params.actor, saved.agent.obs_stats
    if not isinstance(actor, GaussianActor) or actor.config.actor_layer_norm:
        raise SystemExit(f"{run.folder}: a walker is a Gaussian actor without LayerNorm")
    body = actor.net.body
    assert isinstance(body, PlainBody)  # a Gaussian actor has no other
    layers = [actor.net.entry, *body.linears]
    arrays = [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in layers]
    weight, bias = arrays[0]  # takes observations as they are, not normalised ones
    scaled = weight / np.asarray(stats.std)[:, None]
    arrays[0] = (scaled, bias - np.asarray(stats.mean) @ scaled)
    evaluations = run.evaluations()
    at = evaluations["step"].index(saved.step)
    about = {
        "command": command(run),
        "seed": str(run.config.seed),
        "steps": f"{saved.step} environment steps, {int(saved.agent.step)} updates",
        "return": f"{evaluations['evaluation/episode.return'][at]:.1f} (mean of {run.config.eval_episodes} episodes)",
        "versions": json.dumps(run.records["versions"]),
    }
    return Walker(arrays, about)


def command(run: Run) -> str:
    """What to type for this run: the settings that are not the defaults."""
    config = run.config
    names = [
        f.name for f in dataclasses.fields(config) if f.name not in ("agent", "dataset_dir", "save_dir", "run_group")
    ]
    changed = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(type(config), n, None)}
    defaults = {
        f.name: f.default for part in (LearningSettings, ScalarConfig, GaussianConfig) for f in dataclasses.fields(part)
    }
    own = {f"agent.{n}": value for n, value in config.agent.flat().items() if value != defaults[n]}
    flags = [
        f"--{name}={json.dumps(value).replace('[', '(').replace(']', ')')}" for name, value in (changed | own).items()
    ]
    return " ".join(["floq train --agent=fql --agent.actor=gaussian", *flags]).replace('"', "")


def directed(walker: Walker, episodes: int) -> str:
    env, returns, falls = environments.make(TASK), [], 0
    for number in range(episodes):
        obs, total, ended = env.reset_with((0, number)), 0.0, False
        while not ended:
            obs, reward, fell, cut, _ = env.step(walker.act(obs))
            total, ended, falls = total + float(reward), fell or cut, falls + fell
        returns.append(total)
    spread = f"{np.mean(returns):.1f} +- {np.std(returns) / np.sqrt(episodes):.1f} (standard error)"
    return f"{TASK:28} metres in the wanted direction per episode of 1000 steps: {spread}; {falls} falls"


def collected(walker: str, name: str, episodes: int) -> str:
    made = recipe(name)
    expert = made.expert(name, made.rows, 0, **made.settings | {"walker": walker})
    goals, overturned = [], []
    for number in range(episodes):
        up = expert.episode(number)["qpos"][:, 3:7]  # the torso's quaternion
        overturned.append(np.mean(1 - 2 * (up[:, 1] ** 2 + up[:, 2] ** 2) < 0))
        goals.append(expert.goals_reached)
    some = np.mean(np.array(goals) > 0)
    return (
        f"{name:28} goals per episode of {made.rows} rows: {np.mean(goals):.1f} (at least one in {some:.0%}); "
        f"on its back in {np.mean(overturned):.1%} of rows"
    )


if __name__ == "__main__":
    main()
