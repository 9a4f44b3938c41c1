"""The kernel for Hopper GPUs: integrates rows of (s, a, z) over all K steps without leaving the chip.

A block has one or two consumer warpgroups of 64 rows each, and a producer. The producer streams the weights, tile by
tile, into a ring buffer in shared memory (TMA); the consumers multiply (wgmma) and keep their rows' activations in
shared memory. A warpgroup's accumulators hold one slab of columns at a time. A layer's input may be overwritten only
after its last slab is computed, so finished slabs are kept in registers until then.

z is in units of the histogram's smoothing (`fused.py` converts), so the kernel is independent of the range of returns.
"""

import importlib
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jaxtyping import Array, BFloat16, Float, Int

from floq.networks.kernels.plan import TILE, Plan
from floq.networks.mlp import NORM_EPS

CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40

Ref = Any  # Pallas has no public type for references
plgpu: Any = mosaic_gpu  # as of JAX 0.11; `check_machine` reports other releases, so the type checker need not


class Refs(NamedTuple):
    """The memory of a block: arguments and result on the device, then its own shared memory and barriers."""

    x: Ref  # [runs, rows, 64 input_tiles]
    z: Ref  # [runs, rows]
    weights: Ref  # [groups, 64 rows of tiles, width]
    vectors: Ref  # [groups, depth + 1, width]: biases, then the head's weights
    offset: Ref  # [groups]: the head's bias
    result: Ref  # [groups, rows]
    acts: Ref  # [warpgroups, tiles, 64, 64]
    ring: Ref  # [stages, 64, slab]
    final_z: Ref  # [warpgroups, 64]
    full: Ref  # a stage has arrived
    free: Ref  # a stage has been read by all
    x_ready: Ref  # [s, a] has arrived


def launch(
    plan: Plan,
    x: BFloat16[Array, "runs rows inputs"],
    z: Float[Array, "runs rows"],
    weights: BFloat16[Array, "groups packed_rows width"],
    vectors: Float[Array, "groups vectors width"],
    offset: Float[Array, " groups"],
    interpret: bool,
) -> Float[Array, "groups rows"]:
    """Integrate every row K steps by each of its run's networks. The number of rows is a multiple of the block's."""
    groups, rows = weights.shape[0], z.shape[1]
    swizzled = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))

    def floq_integration(*refs: Ref) -> None:
        _block(plan, Refs(*refs), interpret)

    return plgpu.kernel(
        floq_integration,
        out_type=jax.ShapeDtypeStruct((groups, rows), jnp.float32),
        scratch_types=[
            plgpu.SMEM((plan.warpgroups, plan.act_tiles, TILE, TILE), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((plan.stages, TILE, plan.slab), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((plan.warpgroups, TILE), jnp.float32),
            plgpu.Barrier(num_barriers=plan.stages),
            plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages),
            plgpu.Barrier(num_arrivals=plan.input_tiles, num_barriers=plan.warpgroups),
        ],
        grid=(groups, rows // plan.block_rows),
        grid_names=("group", "block"),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane, reduction_scratch_bytes=512
        ),
        interpret=_interpreter() if interpret else None,
    )(x, z, weights, vectors, offset)


def _block(plan: Plan, refs: Refs, interpret: bool) -> None:
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < plan.warpgroups)
    def _():
        _Consumer(plan, refs, interpret).run()

    @pl.when(warpgroup == plan.warpgroups)
    def _():
        _stream_weights(plan, refs)


