"""Which runs belong together, what their groups are called, and in what these differ.

Runs of one run_group, critic and actor with the same settings are a group, whatever their seeds and tasks. A setting
that has one value in each environment family belongs to the tasks, as published settings do, and divides no group.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from floq.analysis.report.runs import RunRecord

OF_THE_TASK = ("seed", "env_name", "dataset")
WITHOUT_EFFECT = ("save_dir", "dataset_dir", "dataset_mirror", "project_name", "restore_epoch")
WITHOUT_EFFECT += ("logger", "log_interval", "save_interval", "video_episodes", "video_frame_skip")
"""Where things lie and how often they are written: no part of what is compared."""
IDENTITY = ("run_group", "agent.critic", "agent.actor")
SHORT = {"critic_flow_steps": "K", "offline_steps": "offline", "online_steps": "online"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed and task alone. `settings`: those in which groups differ, written out; one that varies
    from task to task says so."""

    name: str
    runs: tuple[RunRecord, ...]
    settings: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(run.task for run in self.runs))


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """The groups of these runs, in the order of their names."""
    settings = [_compared(run) for run in runs]
    names = list(dict.fromkeys(name for values in settings for name in values))
    for name in names:  # what older runs do not say yet is what all others say
        known = {json.dumps(values[name]) for values in settings if name in values}
        for values in settings:
            if len(known) == 1:
                values.setdefault(name, json.loads(next(iter(known))))
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for number, values in enumerate(settings):
        buckets[tuple(str(values.get(name)) for name in IDENTITY)].append(number)
    keyed: dict[tuple, list[int]] = defaultdict(list)
    for identity, members in buckets.items():
        dividing = [name for name in names if _varies_in_a_family(name, members, runs, settings)]
        for number in members:
            keyed[identity, tuple((name, _shown(settings[number].get(name))) for name in dividing)].append(number)
    members = list(keyed.values())
    written = [{name: _over(name, group, runs, settings) for name in names} for group in members]
    differing = [name for name in names if len({values[name] for values in written}) > 1]
    called = _names(list(keyed))
    found = [
        Group(
            called[number], tuple(runs[n] for n in members[number]), {name: written[number][name] for name in differing}
        )
        for number in range(len(members))
    ]
    return sorted(found, key=lambda group: _natural(group.name))


def _compared(run: RunRecord) -> dict[str, Any]:
    """The settings by which runs are compared. Weights that were taken over count by the configuration of their run:
    each seed has its own folder."""
    values = {name: x for name, x in run.settings.items() if name not in (*OF_THE_TASK, *WITHOUT_EFFECT)}
    if values.get("restore_path"):
        origin = re.search(r"sd\d+_\d+_\d+_([0-9a-f]{8})", str(values["restore_path"]))
        values["restore_path"] = origin.group(1) if origin else values["restore_path"]
    return values


def _varies_in_a_family(name: str, members: list[int], runs: Sequence[RunRecord], settings: list[dict]) -> bool:
    if name in IDENTITY:
        return False
    by_family: dict[str, set[str]] = defaultdict(set)
    for number in members:
        by_family[runs[number].family].add(_shown(settings[number].get(name)))
    return any(len(values) > 1 for values in by_family.values())


def _over(name: str, group: list[int], runs: Sequence[RunRecord], settings: list[dict]) -> str:
    """What a group says of a setting: its value, or each family's."""
    by_family = {runs[number].family: _shown(settings[number].get(name)) for number in group}
    if len(set(by_family.values())) == 1:
        return next(iter(by_family.values()))
    return ", ".join(f"{value} ({family})" for family, value in sorted(by_family.items()))


def _names(keys: Sequence[tuple[tuple, tuple]]) -> list[str]:
    """A short name for each of the groups: of run_group, critic and actor those that vary, then the settings that are
    needed to tell it from others of the same critic and actor."""
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
        what, is_usual = _told_by(dict(settings), siblings)
        told = [_named(name, value) for name, value in what]
        if is_usual and told:
            names.append(f"{', '.join(parts)} ({', '.join(told)})" if parts else ", ".join(told))
        else:
            names.append(", ".join([*parts, *told]) or f"{critic} critic, {actor} actor")
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} ({number})" if name in twice else name for number, name in enumerate(names, 1)]


def _told_by(own: dict[str, str], siblings: list[dict[str, str]]) -> tuple[list[tuple[str, str]], bool]:
    """The settings that name a group among those of the same critic and actor, and whether it is the usual one. That
    has the value that most have in each setting, and names them all; others name what they have instead."""
    telling = _telling(own, siblings)  # each of them has several values
    counts = {name: Counter(values[name] for values in siblings) for name in telling}
    ranked = {name: count.most_common(2) for name, count in counts.items()}
    usual = {name: first for name, ((first, most), (_, next_most)) in ranked.items() if most > next_most}
    if len(telling) < 2 or len(usual) < len(telling):  # there is nothing usual
        return [(name, own[name]) for name in telling], False
    unusual = [(name, own[name]) for name in telling if own[name] != usual[name]]
    return (unusual, False) if unusual else ([(name, own[name]) for name in telling], True)


def _telling(own: dict[str, str], siblings: list[dict[str, str]]) -> list[str]:
    """The fewest settings that are found to tell every sibling from the others: one is left out if it tells nothing
    that those kept do not, the longest values first."""
    kept = list(own)
    for name in sorted(own, key=lambda name: (-max(len(values[name]) for values in siblings), -len(name))):
        fewer = [other for other in kept if other != name]
        if len({tuple(values[other] for other in fewer) for values in siblings}) == len(siblings):
            kept = fewer
    return kept


def _named(name: str, value: str) -> str:
    short = name.removeprefix("agent.")
    if value in ("yes", "no"):
        return short if value == "yes" else f"no {short}"
    return f"{SHORT.get(short, short)}={value}"


def _shown(value: Any) -> str:
    """A setting's value, shortly: four layers of 512 are 512x4, 2000000 is 2M."""
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
    """`1500` -> `1.5k`, `2000000` -> `2M`, where that says all; else the number."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size and number * 100 % size == 0:
            return f"{number / size:g}{unit}"
    return str(number)


def _natural(text: str) -> list:
    """So that K=4 comes before K=16."""
    return [
        (0, float(part), "") if re.fullmatch(r"\d+(\.\d+)?", part) else (1, 0.0, part)
        for part in re.split(r"(\d+(?:\.\d+)?)", text)
    ]
