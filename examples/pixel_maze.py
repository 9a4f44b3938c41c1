"""Learn from images: a point in a maze, seen from above at 32 x 32 pixels.

    python examples/pixel_maze.py maze.npz
    PYTHONPATH=examples floq train --env_name=pixel_maze:PixelMaze-v0 --dataset=maze.npz --agent.encoder=impala_debug

The first command plays episodes to random places and writes them; the second learns from them to reach the green one.
"""

import sys
from typing import Any

import gymnasium
import numpy as np

RADIUS = 1.6 / 32  # of the point
GOAL, REACHED, SPEED = np.array([0.82, 0.18]), 0.1, 0.07
WALL, GAP = (0.47, 0.53), 0.7  # a wall from the floor to this height


def is_free(place: np.ndarray) -> bool:
    """Return whether the point may be there."""
    in_wall = WALL[0] < place[0] < WALL[1] and place[1] < GAP
    return bool((place > 0.03).all() and (place < 0.97).all()) and not in_wall


class PixelMaze(gymnasium.Env):
    """Two rooms with a gap between them. The action is a velocity; each step costs 1 until the goal is reached."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode=None, size=32):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._pixels = x, y = (np.stack(np.meshgrid(np.arange(size), np.arange(size))) + 0.5) / size
        self._empty = np.full((size, size, 3), 235.0)
        self._empty[(x > WALL[0]) & (x < WALL[1]) & (y < GAP)] = 90.0
        self._draw(self._empty, GOAL, (30, 160, 60), 2.5 / 32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform([0.08, 0.08], [0.4, 0.9])
        return self.render(), {}

    def step(self, action):
        for axis in range(2):  # it slides along walls
            after = self.place.copy()
            after[axis] += SPEED * action[axis]
            if is_free(after):
                self.place = after
        success = bool(np.linalg.norm(self.place - GOAL) < REACHED)
        return self.render(), float(success) - 1.0, success, False, {"success": success}

    def render(self):
        image = self._empty.copy()
        self._draw(image, self.place, (200, 30, 30), RADIUS)
        return image[::-1].astype(np.uint8)  # y points up

    def _draw(self, image, place, colour, radius):
        away = np.linalg.norm(self._pixels - place[:, None, None], axis=0) - radius
        cover = np.clip(0.5 - away * len(image), 0, 1)[..., None]
        image[:] = (1 - cover) * image + cover * np.array(colour)


gymnasium.register("PixelMaze-v0", entry_point="pixel_maze:PixelMaze", max_episode_steps=60)


def collect(path: str, episodes: int = 200, seed: int = 0) -> None:
    """Write episodes of 60 steps to random places, through the gap where that is the way, with noise."""
    env, random = PixelMaze(), np.random.default_rng(seed)
    rows = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for _ in range(episodes):
        obs, _ = env.reset(seed=int(random.integers(2**31)))
        aim = None
        for step in range(60):
            if aim is None or np.linalg.norm(env.place - aim) < 0.05:
                aim = random.uniform(0.08, 0.92, 2)
            crosses = (env.place[0] < 0.5) != (aim[0] < 0.5)
            towards = np.array([0.5, 0.84]) if crosses and abs(env.place[0] - 0.5) > 0.05 else aim
            if crosses and abs(env.place[0] - 0.5) <= 0.05:
                towards = np.array([0.62 if aim[0] > 0.5 else 0.38, 0.84])
            action = (towards - env.place) / SPEED
            action = np.clip(action / max(1.0, np.linalg.norm(action)) + random.normal(0, 0.3, 2), -1, 1)
            after, reward, success, _, _ = env.step(action)
            for name, value in zip(rows, (obs, action, reward, success, step == 59), strict=True):
                rows[name].append(value)
            obs = after
            if success:
                break
    arrays: dict[str, Any] = {name: np.array(values) for name, values in rows.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    collect(sys.argv[1])
