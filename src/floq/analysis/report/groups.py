"""Groups of runs, their names, and the settings in which they differ.

Runs of one run_group, critic and actor with the same settings are a group, for any seeds and tasks. A setting with one
value in each environment family belongs to the tasks, as published settings do, and splits no group.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from floq.runs.record import RunRecord

OF_THE_TASK = ("seed", "env_name", "dataset")
WITHOUT_EFFECT = ("save_dir", "dataset_dir", "dataset_mirror", "project_name", "restore_epoch")
WITHOUT_EFFECT += ("logger", "log_interval", "save_interval", "keep_checkpoints", "checkpoint_minutes")
WITHOUT_EFFECT += ("env_timeout", "video_episodes", "video_frame_skip")
"""Settings of paths and of logging, which are not compared."""
IDENTITY = ("run_group", "agent.critic", "agent.actor")
SHORT = {"critic_flow_steps": "K", "offline_steps": "offline", "online_steps": "online"}


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in seed and task. `settings`: those in which groups differ, as text; one that varies
    with the environment family lists each value. `against`: the one group that it is compared with, if an experiment
    says so."""

    name: str
    runs: tuple[RunRecord, ...]
    settings: dict[str, str] = field(default_factory=dict)
    against: str | None = None

    @property
    def tasks(self) -> list[str]:
        """Tasks of its runs, each once."""
        return list(dict.fromkeys(run.task for run in self.runs))


def group_runs(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Group these runs; the groups are in the order of their names."""
    settings = [_compared(run) for run in runs]
    names = list(dict.fromkeys(name for values in settings for name in values))
    for name in names:  # a setting that older runs lack has the value of all others, if these agree
        known = {values[name] for values in settings if name in values}
        for values in settings:
            values.setdefault(name, next(iter(known)) if len(known) == 1 else "-")

    def by_family(name: str, members: list[int]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for number in members:
            found[runs[number].family].add(settings[number][name])
        return found

    buckets: dict[tuple, list[int]] = defaultdict(list)
    for number, values in enumerate(settings):
        buckets[tuple(values.get(name, "-") for name in IDENTITY)].append(number)
    keyed: dict[tuple, list[int]] = defaultdict(list)
    for identity, members in buckets.items():
        splitting = [name for name in names if any(len(values) > 1 for values in by_family(name, members).values())]
        for number in members:
            keyed[identity, tuple((name, settings[number][name]) for name in splitting)].append(number)
    texts = [{name: _format_by_family(by_family(name, members)) for name in names} for members in keyed.values()]
    differing = [name for name in names if len({text[name] for text in texts}) > 1]
    groups = [
        RunGroup(name, tuple(runs[number] for number in members), {each: text[each] for each in differing})
        for name, members, text in zip(_names(list(keyed)), keyed.values(), texts, strict=True)
    ]
    return sorted(groups, key=lambda group: _natural(group.name))


def _compared(run: RunRecord) -> dict[str, str]:
    """Return the settings by which runs are compared, formatted. Restored weights are identified by the hash of their
    run's configuration, since each seed has its own folder."""
    values = {name: x for name, x in run.settings.items() if name not in (*OF_THE_TASK, *WITHOUT_EFFECT)}
    if origin := re.search(r"sd\d+_\d+_\d+_([0-9a-f]{8})", str(values.get("restore_path"))):
        values["restore_path"] = origin.group(1)
    return {name: _format(value) for name, value in values.items()}


def _format_by_family(by_family: dict[str, set[str]]) -> str:
    """Format a group's value of a setting, or each family's value if they differ."""
    values = {family: value for family, (value,) in by_family.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({family})" for family, value in sorted(values.items()))


def _names(keys: Sequence[tuple[tuple, tuple]]) -> list[str]:
    """Return a short name for each group: those of run_group, critic and actor that vary, then the settings that
    distinguish it from others of the same critic and actor."""
    identities = [identity for identity, _ in keys]
    run_groups, critics, actors = ({identity[part] for identity in identities} for part in range(3))
    names = []
    for identity, settings in keys:
        run_group, critic, actor = identity
        same_group = {other[1:] for other in identities if other[0] == run_group}
        parts = [run_group] if len(run_groups) > 1 else []
        if not parts or len(same_group) > 1:
            parts += [f"{critic} critic"] if len(critics) > 1 else []
            parts += [f"{actor} actor"] if len(actors) > 1 else []
        siblings = [dict(other) for other_identity, other in keys if other_identity == identity]
        pairs, is_usual = _naming_settings(dict(settings), siblings)
        labels = [_label(name, value) for name, value in pairs]
        if is_usual and labels:
            names.append(f"{', '.join(parts)} ({', '.join(labels)})" if parts else ", ".join(labels))
        else:
            names.append(", ".join([*parts, *labels]) or f"{critic} critic, {actor} actor")
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} ({number})" if name in twice else name for number, name in enumerate(names, 1)]


def _naming_settings(own: dict[str, str], siblings: list[dict[str, str]]) -> tuple[list[tuple[str, str]], bool]:
    """Return the settings that name a group among those of the same critic and actor, and whether it is the usual
    group. The usual group has the most common value of each setting, and names all; others name only their
    differences from it."""
    kept = list(own)  # few settings that distinguish all siblings: those that are redundant go, the longest first
    for name in sorted(own, key=lambda name: (-max(len(values[name]) for values in siblings), -len(name))):
        fewer = [other for other in kept if other != name]
        if len({tuple(values[other] for other in fewer) for values in siblings}) == len(siblings):
            kept = fewer
    ranked = {name: Counter(values[name] for values in siblings).most_common(2) for name in kept}
    usual = {name: first for name, ((first, most), (_, next_most)) in ranked.items() if most > next_most}
    unusual = [name for name in kept if own[name] != usual.get(name)]
    has_usual = len(kept) > 1 and len(usual) == len(kept)
    return [(name, own[name]) for name in (unusual if has_usual and unusual else kept)], has_usual and not unusual


def _label(name: str, value: str) -> str:
    short = name.removeprefix("agent.")
    return {"yes": short, "no": f"no {short}"}.get(value, f"{SHORT.get(short, short)}={value}")


def _format(value: Any) -> str:
    """Format a setting's value in short: four layers of 512 are 512x4, 2000000 is 2M."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        same = len(set(map(str, value))) == 1 and len(value) > 1
        return f"{value[0]}x{len(value)}" if same else "(" + ",".join(map(str, value)) + ")"
    if isinstance(value, int) and value >= 1000:
        return short_count(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def short_count(number: int) -> str:
    """Abbreviate a number where that is exact: `1500` -> `1.5k`, `2000000` -> `2M`."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size and number * 100 % size == 0:
            return f"{number / size:g}{unit}"
    return str(number)


def _natural(text: str) -> list:
    """Return a sort key by which K=4 comes before K=16."""
    return [
        (0, float(part), "") if re.fullmatch(r"\d+(\.\d+)?", part) else (1, 0.0, part)
        for part in re.split(r"(\d+(?:\.\d+)?)", text)
    ]
