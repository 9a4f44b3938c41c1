"""Experts for OGBench's mazes: its oracle gives the next subgoal, and a point or an ant moves there. No JAX in here."""

from typing import Any

import numpy as np

from floq.data.collection.experts.episode import Rows, as_episode
from floq.data.collection.experts.walker import Walker
from floq.envs import environments


class MazeExpert:
    """Expert that follows the shortest path through a maze with noisy actions.

    Args:
        name: the dataset, such as `pointmaze-medium-navigate-v0`.
        rows: the length of an episode.
        seed: with an episode's number, determines it.
        action_noise: standard deviation of the noise on each component of an action.
        goal_cells: distance in cells of the only goal from the start (stitch); None: a new random goal whenever one is
            reached (navigate).
        walker: makes an ant walk in a direction, which is the action of a point: the name or file of a `Walker`.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        seed: int,
        *,
        action_noise: float,
        goal_cells: int | None,
        walker: str | None = None,
    ):
        self._rows, self._seed, self._noise, self._goal_cells = rows, seed, action_noise, goal_cells
        self._walker = None if walker is None else Walker.load(walker)
        self._env = environments.make(name, terminate_at_goal=False, max_episode_steps=rows)
        self._maze: Any = self._env.unwrapped
        self._free = [(int(i), int(j)) for i, j in np.argwhere(self._maze.maze_map == 0)]
        self._goals = [cell for cell in self._free if not self._is_hallway(cell)]
        self._subgoals: dict[tuple[Any, Any], np.ndarray] = {}
        self.goals_reached = 0  # in the last episode

    def episode(self, number: int) -> Rows:
        """Collect all rows of episode `number`, the last one marked terminal."""
        random = np.random.default_rng([self._seed, number])
        start, goal = self._draw(random, self._free), self._draw(random, self._goals)
        if self._goal_cells is not None:
            goal = self._draw(random, self._cells_at(start, self._goal_cells) or [start])
        self._env.reset_with((self._seed, number))
        obs, _ = self._env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})

        rows: list[dict[str, Any]] = []
        self.goals_reached, was_there = 0, False
        for _ in range(self._rows):
            direction = self._subgoal() - self._maze.get_xy()
            action = self._action_towards(direction / (np.linalg.norm(direction) + 1e-6), obs)
            action = np.clip(action + random.normal(0.0, self._noise, action.shape), -1.0, 1.0)
            next_obs, _, _, _, info = self._env.step(action)
            is_there = bool(info["success"])
            self.goals_reached += is_there and not was_there
            was_there = is_there
            if is_there and self._goal_cells is None:
                self._maze.set_goal(goal_xy=self._noisy_xy(random, self._draw(random, self._goals)))
            rows.append({"observations": obs, "actions": action, "qpos": info["prev_qpos"], "qvel": info["prev_qvel"]})
            obs = next_obs
        return as_episode(rows)

    def _action_towards(self, direction: np.ndarray, obs: np.ndarray) -> np.ndarray:
        """Return the action that moves in a direction of length 1 in the plane."""
        if self._walker is None:
            return direction
        return self._walker.act(np.concatenate([obs[2:], direction]))  # without its position

    def _subgoal(self) -> np.ndarray:
        """Return the centre of the next cell on the way to the goal. OGBench searches the maze at each step; the result
        depends on two cells only, so it is cached."""
        here, goal = self._maze.get_xy(), self._maze.cur_goal_xy
        cells = self._maze.xy_to_ij(here), self._maze.xy_to_ij(goal)
        if cells not in self._subgoals:
            self._subgoals[cells] = self._maze.get_oracle_subgoal(here, goal)[0]
        return self._subgoals[cells]

    def _is_hallway(self, cell: tuple[int, int]) -> bool:
        """Return whether a cell has walls on two opposite sides and none on the others: never a goal of a navigate
        episode."""
        i, j = cell
        wall = self._maze.maze_map == 1
        up, down, left, right = wall[i - 1, j], wall[i + 1, j], wall[i, j - 1], wall[i, j + 1]
        return bool((left and right and not up and not down) or (up and down and not left and not right))

    def _cells_at(self, start: tuple[int, int], distance: int) -> list[tuple[int, int]]:
        """List the free cells whose shortest path from `start` has `distance` steps."""
        _, steps = self._maze.get_oracle_subgoal(self._maze.ij_to_xy(start), self._maze.ij_to_xy(start))
        return [cell for cell in self._free if steps[cell] == distance]

    def _noisy_xy(self, random: np.random.Generator, cell: tuple[int, int]) -> np.ndarray:
        quarter = self._maze._maze_unit / 4  # the spread of OGBench's own goal noise
        return np.array(self._maze.ij_to_xy(cell)) + random.uniform(-quarter, quarter, 2)

    @staticmethod
    def _draw(random: np.random.Generator, cells: list[tuple[int, int]]) -> tuple[int, int]:
        return cells[random.integers(len(cells))]
