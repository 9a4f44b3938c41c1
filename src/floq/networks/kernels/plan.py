"""Limits and launch layout of the fused kernel: shared memory and registers of a Hopper GPU. Independent of Pallas."""

from dataclasses import dataclass
from typing import NoReturn

import jax

from floq.utils.errors import UserError

# --- Limits ---

TILE = 64  # rows that a warpgroup multiplies at a time; widths and inputs are padded to multiples
MAX_WIDTH = 512  # with the activations of 128 rows and three slabs of weights, this fills the shared memory
RELEASES = ((0, 11, 0), (0, 13, 0))  # first supported and first unsupported JAX: Mosaic's interface changes


def check_settings(*, layer_norm: bool, residual: bool, histogram: bool, num_edges: int, time: str, width: int) -> None:
    """Raise UserError if the kernel does not support a setting of the velocity field.

    Args:
        layer_norm: whether the network has LayerNorm.
        residual: whether it has residual blocks.
        histogram: whether z is embedded as a histogram.
        num_edges: edges of the histogram.
        time: embedding of t.
        width: width of all hidden layers.
    """
    if not layer_norm:
        _refuse("LayerNorm is part of the kernel", "give --agent.layer_norm=True")
    if residual:
        _refuse("the kernel has no residual blocks", "give --agent.use_resnets=False")
    if not histogram:
        _refuse("the kernel embeds z as a histogram", "give --agent.use_prob_embed=True")
    if num_edges > TILE:
        _refuse(f"--agent.num_bins={num_edges} are too many", f"give up to {TILE}")
    if time != "cos":
        _refuse(f"the kernel embeds t as its cosine, not {time}", "give --agent.time_embedding=cos")
    if width % TILE or width > MAX_WIDTH:
        _refuse(f"--agent.block_width={width} does not fit", f"give a multiple of {TILE} up to {MAX_WIDTH}")


def check_machine() -> None:
    """Raise UserError if this machine cannot run the kernel. Initialises JAX."""
    first, after = RELEASES
    if not first <= jax.__version_info__ < after:
        supported = f"from {'.'.join(map(str, first[:2]))} on, before {'.'.join(map(str, after[:2]))} (Python 3.12)"
        _refuse(f"jax {jax.__version__} may not know the kernel's interface", f"install one {supported}")
    device = jax.devices()[0]
    if device.platform != "gpu" or getattr(device, "compute_capability", None) != "9.0":
        _refuse(f"it needs a Hopper GPU (H100, H200) and this is {device.device_kind}")


def _refuse(reason: str, remedy: str | None = None) -> NoReturn:
    raise UserError(f"--agent.integration=fused: {reason}; {f'{remedy} or ' if remedy else ''}use plain")


# --- Layout ---

TILE_BYTES = 2 * TILE * TILE  # of bfloat16
MAX_SLAB = 256  # maximum columns of one wgmma and of a warpgroup's accumulators
MIN_STAGES, MAX_STAGES = 2, 6  # of the ring buffer for weights
SHARED_BYTES = 227 * 1024 - 2048  # of a block, less barriers, results and reductions
PROCESSORS = 132  # streaming multiprocessors of an H100 or H200; each holds one block


@dataclass(frozen=True)
class Plan:
    """Layout of one launch. A tile is 64 x 64 numbers of bfloat16."""

    num_steps: int
    num_bins: int
    sigma: float
    width: int
    depth: int
    input_tiles: int  # tiles in a row of [s, a]
    members: int
    warpgroups: int  # consumers in a block, of 64 rows each
    stages: int  # slabs of weights in the ring

    @classmethod
    def of(
        cls, runs: int, members: int, rows: int, inputs: int, width: int, depth: int, num_steps: int, num_edges: int,
        sigma: float,
    ) -> "Plan":  # fmt: skip
        """Choose the layout for `runs * members` networks with `rows` rows each.

        A block has one warpgroup as long as there is a processor for every block; otherwise two, so that a loaded slab
        of weights serves 128 rows.

        Raises:
            UserError: the inputs do not fit shared memory.
        """
        stage = 2 * TILE * slab_width(width)
        if inputs > (most := ((SHARED_BYTES - MIN_STAGES * stage) // TILE_BYTES - 1) * TILE):
            _refuse(f"observation and action have {inputs} numbers together, the kernel takes up to {most}")
        input_tiles, blocks = -(-inputs // TILE), runs * members * -(-rows // TILE)
        activations = TILE_BYTES * max(width // TILE, 1 + input_tiles)
        stages = [(SHARED_BYTES - warpgroups * activations) // stage for warpgroups in (1, 2)]
        warpgroups = 2 if blocks > PROCESSORS and stages[1] >= MIN_STAGES else 1
        ring = min(stages[warpgroups - 1], MAX_STAGES)
        return cls(num_steps, num_edges - 1, sigma, width, depth, input_tiles, members, warpgroups, ring)

    @property
    def slab(self) -> int:
        """Columns of a layer that are computed together."""
        return slab_width(self.width)

    @property
    def slabs(self) -> int:
        """Slabs of a hidden layer."""
        return self.width // self.slab

    @property
    def layers(self) -> list[tuple[int, int]]:
        """For each hidden layer: its first row of tiles in the packed weights, and its number of rows of tiles."""
        first, hidden = 1 + self.input_tiles, self.width // TILE
        return [(0, first), *((first + i * hidden, hidden) for i in range(self.depth - 1))]

    @property
    def act_tiles(self) -> int:
        """Tiles per row for the activations of a hidden layer or the input, whichever is larger."""
        return max(self.width // TILE, 1 + self.input_tiles)

    @property
    def slabs_per_step(self) -> int:
        """Stages of the ring that one Euler step consumes."""
        return self.slabs * sum(count for _, count in self.layers)

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return TILE * self.warpgroups


def slab_width(width: int) -> int:
    """Return the number of columns of a layer that are computed together."""
    return max(columns for columns in range(TILE, MAX_SLAB + 1, TILE) if width % columns == 0)
