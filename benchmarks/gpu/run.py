"""Everything that wants a GPU, in order of worth, in under 25 minutes, on a host without a network.

    python benchmarks/gpu/run.py --out FOLDER [--steps correctness bench ...] [--list] [--tiny]
    python benchmarks/gpu/run.py --out FOLDER --steps learning     # where a flow critic pays: another 25 minutes

Each step is a process with a time limit of its own. It writes its results and its log to the folder as it goes, and
what a step has written stays if the time is up or the next one fails. `--tiny` rehearses the whole on any machine.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NOT_HERE = ("it needs a Hopper GPU", "may not know the kernel's interface")  # what the fused kernel says elsewhere
GRACE_SECONDS = 10
PUBLISHED = ["--env_name=cube-double-play-singletask-v0", "--agent.block_depth=4"]  # the sizes of ANCHORS: 37 + 5
TINY = [
    *("--agent.batch_size=8", "--agent.actor_hidden_dims=(8,)", "--agent.value_hidden_dims=(8,)"),
    *("--agent.block_width=64", "--agent.block_depth=2", "--agent.noise_samples=2"),
]


class Step(NamedTuple):
    """A program, its arguments, those that make it small for the rehearsal, and its limit in seconds."""

    program: list[str]
    arguments: list[str]
    tiny: list[str]
    seconds: int


def _bench(name: str, seconds: int, *arguments: str) -> Step:
    usual = ["--precision=bf16", "--fleets", "1", "16", "--ks", "8", "--evaluate=False", f"--out={{out}}/{name}.csv"]
    tiny = ["--ks", "1", "--fleets", "2", "--seconds", "0.01", "--evaluate=False", *TINY]
    return Step(["-m", "floq", "bench"], [*PUBLISHED, *usual, *arguments], tiny, seconds)


STEPS = {
    "correctness": Step(
        [str(HERE / "correctness.py")],
        ["--out", "{out}/correctness.csv", *PUBLISHED],
        ["--sizes", "3", "2", *TINY],
        150,
    ),
    "bench": _bench("bench", 420, "--ks", "8", "1", "4", "16", "--fleets", "1", "4", "16", "--evaluate=True"),
    "kernels": Step(
        [str(HERE / "kernel_variants.py")],
        ["--out", "{out}/kernels.csv", *PUBLISHED],
        ["--runs", "2", "--sizes", "3", "2", "--seconds", "0.01", "--square", "64", *TINY],
        150,
    ),
    "bench_fused": _bench("bench_fused", 120, "--agent.integration=fused"),
    "bench_fast": _bench("bench_fast", 100, "--preset=fast"),
    "bench_tf32": _bench("bench_tf32", 100, "--precision=tf32"),
    "bench_images": Step(
        ["-m", "floq", "bench"],
        [
            *("--env_name=pixel_maze:PixelMaze-v0", "--env_kwargs.size=64", "--frame_stack=3", "--p_aug=0.5"),
            *("--agent.encoder=impala_small", "--precision=bf16", "--fleets", "1", "4", "--ks", "8"),
            *("--evaluate=False", "--out={out}/bench_images.csv"),
        ],
        [
            "--ks",
            "1",
            "--fleets",
            "1",
            "--seconds",
            "0.01",
            "--env_kwargs.size=8",
            "--agent.encoder=impala_debug",
            *TINY,
        ],
        100,
    ),
    "host_rows": Step(
        [str(HERE.parent / "host_rows.py")],
        ["--gb=2", "--encoder=impala_small", "--seconds=3"],
        ["--gb=0.001", "--size=16", "--encoder=impala_debug", "--batch_size=4", "--seconds=0.01"],
        60,
    ),
    "curve": Step(
        [str(HERE / "curve.py")],
        ["--out", "{out}"],
        [
            *("--env_name=pointmaze-medium-navigate-singletask-v0", "--episodes=2", "--work={out}/work", "--steps=4"),
            *("--seeds=1", "--fleets", "fql", "--eval_episodes=1", "--precision=f32", *TINY[:3]),
        ],
        300,
    ),
}


USUAL = list(STEPS)
STEPS["learning"] = Step(  # floq against FQL on a task of the paper, as far as the time carries
    [str(HERE / "curve.py")],
    [
        *("--out", "{out}/learning", "--env_name=cube-double-play-singletask-v0", "--seeds=4", "--steps=20000"),
        *("--rounds=50", "--fleets", "floq fast", "fql of equal operations", "--work={out}/learning"),
        "--eval_interval=10000",
    ],
    [
        *("--env_name=pointmaze-medium-navigate-singletask-v0", "--episodes=2", "--steps=100", "--rounds=2"),
        *("--seeds=2", "--eval_episodes=1", "--eval_interval=100", "--precision=f32", *TINY),
    ],
    1500,
)
STEPS["learning_images"] = Step(  # of the maze in docs/images.md, with an encoder of the published size
    [str(HERE / "curve.py")],
    [
        *("--out", "{out}/learning_images", "--work={out}/learning_images", "--env_name=pixel_maze:PixelMaze-v0"),
        *("--data_program", str(HERE.parents[1] / "examples" / "pixel_maze.py"), "--steps=20000"),
        *("--agent.encoder=impala_small", "--p_aug=0.5", "--agent.n_step=5", "--agent.discount=0.97"),
        "--agent.alpha=10",
    ],
    [
        *("--steps=4", "--seeds=1", "--fleets", "fql", "--eval_episodes=1", "--precision=f32", *TINY[:3]),
        "--agent.encoder=impala_debug",
    ],
    900,
)


def carry_out(words: list[str], log: Path, environment: dict[str, str], seconds: int) -> str:
    """Run a step, with all the processes that it starts, for as long as it may; what came of it."""
    with open(log, "w") as file:
        command = [sys.executable, "-W", "ignore", *words]
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # a training writes a checkpoint and goes
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return f"stopped after its {seconds} s"
    if code == 2 and any(said in log.read_text() for said in NOT_HERE):
        return "not on this machine"
    return "done" if code == 0 else f"failed with exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where results and logs go")
    parser.add_argument("--steps", nargs="+", default=USUAL, choices=STEPS, metavar="STEP")
    parser.add_argument("--list", action="store_true", help="name the steps and their limits, and stop")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: a rehearsal")
    options = parser.parse_args()
    if options.list or options.out is None:
        print("\n".join(f"{name:<14} {STEPS[name].seconds:>4} s" for name in USUAL))
        sys.exit(None if options.list else "give --out FOLDER")
    options.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.setdefault("MUJOCO_GL", "disable")
    path = [str(HERE.parents[1] / "examples"), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))  # with the maze of images
    failed = []
    for name in options.steps:
        step, started = STEPS[name], time.monotonic()
        words = [*step.arguments, *(step.tiny if options.tiny else [])]
        words = [word.replace("{out}", str(options.out)) for word in words]
        log = options.out / f"{name}.log"
        outcome = carry_out([*step.program, *words], log, environment, step.seconds)
        failed += [name] if outcome.startswith(("failed", "stopped")) else []
        print(f"--- {name}: {outcome}, {time.monotonic() - started:.0f} s")
        print(log.read_text().rstrip(), flush=True)
    if failed:
        sys.exit(f"not done: {', '.join(failed)}")


if __name__ == "__main__":
    main()
