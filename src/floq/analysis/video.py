"""Films of episodes: a worker process repeats their recorded actions, renders frames and encodes them.

MuJoCo's renderer is fixed at import, so the environment variables of that process name it before anything is imported.
"""

import contextlib
import importlib
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from floq.envs.environments import EnvFactory, Seed
from floq.envs.ogbench import is_dataset, with_task
from floq.envs.workers import WorkerError, WorkerLate, Workers
from floq.utils.errors import UserError
from floq.utils.machine import HEADLESS, INSTALL_RENDERER, NO_RENDERER
from floq.utils.progress import Display

SIDE = 480  # width and height of a frame in pixels, where the environment allows a choice
FPS = 25  # frames per second
STILL_FRAMES = 25  # repetitions of an episode's last frame
CURSOR = (34, 34, 34)  # colour of the line that marks the time in a panel


class Panel(NamedTuple):
    """Picture beside the frames of an episode: pixels (height, width, 3), and the column of each time 0, 1, ..."""

    pixels: np.ndarray
    columns: np.ndarray


class Take(NamedTuple):
    """An episode to film: the seed of its reset, its actions (steps, size), and a panel or none."""

    seed: Seed
    actions: np.ndarray
    panel: Panel | None = None


class Recorder:
    """Environment that is filmed, in the worker process."""

    def __init__(self, make_env: EnvFactory):
        size = {"width": SIDE, "height": SIDE} if is_dataset(make_env.name) else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in the possible render_modes")  # OGBench's lists are empty
            self._env = make_env(render_mode="rgb_array", **size)

    def film(self, path: Path, task: str, takes: Sequence[Take], skip: int) -> None:
        """Write a film of episodes of a task, a frame every `skip` steps: a whole file or none."""
        from imageio_ffmpeg import write_frames

        partial, frames = path.with_name(f".{path.stem}.partial.mp4"), self.frames(task, takes, skip)
        first = next(frames)
        try:
            with contextlib.closing(write_frames(partial, first.shape[1::-1], fps=FPS, macro_block_size=2)) as writer:
                writer.send(None)
                for frame in itertools.chain([first], frames):
                    writer.send(np.ascontiguousarray(frame))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def frames(self, task: str, takes: Sequence[Take], skip: int) -> Iterator[np.ndarray]:
        """Yield the frames of a film."""
        self._env = with_task(self._env, task)
        for take in takes:
            self._env.reset_with(take.seed)
            yield (frame := beside(self._render(), take.panel, 0))
            for start in range(0, len(take.actions), skip):
                for action in (some := take.actions[start : start + skip]):
                    self._env.step(action)
                yield (frame := beside(self._render(), take.panel, start + len(some)))
            yield from itertools.repeat(frame, STILL_FRAMES)

    def try_out(self, seed: Seed) -> None:
        """Render a frame. Raises TypeError if the environment has none to show."""
        self._env.reset_with(seed)
        self._render()

    def _render(self) -> np.ndarray:
        with self._env.own_global_state():
            frame: Any = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise TypeError("the environment renders no pictures (render_mode rgb_array)")
        return enlarged(frame.astype(np.uint8, copy=False))


def enlarged(frame: np.ndarray) -> np.ndarray:
    """Return a frame with each pixel repeated as often as fits into `SIDE`: those that policies see are small."""
    factor = max(1, SIDE // max(frame.shape[:2]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def beside(frame: np.ndarray, panel: Panel | None, step: int) -> np.ndarray:
    """Return a frame with its panel at its right, in which a line marks the time."""
    if panel is None:
        return frame
    (height, width, _), (panel_height, panel_width, _) = frame.shape, panel.pixels.shape
    canvas = np.full((max(height, panel_height), width + panel_width, 3), 255, np.uint8)
    canvas[:height, :width], canvas[:panel_height, width:] = frame, panel.pixels
    canvas[:panel_height, width + panel.columns[step]] = CURSOR
    return canvas


@contextlib.contextmanager
def open_recorder(make_env: EnvFactory, seed: Seed, flag: str) -> Iterator[Workers]:
    """Start a worker process with a `Recorder` that works: with the renderer that the user's MUJOCO_GL names, if any;
    otherwise with the first of the platform's renderers that renders the first frame of the episode of `seed`. Raises
    UserError if none does, or the encoder is not installed; the `flag` is what the user may leave out."""
    try:
        importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(f'{flag} needs imageio-ffmpeg ({error}): pip install "floq[video]"') from error
    before = os.environ.get("MUJOCO_GL")
    named = (before or "").lower()
    reasons: dict[str, list[str]] = {}
    for renderer in HEADLESS if named in NO_RENDERER else (named,):
        os.environ["MUJOCO_GL"] = renderer  # a new process has the environment variables of this one
        try:
            workers = Workers(Recorder, [(make_env,)])
        finally:
            os.environ.pop("MUJOCO_GL")
            os.environ.update({} if before is None else {"MUJOCO_GL": before})
        with workers:
            try:
                workers.call_one(0, "try_out", (seed,))
            except WorkerError as error:
                reasons.setdefault(str(error).strip().splitlines()[-1], []).append(renderer)
                continue
            yield workers
            return
    failures = "; ".join(f"MUJOCO_GL={' and '.join(tried)}: {reason}" for reason, tried in reasons.items())
    raise UserError(
        f"cannot make pictures of {make_env.name} here ({failures}): fix that ({INSTALL_RENDERER}), or leave {flag} out"
    )


class Films:
    """Films that the worker of `open_recorder` makes one after another, beside what the caller does."""

    def __init__(self, workers: Workers, skip: int, display: Display):
        self._workers, self._skip, self._display = workers, skip, display
        self._queue: list[tuple[Path, str, Sequence[Take]]] = []
        self._begun: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, path: Path, task: str, takes: Sequence[Take]) -> None:
        """Queue a film."""
        self._queue.append((path, task, takes))

    def go_on(self, wait: float = 0.0) -> None:
        """Begin the next film if the last one is made, for which this waits up to `wait` seconds. One that cannot be
        made is a note."""
        while self._queue:
            if self._begun is None:
                self._begun = self._workers.begin_call("film", [(*self._queue[0], self._skip)])
            (answer,) = self._workers.answers(self._begun, wait)
            if isinstance(answer, WorkerLate):
                return
            (path, *_), self._begun = self._queue.pop(0), None
            if isinstance(answer, WorkerError):
                self._display.note(f"warning no {path}: {answer.line}")
