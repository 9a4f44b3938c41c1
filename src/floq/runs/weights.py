"""Initial agent of a run: newly initialised, from the run's own checkpoint, or from another run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from floq.agent.agent import Agent
from floq.agent.policy import ObsStats
from floq.agent.state import Keys, ValueRange
from floq.data.dataset import Dataset
from floq.runs import checkpoint
from floq.runs.checkpoint import Checkpoint
from floq.runs.config import Config
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.schema import Mark, marked


def make_agent(config: Config, train_data: Dataset) -> Agent:
    """Return the initial agent of a run with this configuration and this data."""
    stats = ObsStats(*train_data.obs_stats()) if config.normalize_observations else None
    given = {"reward_range": train_data.reward_range(), "obs_stats": stats, "precision": config.precision}
    obs_spec, action_dim = train_data.dims
    width = config.agent.action_chunk * action_dim
    return Agent.init(Keys.of(config.seed).agent, obs_spec, width, config.agent, **given)


def restore(agent: Agent, config: Config, source: Checkpoint) -> Agent:
    """Return `agent` with the networks, target networks and optimiser state of another run's checkpoint.

    Its step, random streams and hyperparameters stay its own. The reward range covers both runs, and the statistics
    that normalise observations are the checkpoint's.

    Raises:
        UserError: the networks have other shapes, or observations are normalised in one of the two runs only.
    """
    old = source.agent
    own, theirs = ([leaf.shape for leaf in jax.tree.leaves(a.params)] for a in (agent, old))
    if own != theirs:
        if agent.obs_spec != old.obs_spec:
            what = f"observations have {agent.obs_spec.dim} numbers here and {old.obs_spec.dim} there"
        else:
            differ = setting_differences(config.agent.networks(), source.config.agent.networks())
            what = "; ".join(differ) or "actions have another size"
        raise UserError(f"--restore_path={config.restore_path}: its networks do not fit ({what})")
    if config.normalize_observations != source.config.normalize_observations:
        there = source.config.normalize_observations
        raise UserError(f"--restore_path={config.restore_path}: it needs --normalize_observations={there}")
    take = lambda new, of: jax.tree.unflatten(jax.tree.structure(new), jax.tree.leaves(of))  # noqa: E731
    here, there = agent.value_range, old.value_range
    return dataclasses.replace(
        agent,
        params=take(agent.params, old.params),
        target=take(agent.target, old.target),
        target_actor=agent.target_actor and take(agent.target_actor, old.target_actor or old.params.actor),
        opt_state=take(agent.opt_state, old.opt_state),
        value_range=ValueRange(jnp.minimum(here.r_min, there.r_min), jnp.maximum(here.r_max, there.r_max)),
        obs_stats=old.obs_stats,
    )


def setting_differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Describe each setting in which two configurations differ."""
    names = dict.fromkeys((*here, *there))
    return [f"{n} is {here.get(n)} here and {there.get(n)} there" for n in names if here.get(n) != there.get(n)]


def restored_checkpoint(config: Config) -> Checkpoint | None:
    """Load the checkpoint that `restore_path` and `restore_epoch` name, None without `restore_path`.

    Raises:
        UserError: there is no such checkpoint, or `restore_epoch` is given alone.
    """
    if config.restore_path is None:
        if config.restore_epoch is not None:
            raise UserError("--restore_epoch chooses a checkpoint of --restore_path: give that too")
        return None
    return checkpoint.load(Run.open(config.restore_path, makes_env=False).folder / "checkpoints", config.restore_epoch)


def resume_checkpoint(run: Run, step: int) -> Checkpoint:
    """Load the run's checkpoint of `step`. Raises UserError if it does not belong to the run's configuration."""
    folder = run.folder / "checkpoints"
    saved = checkpoint.load(folder, step)
    here, there = (config.to_json() for config in (run.config, saved.config))
    changeable = *marked(Config, Mark.RESUMABLE, Mark.RESUMABLE_OFFLINE), "dataset", "dataset_dir"  # data may be moved
    same = dict.fromkeys(changeable)
    if differ := setting_differences(here | here.pop("agent") | same, there | there.pop("agent") | same):
        raise UserError(f"the checkpoint in {folder} belongs to another configuration: {'; '.join(differ)}")
    return saved
