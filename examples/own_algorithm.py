"""The floq critic inside your own algorithm: a deterministic actor that stays near the data (TD3+BC in spirit).

The toy problem: s' = s + a / 2, reward -s'^2, data of uniform states and actions. The best action is -2 s, clipped.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from floq.critics import FloqConfig, FloqCritic, ReturnScale
from floq.networks.mlp import MLP

SCALE = ReturnScale(*map(jnp.float32, (-2.25, 0.0, 0.9, 0.1)))  # r_min, r_max, discount, noise coverage
CONFIG = FloqConfig(value_hidden_dims=(64, 64), block_width=64, block_depth=2, critic_flow_steps=4, noise_samples=2)
BATCH, TAU, ALPHA, ADAM = 64, 0.02, 0.03, optax.adam(2e-3)


def update(i, state):
    critic, actor, target, opt_state = state
    data_key, *keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 4)
    target_keys, loss_keys, value_keys = (jax.random.split(key, BATCH) for key in keys)
    obs, acts = jax.random.uniform(data_key, (2, BATCH, 1), minval=-1.0)
    next_obs = obs + acts / 2
    rewards = -jnp.square(next_obs[:, 0])

    def bellman(reward, obs, key):  # the policy is an argument, since a critic knows no actor
        return target.target(reward, SCALE.discount, obs, lambda o, _: jnp.tanh(actor(o)), SCALE, key)

    def critic_loss(critic):
        y = jax.vmap(bellman)(rewards, next_obs, target_keys)
        return jnp.mean(jax.vmap(lambda *args: critic.loss(*args[:3], SCALE, args[3])[0])(obs, acts, y, loss_keys))

    def actor_loss(actor):
        own = jnp.tanh(jax.vmap(actor)(obs))
        q = jax.vmap(lambda o, a, key: critic.actor_value(o, a, SCALE, key))(obs, own, value_keys)
        return ALPHA * jnp.mean(jnp.square(own - acts)) - jnp.mean(q)

    grads: Any = jax.grad(critic_loss)(critic), jax.grad(actor_loss)(actor)
    steps, opt_state = ADAM.update(grads, opt_state)
    target = jax.tree.map(lambda slow, fast: (1 - TAU) * slow + TAU * fast, target, critic.target_network())
    return *eqx.apply_updates((critic, actor), steps), target, opt_state


def main(updates=2000):
    critic: Any = FloqCritic.init(jax.random.key(0), 1, 1, CONFIG)
    actor: Any = MLP.init(jax.random.key(2), 1, (64, 64), 1, layer_norm=False)
    state = critic, actor, critic.target_network(), ADAM.init((critic, actor))
    _, actor, *_ = jax.jit(lambda state: jax.lax.fori_loop(0, updates, update, state))(state)
    for s in (-0.8, -0.4, 0.0, 0.4, 0.8):
        learned = jnp.tanh(actor(jnp.array([s])))[0]
        print(f"state {s:4.1f}   best {min(1, max(-1, -2 * s)):4.1f}   learned {learned:5.2f}")
    return actor


if __name__ == "__main__":
    main()
