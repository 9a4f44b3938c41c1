"""What the fused integration cannot do, in words. Knows no Pallas, so that asking costs nothing."""

from typing import NoReturn

import jax

from floq.utils.errors import UserError

TILE = 64  # rows that a warpgroup multiplies at a time; widths and inputs come in as many
MAX_WIDTH = 512  # the activations of 128 rows and three slabs of weights fill the shared memory then
RELEASES = ((0, 11, 0), (0, 13, 0))  # of JAX: from the first on, before the second; Mosaic's interface moves


def check_settings(*, layer_norm: bool, residual: bool, histogram: bool, num_edges: int, time: str, width: int) -> None:
    """Raises UserError if the kernel lacks a setting of the velocity field.

    Args:
        layer_norm, residual: whether the network has them.
        histogram, num_edges: whether z enters as a histogram, and of how many edges.
        time: how t enters.
        width: of all hidden layers.
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


def check_inputs(inputs: int, most: int) -> None:
    """Raises UserError if an observation and an action have more numbers together than fit."""
    if inputs > most:
        _refuse(f"observation and action have {inputs} numbers together, the kernel takes up to {most}")


def check_machine() -> None:
    """Raises UserError if this machine cannot run the kernel. Starts JAX."""
    first, after = RELEASES
    if not first <= jax.__version_info__ < after:
        known = f"from {'.'.join(map(str, first[:2]))} on, before {'.'.join(map(str, after[:2]))} (Python 3.12)"
        _refuse(f"jax {jax.__version__} may not know the kernel's interface", f"install one {known}")
    device = jax.devices()[0]
    if device.platform != "gpu" or getattr(device, "compute_capability", None) != "9.0":
        _refuse(f"it needs a Hopper GPU (H100, H200) and this is {device.device_kind}")


def _refuse(reason: str, remedy: str | None = None) -> NoReturn:
    raise UserError(f"--agent.integration=fused: {reason}; {f'{remedy} or ' if remedy else ''}use plain")
