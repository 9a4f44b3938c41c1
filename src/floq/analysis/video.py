"""Videos of episodes: a separate process repeats the recorded actions and renders them. No JAX in here.

Elsewhere MuJoCo is imported without a renderer (see `floq.envs.environments`), and its renderer is fixed at import. So
the recorder is a worker process, whose environment variables name the renderer before anything is imported."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.analysis.figures.episodes import Played
from floq.analysis.figures.film import Show, film, scene
from floq.envs.environments import Seed, is_ogbench, make
from floq.envs.workers import WorkerError, Workers
from floq.utils.errors import UserError
from floq.utils.machine import NO_RENDERER

RENDERERS = {"darwin": ("cgl",), "win32": ("glfw",)}
DEFAULT_RENDERERS = ("egl", "osmesa")  # both work without a display
SIDE = 480  # width and height of a frame in pixels, where the environment allows a choice


class VideoRecorder:
    """Environment that renders frames, and the video file that they go to. Runs in the worker process."""

    def __init__(self, env_name: str, success_timing: str | None):
        size = {"width": SIDE, "height": SIDE} if is_ogbench(env_name) else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in the possible render_modes")  # OGBench's lists are empty
            self._env = make(env_name, success_timing, render_mode="rgb_array", **size)
        self._film, self._scene = contextlib.ExitStack(), contextlib.ExitStack()
        self._add: Callable[[np.ndarray], None] | None = None
        self._show: Show | None = None

    def probe(self, seed: Seed) -> None:
        """Render one frame, to check that rendering works."""
        self._env.reset_with(seed)
        self._frame()

    def open(self, path: Path) -> None:
        """Begin a video file."""
        self._add = self._film.enter_context(film(path))

    def begin(self, episode: Played, seed: Seed, title: str) -> None:
        """End the episode before, if any, and begin the next one."""
        assert self._add is not None
        self._scene.close()
        self._env.reset_with(seed)
        first = self._frame()
        self._show = self._scene.enter_context(scene(self._add, first, episode, title))
        self._show(first, 0)

    def advance(self, actions: np.ndarray, step: int) -> None:
        """Take some steps, up to step number `step` of the episode, and add a frame of the state after them."""
        assert self._show is not None
        for action in actions:
            self._env.step(action)
        self._show(self._frame(), step)

    def close(self) -> None:
        """End the video; the file is complete."""
        self._scene.close()
        self._film.close()

    def _frame(self) -> np.ndarray:
        with self._env.own_global_state():
            frame: Any = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise TypeError("the environment renders no pictures (render_mode rgb_array)")
        return frame.astype(np.uint8, copy=False)


@contextlib.contextmanager
def video_recorder(env_name: str, success_timing: str | None, seed: Seed) -> Iterator[Workers]:
    """Start a worker process with a working `VideoRecorder`: with the renderer that the user's MUJOCO_GL names, if any;
    otherwise with the first of the platform's renderers that can render a frame.

    Raises:
        UserError: no renderer works here.
    """
    named = os.environ.get("MUJOCO_GL", "").lower()
    candidates = (named,) if named not in NO_RENDERER else RENDERERS.get(sys.platform, DEFAULT_RENDERERS)
    reasons: dict[str, list[str]] = {}
    for renderer in candidates:
        with _environ("MUJOCO_GL", renderer):
            workers = Workers(VideoRecorder, [(env_name, success_timing)])
        with workers:
            try:
                workers.call_one(0, "probe", (seed,))
            except WorkerError as error:
                reasons.setdefault(str(error).strip().splitlines()[-1], []).append(renderer)
                continue
            yield workers
            return
    failures = "; ".join(f"MUJOCO_GL={' and '.join(tried)}: {reason}" for reason, tried in reasons.items())
    raise UserError(
        f"cannot make pictures of {env_name} here ({failures}): fix that (on Debian apt-get install libegl1 "
        "libgl1-mesa-dri, or libosmesa6, brings a software renderer), or leave --video out"
    )


def film_episodes(
    path: Path,
    workers: Workers,
    episodes: Sequence[tuple[Played, Seed]],
    title: str,
    skip: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Record a video of episodes. The file is either complete or does not exist. Returns the outcomes, in words.

    Args:
        path: the video file.
        workers: from `video_recorder`.
        episodes: recorded episodes, each with the seed of its reset.
        title: of the video.
        skip: steps from one frame to the next.
        on_progress: called with the number of steps taken.
    """
    done, partial = 0, path.with_name(f".{path.stem}.partial.mp4")
    try:
        workers.call_one(0, "open", (partial,))
        for episode, seed in episodes:
            workers.call_one(0, "begin", (episode, seed, f"{title}, episode {episode.number}: {episode.outcome}"))
            for start in range(0, len(episode.actions), skip):
                actions = episode.actions[start : start + skip]
                workers.call_one(0, "advance", (actions, start + len(actions)))
                done += len(actions)
                on_progress(done)
        workers.call_one(0, "close", ())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return "; ".join(f"episode {episode.number}: {episode.outcome}" for episode, _ in episodes)


@contextlib.contextmanager
def _environ(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for processes that are started within the context."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