def _stream_weights(plan: Plan, refs: Refs) -> None:
    """Run the producer: stream all weights in the order of their use, once for each Euler step."""
    plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
    group, stages = lax.axis_index("group"), jnp.int32(plan.stages)

    def fetch(first: int, columns: Any, k: Array, count: Array) -> Array:
        slot, rows = lax.rem(count, stages), pl.ds((first + k) * TILE, TILE)
        plgpu.barrier_wait(refs.free.at[slot])
        plgpu.copy_gmem_to_smem(refs.weights.at[group, rows, columns], refs.ring.at[slot], refs.full.at[slot])
        return count + 1

    def euler_step(_: Array, count: Array) -> Array:
        for first, tiles in plan.layers:
            for slab in range(plan.slabs):
                columns = pl.ds(slab * plan.slab, plan.slab)
                count = lax.fori_loop(0, tiles, partial(fetch, first, columns), count)
        return count

    count = lax.fori_loop(0, plan.num_steps, euler_step, jnp.int32(0))
    for stage in range(plan.stages):  # exit only after all stages have been read
        plgpu.barrier_wait(refs.free.at[lax.rem(count + stage, stages)])


class _Consumer:
    """A consumer warpgroup and its 64 rows."""

    def __init__(self, plan: Plan, refs: Refs, interpret: bool):
        self._plan, self._refs, self._interpret = plan, refs, interpret
        self._group, self._warpgroup = lax.axis_index("group"), lax.axis_index("warpgroup")
        self._run = lax.div(self._group, jnp.int32(plan.members))
        first = lax.axis_index("block") * plan.block_rows + self._warpgroup * TILE
        self._rows = pl.ds(first, TILE)
        self._acts = refs.acts.at[self._warpgroup]

    def run(self) -> None:
        """Load z from device memory, integrate K steps, store z."""
        plan, refs = self._plan, self._refs
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
        for stage in range(plan.stages):
            plgpu.barrier_arrive(refs.free.at[stage])
        z = self._load(refs.z.at[self._run, self._rows], _per_row())
        offset = refs.offset[self._group]

        def euler_step(i: Array, z: Array) -> Array:
            self._write_input(z, i.astype(jnp.float32) / plan.num_steps)
            return z + self._velocity(i * plan.slabs_per_step) + offset

        refs.final_z[self._warpgroup] = lax.fori_loop(0, plan.num_steps, euler_step, z)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(refs.final_z.at[self._warpgroup], refs.result.at[self._group, self._rows])
        plgpu.wait_smem_to_gmem(0)

    def _write_input(self, z: Array, t: Array) -> None:
        """Write the first layer's input: a tile with the histogram of z and the cosine of t, then those of [s, a]."""
        refs, column = self._refs, _column_numbers(self._interpret)
        self._acts[0] = _embedding(z, t, column, self._plan.num_bins, self._plan.sigma).astype(jnp.bfloat16)
        for tile in range(self._plan.input_tiles):
            columns = pl.ds(tile * TILE, TILE)
            source = refs.x.at[self._run, self._rows, columns]
            plgpu.copy_gmem_to_smem(source, self._acts.at[1 + tile], refs.x_ready.at[self._warpgroup])
        plgpu.commit_smem()
        plgpu.barrier_wait(refs.x_ready.at[self._warpgroup])

    def _velocity(self, stage: Array) -> Array:
        """Compute the network's output for the input in `_acts`, without the head's bias, from stage `stage` on."""
        plan, width = self._plan, self._plan.width
        out = rstd = jnp.float32(0)
        for layer, (_, tiles) in enumerate(plan.layers):
            is_last = layer == plan.depth - 1
            total = squares = jnp.float32(0)
            pending: list[tuple[int, Array]] = []
            for slab in range(plan.slabs):
                product = self._multiply(stage, tiles)
                stage = stage + tiles
                for tile in range(plan.slab // TILE):
                    column = slab * (plan.slab // TILE) + tile
                    u = product[:, tile * TILE : (tile + 1) * TILE]
                    y = _gelu((u * _broadcast_rows(rstd) if layer else u) + self._vector(layer, column))
                    total, squares = total + y.sum(1), squares + (y * y).sum(1)
                    if is_last:
                        out = out + (y * self._vector(plan.depth, column)).sum(1)
                    else:
                        pending.append((column, y.astype(jnp.bfloat16)))
                    if slab == plan.slabs - 1:  # the layer's input has been read
                        for index, values in pending:
                            self._acts[index] = values
                        pending = []
            mean = total / width
            rstd = lax.rsqrt(jnp.maximum(squares / width - mean * mean, 0.0) + NORM_EPS)
            if not is_last:
                plgpu.commit_smem()
        return out * rstd

    def _multiply(self, stage: Array, tiles: int) -> Float[Array, "64 slab"]:
        """Multiply the first `tiles` of `_acts` with the next stages of the ring."""
        refs = self._refs
        slots = [lax.rem(stage + k, jnp.int32(self._plan.stages)) for k in range(tiles)]

        def accumulate(accumulator: Ref) -> Array:
            for k, slot in enumerate(slots):
                plgpu.barrier_wait(refs.full.at[slot])
                plgpu.wgmma(accumulator, self._acts.at[k], refs.ring.at[slot])
                if k:
                    plgpu.wgmma_wait(1)  # the product before this one is done
                    plgpu.barrier_arrive(refs.free.at[slots[k - 1]])
            product = accumulator[...]
            plgpu.barrier_arrive(refs.free.at[slots[-1]])
            return product

        return pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((TILE, self._plan.slab), jnp.float32))

    def _vector(self, number: int, column: int) -> Float[Array, "64 64"]:
        """Load 64 entries of one of the packed vectors, the same for every row."""
        source = self._refs.vectors.at[self._group, number, pl.ds(column * TILE, TILE)]
        return lax.broadcast_in_dim(self._load(source, _per_column()), (TILE, TILE), [1])

    def _load(self, ref: Ref, layout: Any) -> Float[Array, "64"]:
        return _load(ref, layout, self._interpret)


def _embedding(
    z: Float[Array, "64"], t: Float[Array, ""], column: Int[Array, "64 64"], num_bins: int, sigma: float
) -> Float[Array, "64 64"]:
    """Embed 64 rows: `embeddings.histogram`, then the cosine of t, then zeros. z is the distance from the value to the
    lower end of the support, in units of sqrt(2) standard deviations of the smoothing."""
    step = 1 / (math.sqrt(2) * sigma)  # bin width in those units
    slack = 3 / math.sqrt(2)
    low = jnp.clip(z, -num_bins * step - slack, slack)
    edge = _broadcast_rows(low) + column.astype(jnp.float32) * step
    inverse = 1 / (_erf(low + num_bins * step) - _erf(low))
    mass = (_erf(edge + step) - _erf(edge)) * _broadcast_rows(inverse)
    return jnp.where(column < num_bins, mass, jnp.where(column == num_bins, jnp.cos(t), 0.0))


def _erf(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Compute the error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26), which Mosaic lacks."""
    t = 1 / (1 + 0.3275911 * jnp.abs(x))
    series = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + coefficient) * t
    tail = series * jnp.exp(-(x * x))
    return jnp.where(x < 0, tail - 1, 1 - tail)


def _gelu(u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Compute GELU in the tanh form of `jax.nn.gelu`."""
    half = 0.5 * u
    scale = math.sqrt(2 / math.pi)
    return half * jnp.tanh(u * (scale + 0.044715 * scale * (u * u))) + half


def _broadcast_rows(x: Float[Array, "64"]) -> Float[Array, "64 64"]:
    return lax.broadcast_in_dim(x, (TILE, TILE), [0])


def _per_row() -> Any:
    """Return the register layout of one number per row of an accumulator."""
    return plgpu.Layout.WGMMA.reduce(1)


def _per_column() -> Any:
    return plgpu.Layout.WGMMA.reduce(0)


# --- Chip or interpreter ---


def _load(ref: Ref, layout: Any, interpret: bool) -> Array:
    """Load from device memory to registers."""
    return ref[...] if interpret else plgpu.load(ref, layout=layout, optimized=False)


def _column_numbers(interpret: bool) -> Int[Array, "64 64"]:
    if interpret:
        return lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1)
    return plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), 1, layout=plgpu.Layout.WGMMA)


def _interpreter() -> Any:
    """Return the settings for interpreting a kernel in Pallas, which JAX does not export."""
    return importlib.import_module("jax._src.pallas.mosaic_gpu.interpret.params").InterpretGPUParams()
