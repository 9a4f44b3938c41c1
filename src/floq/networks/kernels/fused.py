"""The K-step integration as one kernel launch: its computation, its batching under vmap, the packing of networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, PyTree

from floq.networks.kernels.plan import TILE, Plan
from floq.networks.mlp import PlainBody, SplitLinear, fold_layer_norm


class Settings(NamedTuple):
    """Compile-time settings: Euler steps, edges of the histogram of z and its smoothing in bin widths."""

    num_steps: int
    num_edges: int
    sigma: float


def integrate_fused(
    entry: SplitLinear,
    body: PlainBody,
    x: Float[Array, " inputs"],
    z_0: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
    settings: Settings,
    *,
    interpret: bool = False,
) -> Float[Array, " members"]:
    """Integrate the velocity field of each member from `z_0`: `flow.integrate` in one kernel, products in bfloat16.

    It is written for one transition. Any number of nested `jax.vmap` launches one kernel: an axis of `x` or `z_0` alone
    becomes rows of the kernel, an axis of the networks or of the support becomes runs.

    Args:
        entry: first layers of the ensemble's velocity fields, stacked on a leading axis of every leaf.
        body: their other layers, stacked likewise.
        x: observation and action.
        z_0: initial value.
        low: lower end of the support of the histogram of z.
        high: upper end of the support.
        settings: compile-time settings.
        interpret: let Pallas interpret the kernel: slow, on any machine.

    Raises:
        UserError: `x` is too long.
        TypeError: it is differentiated. The kernel has no gradient; stop it outside.
    """

    @jax.custom_jvp
    def opaque(*arguments: PyTree) -> Float[Array, "1 members 1"]:
        return _batched(settings, interpret)(*arguments)

    @opaque.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise TypeError("the fused integration has no derivative: stop the gradient of its arguments")

    one_run = jax.tree.map(lambda leaf: leaf[None], ((entry, body), low, high))
    return opaque(*one_run, x[None, None], z_0[None, None])[0, :, 0]


def _batched(settings: Settings, interpret: bool) -> Callable[..., Float[Array, "runs members rows"]]:
    """Return `_launch` with a vmap rule that merges the new axis into the runs or the rows."""

    @jax.custom_batching.custom_vmap
    def launch(fields: PyTree, low: Array, high: Array, x: Array, z_0: Array) -> Float[Array, "runs members rows"]:
        return _launch(fields, low, high, x, z_0, settings, interpret)

    @launch.def_vmap
    def _(size: int, is_batched: Any, fields: PyTree, low: Array, high: Array, x: Array, z_0: Array):
        def broadcast(leaf: Array, batched: bool) -> Array:
            return leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape))

        def runs_first(leaf: Array, batched: bool) -> Array:
            full = broadcast(leaf, batched)
            return full.reshape(-1, *full.shape[2:])

        def rows_second(leaf: Array, batched: bool) -> Array:
            full = jnp.moveaxis(broadcast(leaf, batched), 0, 1)  # [runs, new axis, rows, ...]
            return full.reshape(full.shape[0], -1, *full.shape[3:])

        if any(jax.tree.leaves(is_batched[:3])):
            arguments = (fields, low, high, x, z_0)
            values = launch(*jax.tree.map(runs_first, arguments, tuple(is_batched)))
            return values.reshape(size, -1, *values.shape[1:]), True
        values = launch(fields, low, high, *map(rows_second, (x, z_0), is_batched[3:]))
        return jnp.moveaxis(values.reshape(*values.shape[:2], size, -1), 2, 0), True

    return launch


def _launch(
    fields: tuple[SplitLinear, PlainBody],
    low: Float[Array, " runs"],
    high: Float[Array, " runs"],
    x: Float[Array, "runs rows inputs"],
    z_0: Float[Array, "runs rows"],
    settings: Settings,
    interpret: bool,
) -> Float[Array, "runs members rows"]:
    """Pack the networks, pad the rows with zeros to whole blocks, launch, and drop the padding."""
    from floq.networks.kernels.hopper import launch  # Pallas is slow to import, and not in every release of JAX

    runs, rows, inputs = x.shape
    members, width = fields[0].bias.shape[1:]
    plan = Plan.of(runs, members, rows, inputs, width, len(fields[1].activations), *settings)

    unit = (high - low) / (settings.num_edges - 1) * settings.sigma * jnp.sqrt(2.0)  # of z in the kernel
    scale = -1 / (unit * settings.num_steps)  # from a velocity to the increment of one step in that unit
    packed = jax.vmap(jax.vmap(_pack, (0, 0, None)))(*fields, scale)
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), packed)

    padding = (0, -rows % plan.block_rows)
    padded_x = jnp.pad(x, ((0, 0), padding, (0, -inputs % TILE))).astype(jnp.bfloat16)
    start = jnp.pad((low[:, None] - z_0) / unit[:, None], ((0, 0), padding))
    end = launch(plan, padded_x, start, *groups, interpret=interpret).reshape(runs, members, -1)[..., :rows]
    return low[:, None, None] - end * unit[:, None, None]


def _pack(
    entry: SplitLinear, body: PlainBody, scale: Float[Array, ""]
) -> tuple[BFloat16[Array, "rows width"], Float[Array, "vectors width"], Float[Array, ""]]:
    """Pack one network for the kernel: its matrices, one below the other; its biases and the head's weights; the head's
    bias. The head is multiplied by `scale`.

    LayerNorms are folded into the products after them (see `FoldedBody`): the kernel needs only the std of a row.
    """
    tiled = lambda weight: jnp.pad(weight, ((0, -weight.shape[0] % TILE), (0, 0)))  # noqa: E731
    weights, biases = [tiled(entry.weight_y), tiled(entry.weight_x)], [entry.bias]
    for activation, linear in zip(body.activations, body.linears, strict=True):
        assert activation.norm is not None, "checked with the settings"
        without_norm = fold_layer_norm(activation.norm, linear)
        weights.append(without_norm.weight)
        biases.append(without_norm.bias)
    head, head_bias = weights.pop()[:, 0] * scale, biases.pop()[0] * scale
    return jnp.concatenate(weights).astype(jnp.bfloat16), jnp.stack([*biases, head]), head_bias
