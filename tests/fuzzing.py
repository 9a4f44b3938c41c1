"""The readers of untrusted files as functions of bytes: what `tests/test_fuzz.py` tries with random changes to
good files, and `benchmarks/fuzz.py` with whatever reaches new lines of code. Each may return, or raise UserError."""

import contextlib
import functools
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from episodes import flat, make_episodes, write_hdf5

from floq.analysis.report.csv_files import evaluation_rows, read_tables, run_rows, write_csv
from floq.analysis.report.groups import group_runs
from floq.analysis.report.page import markdown, page
from floq.analysis.report.scores import assemble
from floq.data.collection.experts import Walker
from floq.data.formats import d4rl, robomimic, tables
from floq.data.formats.files import open_npz
from floq.data.formats.open import open_dataset
from floq.data.options import DataOptions
from floq.runs import record as report_runs
from floq.runs.checkpoint import Manifest
from floq.runs.config import Config
from floq.runs.loggers import read_csv
from floq.runs.run import Run
from floq.sweep.experiment import read_experiment
from floq.utils.errors import UserError
from floq.utils.untrusted import read_json, read_tensors

Target = Callable[[bytes], None]

CONFIG = Config(env_name="pointmaze-medium-navigate-singletask-v0").to_json()
MANIFEST = {"format": 2, "step": 6, "obs_size": 2, "act_size": 2, "config": CONFIG, "pending": [4]}
MANIFEST |= {"clocks": {"seconds": 1.5}}
SUMMARY = {"steps": 6, "success": 0.5, "updates_per_second": 10.0, "seconds": 3.0, "eval_episodes": 3}
EVALUATIONS = "step,evaluation/success,evaluation/episode.return,time/total_time\n1,0.0,-5.0,1.0\n6,0.5,-3.0,2.0\n"
TRAINING = "step,training/critic/critic_loss,training/critic/q,training/actor/actor_loss,time/epoch_time\n"
TRAINING += "2,0.5,-1.0,0.1,0.01\n4,0.25,-2.0,0.1,0.01\n"
BUDGET = 'tasks = ["pointmaze-medium-navigate-singletask-v0"]\nseeds = [0, 1]\n[settings]\noffline_steps = 10\n'
BUDGET += "[critics.floq]\n'agent.block_width' = 8\n"
EXPERIMENT = (
    'title = "t"\nreference = "a"\n[[groups]]\nname = "a"\n[[groups]]\nname = "b"\nagent = "fql"\nmatch = "flops"\n'
)
EXPERIMENT += 'match_to = "a"\n[b.settings]\n"agent.lr" = 0.001\n'


