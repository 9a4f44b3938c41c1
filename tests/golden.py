"""The authors' numbers in `golden/`, and our agents with the very parameters and draws that they were made with.

Made by running the released agents (`CMU-AIRe/floq`, head 2e46108; JAX 0.10.2, CPU, float32) on random inputs; the keys
of the files are explained in `golden/README.md`.
"""

import dataclasses
import json
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from floq.actors.behaviour import BehaviourFlow
from floq.actors.fql import FQLActor
from floq.agent.agent import Agent
from floq.agent.config import AGENTS, AgentConfig, settings_type
from floq.agent.state import OptStates, Params
from floq.critics import CRITICS
from floq.critics.floq import FloqCritic, VelocityField
from floq.networks.mlp import MLP, Activation, LayerNorm, Linear, PlainBody, ResidualBody, SplitLinear

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
FLOWS = [name for name in NAMES if name.startswith("floq")]


class Golden:
    """One file: `numbers[key]`, the settings, and agents of ours with its parameters."""

    def __init__(self, name: str):
        given = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            self.numbers = {key: file[key] for key in file.files}
        self.obs_dim, self.action_dim, self.rewards = given.pop("obs"), given.pop("act"), given.pop("rewards")
        critic, actor = AGENTS[given.pop("agent")]
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        batch_size = {"batch_size": len(self.numbers["batch/rewards"])}
        assert not set(settings) - {f.name for f in dataclasses.fields(settings_type(critic, actor))}
        self.config = AgentConfig.from_flat(critic, actor, settings | batch_size)

    def __getitem__(self, key: str) -> jax.Array:
        return jnp.asarray(self.numbers[key], jnp.float32)

    @property
    def batch(self) -> dict[str, jax.Array]:
        return {
            name: self[f"batch/{name}"] for name in ("observations", "actions", "next_observations", "rewards", "masks")
        }

    @property
    def draws(self) -> SimpleNamespace:
        return SimpleNamespace(**{key[6:]: self[key] for key in self.numbers if key.startswith("draws/")})

    def agent(self, when: str = "before") -> Agent:
        """Our agent with the parameters `before` or `after` the update; its moments are fresh."""
        critic, actor = self.networks(when), self.actor(when)
        target = self.networks(when, "target_")
        fresh = Agent.init(
            jax.random.key(0), self.obs_dim, self.action_dim, self.config, reward_range=tuple(self.rewards)
        )
        params = Params(critic, actor)
        return dataclasses.replace(fresh, params=params, target=target, opt_state=OptStates.init(params))

    def networks(self, root: str, target: str = "") -> Any:
        """The critic, or its target copy; of `gradient_critic` its gradient."""
        config = self.config.compiled().critic
        if self.config.critic_name == "floq":
            distilled = None if target else self.ensemble(f"{root}/critic", MLP)
            return FloqCritic(self.ensemble(f"{root}/{target}velocity", self.velocity_field), distilled, config)
        return CRITICS[self.config.critic_name][1](self.ensemble(f"{root}/{target}critic", MLP), config)

    def velocity_field(self, entry: Linear, body: PlainBody | ResidualBody) -> VelocityField:
        split = self.obs_dim + self.action_dim
        entry = SplitLinear(entry.weight[:split], entry.weight[split:], entry.bias)
        return VelocityField(entry, body, self.config.compiled().critic)

    def actor(self, root: str) -> FQLActor:
        """The actor; of `gradient_actor` its gradient."""
        flow, one_step = (MLP(*self.network(self.part(f"{root}/{name}"))) for name in ("behaviour_flow", "one_step"))
        return FQLActor(BehaviourFlow(flow), one_step, self.action_dim, self.config.compiled().actor)

    def part(self, path: str) -> dict[str, jax.Array]:
        """The arrays of one network."""
        return {key[len(path) + 1 :]: self[key] for key in self.numbers if key.startswith(f"{path}/")}

    def ensemble(self, path: str, make: Callable[..., Any]) -> Any:
        """A network whose arrays have a leading axis for its members."""
        return jax.vmap(lambda arrays: make(*self.network(arrays)))(self.part(path))

    def network(self, arrays: dict[str, jax.Array]) -> tuple[Linear, PlainBody | ResidualBody]:
        """The entry and the body of a network whose layers have Flax's names."""
        norm_last = getattr(self.config.critic, "activate_before_layernorm", True)

        def linear(name: str) -> Linear:
            return Linear(arrays[f"{name}/kernel"], arrays[f"{name}/bias"])

        def activation(name: str) -> Activation:
            norm = LayerNorm(arrays[f"{name}/scale"], arrays[f"{name}/bias"]) if f"{name}/scale" in arrays else None
            return Activation(norm, norm_last)

        if "initial_block/Dense_0/kernel" in arrays:
            c: Any = self.config.critic
            layers = [[(f"hidden_blocks_{b}", i) for i in range(c.block_depth)] for b in range(c.num_transformations)]
            blocks = tuple(
                tuple((linear(f"{block}/Dense_{i}"), activation(f"{block}/LayerNorm_{i}")) for block, i in of_block)
                for of_block in layers
            )
            first = activation("initial_block/LayerNorm_0")
            return linear("initial_block/Dense_0"), ResidualBody(first, blocks, linear("final_block/Dense_0"))
        depth = sum(key.startswith("Dense_") and key.endswith("kernel") for key in arrays)
        activations = tuple(activation(f"LayerNorm_{i}") for i in range(depth - 1))
        return linear("Dense_0"), PlainBody(activations, tuple(linear(f"Dense_{i}") for i in range(1, depth)))


