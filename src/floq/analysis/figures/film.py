"""Videos of episodes: frames of the environment beside the critic's value, step by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from floq.analysis.figures.episodes import GREEN, Played, draw_reward, draw_value
from floq.analysis.figures.style import BLUE, FAINT, INK, canvas, make_drawable
from floq.utils.errors import UserError

FPS = 25  # frames per second
STILL_FRAMES = 25  # repetitions of an episode's last frame
WIDTH, HEIGHT, DPI = 11.2, 4.8, 100  # inches, and dots per inch; the codec needs even numbers of dots

Show = Callable[[np.ndarray, int], None]
"""Adds a frame of the video: takes the environment's frame, and the number of steps before it in the episode."""


def check_writer() -> Any:
    """Return the library that writes videos. Raises UserError if it is not installed or has no encoder."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
        return imageio_ffmpeg
    except (ImportError, RuntimeError) as error:
        raise UserError(f'--video needs imageio-ffmpeg ({error}): pip install "floq[video]"') from error


@contextmanager
def film(path: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """Open an mp4 file, complete at the end. Yields a function that adds a frame of `WIDTH` x `HEIGHT` at `DPI`."""
    size = round(WIDTH * DPI), round(HEIGHT * DPI)
    writer = check_writer().write_frames(str(path), size, fps=FPS, codec="libx264", quality=8, macro_block_size=2)
    writer.send(None)
    try:
        yield lambda picture: writer.send(np.ascontiguousarray(picture))
    finally:
        writer.close()


@contextmanager
def scene(add: Callable[[np.ndarray], None], first: np.ndarray, episode: Played, title: str) -> Iterator[Show]:
    """Add one episode to a video. Yields a function that adds its frames; at the end the last frame is repeated.

    Args:
        add: adds a frame to the video.
        first: a frame of the environment; the others have its shape.
        episode: the episode, whose values and rewards are drawn beside the frames.
        title: of the video.
    """
    layout = {"rows": 2, "columns": 2, "width_ratios": (1, 1.35), "height_ratios": (2.4, 1), "dpi": DPI}
    with canvas(WIDTH, HEIGHT, **layout) as (fig, (left, right, spare, below)):
        spare.remove()
        grid = left.get_gridspec()
        assert grid is not None
        left.set_subplotspec(grid[:, 0])
        fig.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
        picture = left.imshow(first, animated=True)
        left.set_axis_off()
        draw_value(right, episode, faint=True)
        draw_reward(below, episode)
        right.set(ylabel="return from here on", xlim=(0, max(len(episode.rewards), 2)))
        right.tick_params(labelbottom=False)
        below.set_xlim(right.get_xlim())
        (line,) = right.plot([], [], color=BLUE, linewidth=2.2, animated=True)
        (dot,) = right.plot([], [], "o", color=BLUE, markersize=7, animated=True)
        now = below.axvline(0, color=FAINT, linewidth=1, animated=True)
        caption = right.set_title(" ", fontsize=11, animated=True)
        right.legend([line, right.lines[0]], ["Q of what the policy does", "what the episode then earns"], fontsize=8)
        border_look = {"transform": left.transAxes, "fill": False, "animated": True, "clip_on": False}
        border = left.add_patch(Rectangle((0, 0), 1, 1, edgecolor=GREEN, linewidth=5, **border_look))
        figure_canvas = FigureCanvasAgg(fig)
        make_drawable(fig)
        figure_canvas.draw()
        fig.set_layout_engine("none")
        background = figure_canvas.copy_from_bbox(fig.bbox)
        last: np.ndarray | None = None

        def show(frame: np.ndarray, step: int) -> None:
            nonlocal last
            decisions = int(np.searchsorted(episode.decided, step, side="right"))
            at = max(decisions - 1, 0)
            picture.set_data(frame)
            line.set_data(episode.decided[:decisions], episode.values[:decisions])
            dot.set_data([episode.decided[at]], [episode.values[at]])
            now.set_xdata([step, step])
            success = episode.succeeded is not None and step >= episode.succeeded
            caption.set_text(f"step {step}: " + ("success" if success else f"Q = {episode.values[at]:.1f}"))
            caption.set_color(GREEN if success else INK)
            border.set_visible(success)
            figure_canvas.restore_region(background)
            for axes, artists in ((left, (picture, border)), (right, (line, dot, caption)), (below, (now,))):
                for artist in artists:
                    axes.draw_artist(artist)
            last = np.asarray(figure_canvas.buffer_rgba())[..., :3].copy()
            add(last)

        yield show
        if last is not None:
            for _ in range(STILL_FRAMES):
                add(last)
