"""Videos of episodes: the recorded actions are repeated, and each frame is drawn beside the critic's value.

MuJoCo's renderer is fixed at import, so frames are rendered in a worker process, whose environment variables name the
renderer before anything is imported."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from floq.analysis.figures.episodes import GREEN, Played, draw_reward, draw_value
from floq.analysis.figures.style import BLUE, FAINT, INK, RC, TITLE
from floq.envs.environments import EnvFactory, Seed
from floq.envs.ogbench import is_dataset
from floq.envs.workers import WorkerError, Workers
from floq.utils.errors import UserError
from floq.utils.machine import NO_RENDERER

RENDERERS = {"darwin": ("cgl",), "win32": ("glfw",)}.get(sys.platform, ("egl", "osmesa"))  # these need no display
SIDE = 480  # width and height of a frame in pixels, where the environment allows a choice
FPS = 25  # frames per second
STILL_FRAMES = 25  # repetitions of an episode's last frame
SIZE, DPI = (11.2, 4.8), 100  # inches, and dots per inch; the codec needs even numbers of dots


class Renderer:
    """Environment that renders frames, in the worker process."""

    def __init__(self, make_env: EnvFactory):
        size = {"width": SIDE, "height": SIDE} if is_dataset(make_env.name) else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in the possible render_modes")  # OGBench's lists are empty
            self._env = make_env(render_mode="rgb_array", **size)

    def reset(self, seed: Seed) -> np.ndarray:
        """Begin an episode and return its first frame."""
        self._env.reset_with(seed)
        return self.advance(())

    def advance(self, actions: Iterable[np.ndarray]) -> np.ndarray:
        """Take these actions and return a frame of the state after them."""
        for action in actions:
            self._env.step(action)
        with self._env.own_global_state():
            frame: Any = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise TypeError("the environment renders no pictures (render_mode rgb_array)")
        return frame.astype(np.uint8, copy=False)


@contextlib.contextmanager
def open_renderer(make_env: EnvFactory, seed: Seed) -> Iterator[Workers]:
    """Start a worker process with a working `Renderer`: with the renderer that the user's MUJOCO_GL names, if any;
    otherwise with the first of the platform's renderers that can render a frame. Raises UserError if none can, or the
    library that encodes videos is not installed."""
    encoder()
    before = os.environ.get("MUJOCO_GL")
    named = (before or "").lower()
    reasons: dict[str, list[str]] = {}
    for renderer in RENDERERS if named in NO_RENDERER else (named,):
        os.environ["MUJOCO_GL"] = renderer  # a new process has the environment variables of this one
        try:
            workers = Workers(Renderer, [(make_env,)])
        finally:
            os.environ.pop("MUJOCO_GL")
            os.environ.update({} if before is None else {"MUJOCO_GL": before})
        with workers:
            try:
                workers.call_one(0, "reset", (seed,))
            except WorkerError as error:
                reasons.setdefault(str(error).strip().splitlines()[-1], []).append(renderer)
                continue
            yield workers
            return
    failures = "; ".join(f"MUJOCO_GL={' and '.join(tried)}: {reason}" for reason, tried in reasons.items())
    raise UserError(
        f"cannot make pictures of {make_env.name} here ({failures}): fix that (on Debian apt-get install libegl1 "
        "libgl1-mesa-dri, or libosmesa6, brings a software renderer), or leave --video out"
    )


def encoder() -> str:
    """Return the program that encodes videos. Raises UserError if it is not installed."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(f'--video needs imageio-ffmpeg ({error}): pip install "floq[video]"') from error


def film_episodes(
    path: Path, workers: Workers, episodes: Sequence[Played], title: str, skip: int, on_progress: Callable[[int], None]
) -> None:
    """Record a video of episodes with the workers of `open_renderer`, a frame every `skip` steps. The file is either
    complete or does not exist. `on_progress` gets the number of steps taken."""
    done, partial = 0, path.with_name(f".{path.stem}.partial.mp4")
    try:
        with matplotlib.rc_context(RC | {"animation.ffmpeg_path": encoder()}):
            fig = Figure(SIZE)
            writer = FFMpegWriter(FPS, codec="libx264", extra_args=["-crf", "18", "-pix_fmt", "yuv420p"])
            with writer.saving(fig, str(partial), DPI):
                for episode in episodes:
                    frame = workers.call_one(0, "reset", (episode.seed,))
                    show = _draw_scene(fig, frame, episode, f"{title}, episode {episode.number}: {episode.outcome}")
                    writer.grab_frame()
                    for start in range(0, len(episode.actions), skip):
                        actions = episode.actions[start : start + skip]
                        show(workers.call_one(0, "advance", (actions,)), start + len(actions))
                        writer.grab_frame()
                        done += len(actions)
                        on_progress(done)
                    for _ in range(STILL_FRAMES):
                        writer.grab_frame()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _draw_scene(fig: Figure, first: np.ndarray, episode: Played, title: str) -> Callable[[np.ndarray, int], None]:
    """Draw an episode's first frame, and its values and rewards beside it. Returns a function that shows a frame of the
    environment, after a number of steps, instead."""
    fig.clear()
    fig.suptitle(title, **TITLE)
    film, value, reward = fig.subplot_mosaic("fv;fr", width_ratios=(1, 1.35), height_ratios=(2.4, 1)).values()
    image = film.imshow(first)
    film.set_axis_off()
    look = {"transform": film.transAxes, "fill": False, "clip_on": False, "edgecolor": GREEN, "linewidth": 5}
    border = film.add_patch(Rectangle((0, 0), 1, 1, **look))
    draw_value(value, episode, faint=True)
    draw_reward(reward, episode)
    value.set(ylabel="return from here on", xlim=(0, max(len(episode.rewards), 2)))
    value.tick_params(labelbottom=False)
    reward.set_xlim(value.get_xlim())
    (line,) = value.plot([], [], color=BLUE, linewidth=2.2)
    (dot,) = value.plot([], [], "o", color=BLUE, markersize=7)
    now = reward.axvline(0, color=FAINT, linewidth=1)
    value.legend([line, value.lines[0]], ["Q of what the policy does", "what the episode then earns"], fontsize=8)
    caption = value.set_title(" ", fontsize=11)

    def show(frame: np.ndarray, step: int) -> None:
        decisions = max(int(np.searchsorted(episode.decided, step, side="right")), 1)
        times, values = episode.decided[:decisions], episode.values[:decisions]
        image.set_data(frame)
        line.set_data(times, values)
        dot.set_data(times[-1:], values[-1:])
        now.set_xdata([step, step])
        success = episode.succeeded is not None and step >= episode.succeeded
        caption.set(text=f"step {step}: " + ("success" if success else f"Q = {values[-1]:.1f}"))
        caption.set_color(GREEN if success else INK)
        border.set_visible(success)

    show(first, 0)
    fig.set_layout_engine("constrained")
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    return show