@cache
def golden(name: str) -> Golden:
    return Golden(name)


@contextmanager
def replayed(agent: Agent, draws: SimpleNamespace, monkeypatch):
    """Within, an update of this agent draws the given numbers: a key stands for its row of them, found by its value."""
    rows = len(draws.bc_t)
    target_key, critic_key, actor_key = jax.random.split(jax.random.fold_in(agent.key, agent.step), 3)
    tables: list[tuple[np.ndarray, jax.Array]] = []

    def known(keys, values) -> None:
        tables.append((np.asarray(jax.random.key_data(keys)), values))

    split = jax.vmap(jax.random.split, (0, None))
    name = type(agent.params.critic).__name__
    per_row = {
        what: jax.random.split(key, rows) for what, key in zip("tca", (target_key, critic_key, actor_key), strict=True)
    }
    samples = draws.next_noise.shape[1] if draws.next_noise.ndim == 3 else None
    if samples is None:
        known(per_row["t"], draws.next_noise)
    else:
        halves = split(per_row["t"], 2)
        for j, keys in enumerate(split(halves[:, 0], samples).swapaxes(0, 1)):
            known(keys, draws.next_noise[:, j])
        known(halves[:, 1], draws.tau_target if name == "QuantileCritic" else draws.u_target)
    if name == "QuantileCritic":
        known(per_row["c"], draws.tau_loss)
    if name == "FloqCritic":
        thirds = split(per_row["c"], 3)
        known(thirds[:, 0], draws.u_loss)
        if hasattr(draws, "t"):
            known(thirds[:, 1], draws.t)
    act_keys, value_keys = split(per_row["a"], 2).swapaxes(0, 1)
    for keys, what in zip(
        split(act_keys, 4).swapaxes(0, 1), ("bc_noise", "bc_t", "policy_noise", "mse_noise"), strict=True
    ):
        known(keys, getattr(draws, what))
    if name == "QuantileCritic":
        known(value_keys, draws.tau_actor)

    def draw(key, shape=(), *_):
        data = jax.random.key_data(key)
        found = jnp.full(shape, jnp.nan)  # a draw that nobody planned shows
        for keys, values in tables:
            if values.shape[1:] == shape:
                matches = jnp.all(keys == data[None], axis=-1)
                found = jnp.where(jnp.any(matches), values[jnp.argmax(matches)], found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(jax.random, "normal", draw)
        patch.setattr(jax.random, "uniform", draw)
        yield
