"""Types and ranges of settings of every critic, actor and run, checked by name; tables of TOML files.

All functions raise UserError for what they do not accept.
"""

import math
import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from floq.utils.errors import UserError, nearest
from floq.utils.untrusted import TOML_LIMIT, check_depth, read_text

# --- TOML files ---


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a file. Raises UserError if it is missing, not TOML, too large or nested too deep."""
    try:
        found = tomllib.loads(read_text(path, TOML_LIMIT))
        check_depth(found)
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read it ({error})") from error
    return found


def check_keys(path: Path, table: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    """Raise UserError if a table has a key that is not in `known`."""
    for key in table:
        if key not in known:
            inside = f"{where} " if where else ""
            raise UserError(f"{path}: {inside}unknown key {key!r}; known are {', '.join(known)}{nearest(key, known)}")


def value_of(path: Path, table: Mapping[str, Any], key: str, kind: type, default: Any = None, where: str = "") -> Any:
    """Return the value of a key, or the default. Raises UserError if both are missing, or the value is no `kind`."""
    kinds = {str: "a text", bool: "true or false", dict: "a table", list: "a list"}
    name = f"{where} {key}".strip()
    if key not in table and default is None:
        raise UserError(f"{path}: {name} is missing: give {kinds[kind]}")
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise UserError(f"{path}: {name} = {value!r}: must be {kinds[kind]}")
    return value


def list_of(path: Path, name: str, values: Any, kind: type) -> list[Any]:
    """Return the values. Raises UserError if they are not a list of that kind."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        what = {dict: "written as [[groups]]", str: 'a list of texts, as in ["a", "b"]', int: "a list such as [0, 1]"}
        raise UserError(f"{path}: {name} = {values!r}: must be {what[kind]}")
    return values


# --- Types ---


def convert_to_type(where: str, value: Any, hint: Any) -> Any:
    """Convert a value read from a file to a setting's type `hint`; None only where the type allows it. Raises UserError
    for a value of another type."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in choices:
        return None
    for kind in choices:
        if get_origin(kind) is Literal and value in get_args(kind) and not isinstance(value, bool):
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):  # a file has lists, `to_json` tuples
            return tuple(convert_to_type(where, member, get_args(kind)[0]) for member in value)
        if kind is float and type(value) is int:
            return float(value)  # or the same run would have two digests
        if kind in names and type(value) is kind:
            return value
    wanted = [
        f"one of {', '.join(map(repr, get_args(kind)))}"
        if get_origin(kind) is Literal
        else "a list of numbers"
        if get_origin(kind) is tuple
        else names[kind]
        for kind in choices
        if kind is not type(None)
    ]
    raise UserError(f"{where} = {value!r}: must be {' or '.join(wanted)}")


# --- Ranges ---

SEEDS = 2**32  # number of seeds that give distinct random streams
POSITIVE = (
    *("lr", "batch_size", "n_step", "action_chunk", "reward_scale", "sigma", "time_embed_dim"),
    *(
        "critic_flow_steps",
        "target_flow_steps",
        "noise_samples",
        "target_noise_samples",
        "distill_noise_samples",
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
NON_NEGATIVE = (
    *("alpha", "alpha_critic", "actor_noise", "actor_noise_clip", "exploration_noise", "actor_head_scale"),
    *("temperature", "rho", "noise_coverage", "reward_offset", "support_margin"),
    *("offline_steps", "online_steps", "warmup_steps", "video_episodes", "restore_epoch", "eval_interval"),
)
MAX_VALUES = {"batch_size": 2**20, "num_envs": 2**12, "eval_episodes": 2**20, "action_chunk": 2**10, "n_step": 2**20}
MAX_VALUES |= {"block_depth": 2**8, "num_transformations": 2**8, "video_episodes": 2**10, "video_frame_skip": 2**20}
MAX_VALUES |= dict.fromkeys(("flow_num_ensembles", "distill_num_ensembles", "value_num_ensembles"), 2**20)
MAX_VALUES |= dict.fromkeys(
    ("block_width", "num_bins", "time_embed_dim", "quantile_embed_dim", "num_tau_samples"), 2**16
)
MAX_VALUES |= dict.fromkeys([name for name in POSITIVE if name.endswith(("_steps", "_samples", "_candidates"))], 2**16)
"""Upper bounds of integer settings: a larger value is a mistake or an attack, and would exhaust memory or time. No
published setting comes near."""

MAX_INT, MAX_LAYERS, MAX_WIDTH = 2**31 - 1, 2**8, 2**16  # of other integers, number of layers, layer size


def check_names(names: dict[str, str]) -> None:
    """Raise UserError for the first of these folder names that could lead out of its parent folder."""
    for name, value in names.items():
        parts = re.split(r"[/\\]", value)
        if ".." in parts or not all(parts) or re.search(r"[\x00-\x1f\x7f:]", value):
            raise UserError(
                f"{name}={value!r}: must be the name of a folder, without '..', colons or a slash at its ends"
            )


def check_ranges(settings: dict[str, Any]) -> None:
    """Raise UserError naming the first setting whose value is out of range."""

    def require(name: str, condition: Callable[[Any], bool], rule: str) -> None:
        value = settings.get(name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not condition(number):
                raise UserError(f"{name}={number}: must be {rule}")

    for name, value in settings.items():
        if isinstance(value, float):
            require(name, math.isfinite, "finite")
        if name.endswith("hidden_dims"):
            require(name, lambda size: 0 < size <= MAX_WIDTH, f"sizes greater than 0, at most {MAX_WIDTH}")
            if isinstance(value, tuple) and not 0 < len(value) <= MAX_LAYERS:
                raise UserError(f"{name}: give at least one hidden layer, and at most {MAX_LAYERS}")
        elif type(value) is int and name != "seed":
            most = MAX_VALUES.get(name, MAX_INT)
            require(name, lambda x, most=most: x <= most, f"at most {most}")
    for name in POSITIVE:
        require(name, lambda x: x > 0, "greater than 0")
    for name in NON_NEGATIVE:
        require(name, lambda x: x >= 0, "at least 0")
    require("discount", lambda x: 0 <= x < 1, "at least 0 and less than 1, since returns reach r / (1 - discount)")
    require("seed", lambda x: 0 <= x < SEEDS, f"at least 0 and less than {SEEDS}")
    require("keep_checkpoints", lambda x: x > 1, "at least 2: the one before is there if the newest is damaged")
    require("old_data_share", lambda x: 0 <= x < 1, "at least 0 and less than 1")
    for name in ("tau", "p_aug"):
        require(name, lambda x: 0 <= x <= 1, "between 0 and 1")
    require("num_bins", lambda x: x >= 3, "at least 3, these are the edges of the histogram")
    if settings.get("rho") and settings["q_agg"] != "lcb":
        raise UserError(f"rho={settings['rho']}: only q_agg=lcb subtracts deviations, give that too")
    if settings.get("time_embedding") == "fourier":
        require("time_embed_dim", lambda x: x % 2 == 0, "even, a Fourier embedding pairs cosines with sines")
