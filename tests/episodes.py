"""Episodes for the tests of readers: made up, written in every format, and read back by a walk in plain Python."""

from pathlib import Path

import h5py
import numpy as np
from hypothesis import strategies as st

from floq.data.arrays import Trajectories

STRUCTURES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6)
"""Of each episode the number of transitions, and whether it terminates."""


def make_episodes(structure):
    """Episodes whose every number is unique, with T + 1 observations each."""
    episodes, count = [], 0
    for length, terminates in structure:
        states = np.arange(count, count + length + 1, dtype=np.float32)
        count += length + 1
        episodes.append(
            {
                "observations": np.stack([states, -states], axis=1),
                "actions": np.cos(states[:length])[:, None],
                "rewards": states[:length] / 7,
                "terminations": np.arange(length) == (length - 1 if terminates else length),
            }
        )
    return episodes


def expected(episodes, keeps_last=True):
    """(obs, action, reward, mask, next obs) of each transition, by a walk in plain Python. Where the last state is not
    known, the last transition is there only if it terminates, and its next observation does not matter."""
    found = []
    for e in episodes:
        for t, act in enumerate(e["actions"]):
            last, terminated = t + 1 == len(e["actions"]), bool(e["terminations"][t])
            if keeps_last or not last or terminated:
                known = keeps_last or not last
                next_obs = e["observations"][t + 1][0] if known else None
                found.append((e["observations"][t][0], act[0], e["rewards"][t], 1.0 - terminated, next_obs))
    return found


def transitions(data: Trajectories):
    rows = np.flatnonzero(~data.ends)
    assert data.ends[-1]
    return [
        (data.observations[r][0], data.actions[r][0], data.rewards[r], data.masks[r], data.observations[r + 1][0])
        for r in rows
    ]


def same(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours[:4] == theirs[:4]
        assert theirs[4] is None or ours[4] == theirs[4]


def flat(episodes, *, with_next):
    """One row per transition, as D4RL has it."""
    joined = {key: np.concatenate([e[key] for e in episodes]) for key in ("actions", "rewards")}
    joined["observations"] = np.concatenate([e["observations"][:-1] for e in episodes])
    joined["terminals"] = np.concatenate([e["terminations"] for e in episodes])
    last = np.concatenate([np.arange(len(e["actions"])) + 1 == len(e["actions"]) for e in episodes])
    joined["timeouts"] = last & ~joined["terminals"]
    if with_next:
        joined["next_observations"] = np.concatenate([e["observations"][1:] for e in episodes])
    return joined


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for key, x in arrays.items():
            file[key] = x
    return path


def write_folder(folder: Path, episodes):
    folder.mkdir()
    for number, episode in enumerate(episodes):
        np.savez(folder / f"{number:03d}.npz", **episode)
    return folder


def write_minari(name, episodes, *, observations=lambda x: x, limit=1.0):
    """A Minari dataset in the local store; `observations` changes them, actions are scaled by `limit`."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            observations=observations(e["observations"]),
            actions=e["actions"] * limit,
            rewards=e["rewards"].tolist(),
            terminations=e["terminations"].tolist(),
            truncations=(np.arange(len(e["actions"])) + 1 == len(e["actions"])).tolist(),
        )
        for e in episodes
    ]
    box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    example = observations(episodes[0]["observations"])
    space = (
        gymnasium.spaces.Dict({key: box for key in example})
        if isinstance(example, dict)
        else gymnasium.spaces.Box(-np.inf, np.inf, example.shape[1:], np.float32)
    )
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=gymnasium.spaces.Box(-limit, limit, (1,), np.float32)
    )
    return name