@functools.cache
def folder() -> Path:
    """A place for the files, gone with the process."""
    place = Path(tempfile.mkdtemp(prefix="floq-fuzz-"))
    import atexit

    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _file(name: str, content: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    """Of readers that leave it to who calls them to say which file it was."""
    try:
        yield
    except ValueError as error:
        raise UserError("damaged") from error


def json_file(content: bytes) -> None:
    with _refusal():
        read_json(_file("a.json", content))


def manifest(content: bytes) -> None:
    with _refusal():
        Manifest.of(read_json(_file("manifest.json", content)))


def run_folder(content: bytes) -> None:
    path = _file("run/config.json", content)
    run = Run.open(path.parent)
    _ = run.records, Run.parent(run.config), run.config.digest(), run.config.task


def report(content: bytes) -> None:
    """Four files of a run, with zero bytes between them."""
    parts = [*content.split(b"\0"), b"", b"", b"", b""]
    for name, part in zip(("config.json", "summary.json", "eval.csv", "train.csv"), parts, strict=False):
        _file(f"reported/{name}", part)
    found = report_runs.read_run(folder() / "reported")
    runs = [found] if isinstance(found, report_runs.RunRecord) else []
    damaged = [found] if isinstance(found, report_runs.DamagedRun) else []
    whole = assemble(group_runs(runs), damaged)
    markdown(whole, folder())
    write_csv(folder() / "runs.csv", run_rows(whole))
    write_csv(folder() / "evaluations.csv", evaluation_rows(whole))
    read_tables(folder() / "runs.csv", folder() / "evaluations.csv")


def report_page(content: bytes) -> None:
    report(content)
    found = report_runs.read_run(folder() / "reported")
    if isinstance(found, report_runs.RunRecord):
        page(assemble(group_runs([found])), folder())


def table(content: bytes) -> None:
    read_csv(_file("a.csv", content))


def budget(content: bytes) -> None:
    _file("e.toml", EXPERIMENT.encode())
    _file("budgets/b.toml", content)
    read_experiment(folder() / "e.toml", "b")


def experiment(content: bytes) -> None:
    _file("e.toml", content)
    _file("budgets/b.toml", BUDGET.encode())
    read_experiment(folder() / "e.toml", "b")


def npz_archive(content: bytes) -> None:
    open_npz(_file("a.npz", content), ("observations", "actions", "rewards", "terminals", "timeouts"))


def npz_dataset(content: bytes) -> None:
    open_dataset(str(_file("b.npz", content)), "none")


def npy_array(content: bytes) -> None:
    """The array within the zip, whose checksum random changes would never get right."""
    with zipfile.ZipFile(folder() / "c.npz", "w") as archive:
        archive.writestr("observations.npy", content)
    open_npz(folder() / "c.npz", ("observations",))


def hdf5(content: bytes) -> None:
    d4rl.read(_file("a.hdf5", content))


def demonstrations(content: bytes) -> None:
    file = _file("d.hdf5", content)
    if robomimic.takes(file):
        robomimic.read(file)


def parquet(content: bytes) -> None:
    tables.read(_file("a.parquet", content), DataOptions(guess_columns=True))


def csv_table(content: bytes) -> None:
    tables.read(_file("a.csv", content), DataOptions(guess_columns=True))


def tensors(content: bytes) -> None:
    with _refusal():
        read_tensors(_file("a.safetensors", content))


def walker(content: bytes) -> None:
    Walker.load(str(_file("w.safetensors", content)))


def _npz() -> bytes:
    np.savez(folder() / "seed.npz", **flat(make_episodes([(2, True), (1, False)]), with_next=True))
    return (folder() / "seed.npz").read_bytes()


def _npy() -> bytes:
    np.save(folder() / "seed.npy", np.arange(6.0).reshape(3, 2))
    return (folder() / "seed.npy").read_bytes()


def _hdf5() -> bytes:
    arrays = flat(make_episodes([(2, True), (1, False)]), with_next=True)
    return write_hdf5(folder() / "seed.hdf5", arrays).read_bytes()


def _demonstrations() -> bytes:
    arrays = {"obs/x": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2), "dones": np.zeros(2)}
    content = {f"data/demo_{n}/{key}": x for n in range(2) for key, x in arrays.items()}
    content |= {f"mask/{name}": np.array([f"demo_{n}"], "S6") for n, name in enumerate(("train", "valid"))}
    return write_hdf5(folder() / "seed.hdf5", content).read_bytes()


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {"x0": [1.0, 2.0, 3.0], "a0": [0.0, 0.5, 1.0], "reward": [1.0, 0.0, 1.0], "episode": ["a", "a", "a"]}
    parquet.write_table(pyarrow.table(columns), folder() / "seed.parquet")
    return (folder() / "seed.parquet").read_bytes()


def _walker() -> bytes:
    layers = [(np.zeros((3, 4), np.float32), np.zeros(4, "f4")), (np.zeros((4, 2), np.float32), np.zeros(2, "f4"))]
    Walker(layers, {"seed": "0"}).save(folder() / "seed.safetensors")
    return (folder() / "seed.safetensors").read_bytes()


def _reported() -> bytes:
    told = CONFIG | {"protocol": "p", "versions": {"jax": "1"}, "data": {"provenance": "here"}}
    parts = (json.dumps(told), json.dumps(SUMMARY), EVALUATIONS, TRAINING)
    return b"\0".join(part.encode() for part in parts)


SEEDS: dict[Target, Callable[[], bytes]] = {
    json_file: lambda: json.dumps(SUMMARY).encode(),
    manifest: lambda: json.dumps(MANIFEST).encode(),
    run_folder: lambda: json.dumps(CONFIG).encode(),
    report: _reported,
    report_page: _reported,
    table: EVALUATIONS.encode,
    budget: BUDGET.encode,
    experiment: EXPERIMENT.encode,
    npz_archive: _npz,
    npz_dataset: _npz,
    npy_array: _npy,
    hdf5: _hdf5,
    demonstrations: _demonstrations,
    parquet: _parquet,
    csv_table: lambda: b"x0,a0,reward,episode\n1,0.5,1,a\n2,0.5,0,a\n",
    tensors: _walker,
    walker: _walker,
}
"""The readers, and of each a good file."""

BY_NAME = {target.__name__: target for target in SEEDS}


def refused(target: Target, content: bytes) -> bool:
    """Whether a reader refuses these bytes. Raises whatever else it raises, which is a finding."""
    try:
        target(content)
    except UserError:
        return True
    return False


def words() -> Iterator[bytes]:
    """What is worth putting into a file: keys, and values at the edges."""
    yield from (b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"null", b"true", b'"\\ud800"', b"[]", b"{}", b"[[[[[[[[")
    yield from (b"9223372036854775807", b"9223372036854775808", b"4294967296", b"1e308", b'""', b"nan", b"inf", b"-inf")
    yield from (
        b"../../x",
        b"trap:Any-v0",
        b"</script>",
        b"\\u001b]0;x\\u0007",
        b"|O",
        b"<f8",
        b"|V1",
        b"(2,)",
        b"BF16",
    )
    for name in (*CONFIG, *CONFIG["agent"], *MANIFEST, "protocol", "versions", "data", "provenance"):
        yield f'"{name}"'.encode()
