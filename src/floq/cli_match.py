"""`floq train --match`: a baseline as large, or as costly, as the flow critic that it is compared with."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any, NamedTuple, get_args

from floq.config import AgentConfig, Config
from floq.errors import UserError, nearest
from floq.flags import Flags


class Match(NamedTuple):
    """What of the baseline's critic is made equal, and what of it changes; see `analysis.matching.matched`."""

    what: Any
    by: Any

    @classmethod
    def taken_from(cls, flags: Flags) -> "Match | None":
        """What `--match` and `--match_by` ask for, and forget them.

        Raises:
            UserError: a value that there is not, or the second without the first.
        """
        what, by = flags.take("match", None), flags.take("match_by", None)
        if what is None and by is None:
            return None
        from floq.analysis.matching import By, What  # it loads JAX

        for flag, value, known in (("match", what, get_args(What)), ("match_by", by, get_args(By))):
            if value is not None and value not in known:
                raise UserError(f"--{flag}={value}: choose {' or '.join(known)}{nearest(value, known)}")
        if what is None:
            raise UserError(f"--match_by={by} says how --match changes the baseline: give --match=params or flops too")
        return cls(what, by or "width")

    def check(self, critic: str) -> None:
        """Raises UserError if the agent to be matched has the flow critic itself."""
        if critic == "floq":
            raise UserError(
                f"--match={self.what} fits a baseline to the flow critic, and this agent has that critic: give another "
                "one, as in --agent=fql"
            )

    def apply(self, baseline: Config, reference: AgentConfig) -> tuple[Config, str]:
        """The baseline as large or as costly as the reference, and a line that says what was found.

        Raises:
            UserError: there is no such baseline; or its environment or data, which has the sizes, is missing.
        """
        sizes = _sizes(baseline.env_name, baseline.dataset, baseline.dataset_dir)
        # Variants that differ in traced settings alone, as alpha, are matched once.
        change, found = _matched(self, baseline.agent.compiled(), reference.compiled(), *sizes)
        critic = dataclasses.replace(baseline.agent.critic, **change)
        return dataclasses.replace(baseline, agent=dataclasses.replace(baseline.agent, critic=critic)), found


def network_flags(flags: Flags, baseline: Collection[str]) -> list[str]:
    """The flags that say how the baseline's critic is built, and not how floq's is, which has flags of the same names.
    Blocks are the baseline's if it is residual; the depth of plain ones is that of both."""
    names = ["use_resnets", "num_transformations", "activate_before_layernorm", "num_bins", "sigma", "reward_offset"]
    if flags.keeping({"agent.use_resnets"}, {}).take_switch("agent.use_resnets"):
        names += ["block_width", "block_depth"]
    return [flag for name in names if (flag := f"agent.{name}") in baseline]


@functools.lru_cache(maxsize=64)
def _matched(
    match: Match, baseline: AgentConfig, reference: AgentConfig, obs_size: int, act_size: int
) -> tuple[dict[str, Any], str]:
    """The setting of the baseline's critic that changes, and what is said about it."""
    from floq.analysis.matching import count, matched, scaled_setting

    what, by = match
    found = matched(baseline, reference, obs_size, act_size, what, by)
    here, there = (count(agent, obs_size, act_size, what) for agent in (found, reference))
    setting = scaled_setting(found, by)
    value = getattr(found.critic, setting)
    if what == "params":
        counts = f"{here:,} critic parameters, floq has {there:,}"
    else:
        counts = f"{here / 1e9:.4g} GFLOP per update, floq takes {there / 1e9:.4g}"
    return {setting: value}, f"--match={what}: {setting} {value}, {counts}"


@functools.lru_cache(maxsize=64)
def _sizes(env_name: str | None, dataset: str | None, dataset_dir: str) -> tuple[int, int]:
    """How many numbers an observation and an action have: of the environment, or of the data where there is none."""
    from floq import envs
    from floq.folders import looks_like_path

    if env_name is not None and dataset is None:
        envs.check_task(env_name)
    if env_name is None and dataset is not None and envs.is_ogbench(dataset) and not looks_like_path(dataset):
        env_name = dataset  # an OGBench dataset is that of an environment, and need not be there yet
    if env_name is not None:
        env = envs.make(env_name)
        found = envs.sizes(env)
        env.close()
        return found["observations"], found["actions"]
    from floq.data.open import open_dataset

    assert dataset is not None  # a configuration has one of the two
    data = open_dataset(dataset, dataset_dir).data
    return data.observations.shape[1], data.actions.shape[1]
