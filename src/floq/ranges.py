"""Which values settings may have, of whatever critic, actor or run: checked by name, in one place."""

import math
import re
from collections.abc import Callable
from typing import Any

from floq.errors import UserError

SEEDS = 2**32  # how many seeds the random streams tell apart
POSITIVE = (
    *("lr", "batch_size", "n_step", "action_chunk", "reward_scale", "sigma", "time_embed_dim"),
    *(
        "critic_flow_steps",
        "target_flow_steps",
        "noise_samples",
        "target_noise_samples",
        "distill_noise_samples",
        "distill_flow_steps",
        "acting_flow_steps",
        "actor_noise_samples",
        "actor_flow_steps",
    ),
    *("flow_num_ensembles", "distill_num_ensembles", "value_num_ensembles"),
    *("block_width", "block_depth", "num_transformations"),
    *("kappa", "num_tau_samples", "quantile_embed_dim", "num_candidates", "target_candidates", "actor_freq"),
    *(
        "utd",
        "num_envs",
        "env_timeout",
        "log_interval",
        "save_interval",
        "eval_episodes",
        "buffer_size",
    ),
    *("video_frame_skip", "frame_stack", "batch_devices", "checkpoint_minutes"),
)
NOT_NEGATIVE = (
    *("alpha", "alpha_critic", "actor_noise", "actor_noise_clip", "exploration_noise", "actor_head_scale"),
    *("temperature", "rho", "noise_coverage", "reward_offset", "support_margin"),
    *("offline_steps", "online_steps", "warmup_steps", "video_episodes", "restore_epoch", "eval_interval"),
)
SIZES = {"batch_size": 2**20, "num_envs": 2**12, "eval_episodes": 2**20, "action_chunk": 2**10, "n_step": 2**20}
SIZES |= {"block_depth": 2**8, "num_transformations": 2**8, "video_episodes": 2**10, "video_frame_skip": 2**20}
SIZES |= dict.fromkeys(("flow_num_ensembles", "distill_num_ensembles", "value_num_ensembles"), 2**20)
SIZES |= dict.fromkeys(("block_width", "num_bins", "time_embed_dim", "quantile_embed_dim", "num_tau_samples"), 2**16)
SIZES |= dict.fromkeys([name for name in POSITIVE if name.endswith(("_steps", "_samples", "_candidates"))], 2**16)
"""Beyond which a value is a slip or an attack: what it sizes would take a machine's memory or its time. No published
setting comes near."""

LARGEST, LAYERS, WIDEST = 2**31 - 1, 2**8, 2**16  # of any other whole number, of hidden layers, of each of them


def check_names(names: dict[str, str]) -> None:
    """Raises UserError for the first setting that names a folder and could lead out of the one that it is put in."""
    for name, value in names.items():
        parts = re.split(r"[/\\]", value)
        if ".." in parts or not all(parts) or re.search(r"[\x00-\x1f\x7f:]", value):
            raise UserError(
                f"{name}={value!r}: must be the name of a folder, without '..', colons or a slash at its ends"
            )


def check_ranges(settings: dict[str, Any]) -> None:
    """Raises UserError naming the first setting whose value cannot work."""

    def require(name: str, condition: Callable[[Any], bool], rule: str) -> None:
        value = settings.get(name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not condition(number):
                raise UserError(f"{name}={number}: must be {rule}")

    for name, value in settings.items():
        if isinstance(value, float):
            require(name, math.isfinite, "finite")
        if name.endswith("hidden_dims"):
            require(name, lambda size: 0 < size <= WIDEST, f"sizes greater than 0, at most {WIDEST}")
            if isinstance(value, tuple) and not 0 < len(value) <= LAYERS:
                raise UserError(f"{name}: give at least one hidden layer, and at most {LAYERS}")
        elif type(value) is int and name != "seed":
            most = SIZES.get(name, LARGEST)
            require(name, lambda x, most=most: x <= most, f"at most {most}")
    for name in POSITIVE:
        require(name, lambda x: x > 0, "greater than 0")
    for name in NOT_NEGATIVE:
        require(name, lambda x: x >= 0, "at least 0")
    require("discount", lambda x: 0 <= x < 1, "at least 0 and less than 1, since returns reach r / (1 - discount)")
    require("seed", lambda x: 0 <= x < SEEDS, f"at least 0 and less than {SEEDS}")
    require("keep_checkpoints", lambda x: x > 1, "at least 2: the one before is there if the newest is damaged")
    require("old_data_share", lambda x: 0 <= x < 1, "at least 0 and less than 1")
    for name in ("tau", "td_lambda", "p_aug"):
        require(name, lambda x: 0 <= x <= 1, "between 0 and 1")
    require("num_bins", lambda x: x >= 3, "at least 3, these are the edges of the histogram")
    if settings.get("rho") and settings["q_agg"] != "lcb":
        raise UserError(f"rho={settings['rho']}: only q_agg=lcb subtracts deviations, give that too")
    if settings.get("td_lambda", 1.0) < 1 and settings["n_step"] == 1:
        raise UserError(
            f"td_lambda={settings['td_lambda']}: it mixes targets of 1 to n_step steps, give n_step above 1"
        )
    if settings.get("time_embedding") == "fourier":
        require("time_embed_dim", lambda x: x % 2 == 0, "even, a Fourier embedding pairs cosines with sines")
