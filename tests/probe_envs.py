"""Environments for the tests of the online phase; worker processes find them by ids such as `probe_envs:Choice-v0`."""

import os
import random
import time

import gymnasium
import numpy as np


class Probe(gymnasium.Env):
    """States are one number, actions as well."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.shown(), {}

    def shown(self):
        return np.array([self.state], np.float32)


class Loop(Probe):
    """One state, reward 1 forever."""

    def step(self, action):
        return self.shown(), 1.0, False, False, {}


class Choice(Probe):
    """In state 0 the reward is the action, which leads to state 1; there it is minus the action, and the end."""

    def step(self, action):
        first, self.state = self.state == 0, 1
        return self.shown(), float(action[0] if first else -action[0]), not first, False, {"success": False}


class Fragile(Probe):
    """Fails in the fifth step of its life, in its own way; with `once` only the first that gets there, which makes the
    file that PROBE_LICENCE names. `vanishes` is death too, and then none can be made any more: that file is gone."""

    def __init__(self, how="raises", once=False):
        self.how, self.once, self.elapsed = how, once, 0
        if how == "vanishes" and not os.path.exists(os.environ["PROBE_LICENCE"]):
            raise RuntimeError("no licence left")

    def step(self, action):
        self.elapsed += 1
        if self.elapsed == 5 and not (self.once and self.has_failed()):
            if self.how == "raises":
                raise RuntimeError("a joint broke")
            if self.how == "vanishes":
                os.remove(os.environ["PROBE_LICENCE"])
            if self.how in ("dies", "vanishes"):
                os._exit(3)
            if self.how == "hangs":
                time.sleep(600)
            if self.how == "nan":
                return self.shown(), float("nan"), False, False, {}
        return self.shown(), 1.0, False, False, {}

    def has_failed(self):
        try:
            os.close(os.open(os.environ["PROBE_LICENCE"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return True
        return False


class Unseeded(Probe):
    """Its rewards follow no seed."""

    def step(self, action):
        return self.shown(), random.random(), False, False, {}


for name, kind in (("Loop", Loop), ("Choice", Choice), ("Unseeded", Unseeded)):
    gymnasium.register(f"{name}-v0", entry_point=kind, max_episode_steps=30)
for how in ("raises", "dies", "hangs", "vanishes", "nan", "not"):
    gymnasium.register(f"Fragile-{how}-v0", entry_point=Fragile, kwargs={"how": how}, max_episode_steps=2)
for how in ("raises", "dies"):
    own = {"how": how, "once": True}
    gymnasium.register(f"Fragile-{how}-once-v0", entry_point=Fragile, kwargs=own, max_episode_steps=2)


class Painted(Probe):
    """Can be looked at: as bright as the number of steps taken. Succeeds in the sixth."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def step(self, action):
        self.state += 1
        return self.shown(), -1.0, self.state == 6, False, {"success": self.state == 6}

    def render(self):
        return np.full((32, 48, 3), 40 * self.state, np.uint8)


class Unseen(Painted):
    """Has nothing to show."""

    def render(self):
        return None


for name, kind in (("Painted", Painted), ("Unseen", Unseen)):
    gymnasium.register(f"{name}-v0", entry_point=kind, max_episode_steps=30)


class Camera(gymnasium.Env):
    """A bright column at the place, 0 to 7, that the action moves, seen twice, beside its velocity; 6 steps long."""

    observation_space = gymnasium.spaces.Dict(
        {
            "wrist": gymnasium.spaces.Box(0, 255, (8, 8, 1), np.uint8),
            "above": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "joints": gymnasium.spaces.Dict({"velocity": gymnasium.spaces.Box(-9.0, 9.0, (2,))}),
        }
    )
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, fault=None):
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.velocity = float(self.np_random.integers(8)), np.zeros(2, np.float32)
        return self.shown(), {}

    def step(self, action):
        self.velocity = np.asarray(action, np.float32)
        self.place = float(np.clip(self.place + action[0], 0, 7))
        success = self.place >= 6.5
        return self.shown(), float(success) - 1.0, success, False, {"success": success}

    def shown(self):
        above = np.zeros((8, 8, 3), np.uint8)
        above[:, int(self.place)] = (250, 100, 0)
        found = {"above": above, "wrist": above[..., :1].copy(), "joints": {"velocity": self.velocity}}
        if self.fault == "size":
            found["above"] = above[:4]
        if self.fault == "type":
            found["wrist"] = found["wrist"] / 255
        if self.fault == "part":
            del found["joints"]
        return found


def watched(episodes=12, seed=0):
    """Episodes of random play in Camera, as `Dataset.from_episodes` takes them."""
    env, rng = Camera(), np.random.default_rng(seed)
    for number in range(episodes):
        seen, acts, rewards, done = [env.reset(seed=number)[0]], [], [], False
        while not done and len(acts) < 6:
            acts.append(rng.uniform(-1, 1, 2).astype(np.float32))
            obs, reward, done, _, _ = env.step(acts[-1])
            seen.append(obs)
            rewards.append(reward)
        parts = {name: np.array([one[name] for one in seen]) for name in ("wrist", "above")}
        parts["joints/velocity"] = np.array([one["joints"]["velocity"] for one in seen])
        yield {
            "observations": parts,
            "actions": np.array(acts),
            "rewards": np.array(rewards),
            "terminations": np.arange(len(acts)) == (len(acts) - 1 if done else -1),
        }


gymnasium.register("Camera-v0", entry_point=Camera, max_episode_steps=6)
