"""How a launch is laid out on the chip: what shared memory and registers of a Hopper GPU hold. Knows no Pallas."""

from dataclasses import dataclass

from floq.networks.kernels.limits import TILE, check_inputs

TILE_BYTES = 2 * TILE * TILE  # of bfloat16
MAX_SLAB = 256  # columns of one wgmma, and of what a warpgroup's registers can accumulate
MIN_STAGES, MAX_STAGES = 2, 6  # of the ring that weights stream through
SHARED_BYTES = 227 * 1024 - 2048  # a block's, less what barriers, results and reductions take
PROCESSORS = 132  # of an H100 or H200; a block has one to itself


@dataclass(frozen=True)
class Plan:
    """How one launch is laid out. A tile is 64 x 64 numbers of bfloat16."""

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
        """The layout for `runs * members` networks with `rows` rows each.

        One warpgroup to a block as long as every block finds a processor of its own; else two, so that a slab of
        weights serves 128 rows once it is there.

        Raises:
            UserError: the inputs do not fit shared memory.
        """
        stage = 2 * TILE * slab_of(width)
        check_inputs(inputs, most=((SHARED_BYTES - MIN_STAGES * stage) // TILE_BYTES - 1) * TILE)
        input_tiles, blocks = -(-inputs // TILE), runs * members * -(-rows // TILE)
        activations = TILE_BYTES * max(width // TILE, 1 + input_tiles)
        stages = [(SHARED_BYTES - warpgroups * activations) // stage for warpgroups in (1, 2)]
        warpgroups = 2 if blocks > PROCESSORS and stages[1] >= MIN_STAGES else 1
        ring = min(stages[warpgroups - 1], MAX_STAGES)
        return cls(num_steps, num_edges - 1, sigma, width, depth, input_tiles, members, warpgroups, ring)

    @property
    def slab(self) -> int:
        """Columns of a layer that are computed together."""
        return slab_of(self.width)

    @property
    def slabs(self) -> int:
        return self.width // self.slab

    @property
    def layers(self) -> list[tuple[int, int]]:
        """For each hidden layer: its first row of tiles among the packed weights, and how many it has."""
        first, hidden = 1 + self.input_tiles, self.width // TILE
        return [(0, first), *((first + i * hidden, hidden) for i in range(self.depth - 1))]

    @property
    def act_tiles(self) -> int:
        """Tiles that hold a row's activations: those of a hidden layer, or the input."""
        return max(self.width // TILE, 1 + self.input_tiles)

    @property
    def slabs_per_step(self) -> int:
        """Stages of the ring that one Euler step uses up."""
        return self.slabs * sum(count for _, count in self.layers)

    @property
    def block_rows(self) -> int:
        return TILE * self.warpgroups


def slab_of(width: int) -> int:
    """How many columns of a layer are computed together."""
    return max(columns for columns in range(TILE, MAX_SLAB + 1, TILE) if width % columns == 0)
