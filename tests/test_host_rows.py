"""Observations that do not fit into the device's memory: the same batches and agents, and files that are mapped."""

import errno
import gc
import io
import itertools
import os
import subprocess
import sys
import tracemalloc
import weakref
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACTOR, FLOQ, SCALAR, agent_config
from online_runs import config
from probe_envs import watched

import floq
from floq import cli
from floq.data import storage
from floq.data.arrays import from_arrays, take
from floq.data.dataset import Dataset, Splits
from floq.data.formats.convert import convert
from floq.data.formats.files import open_npz
from floq.data.formats.open import open_dataset
from floq.data.host_rows import HostRows
from floq.data.mixture import Mixture, Source
from floq.runs import checkpoint, run_data
from floq.training.fleet import FleetData
from floq.utils.errors import UserError

LIMIT = "FLOQ_DATA_GB"
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3)).astype(np.uint8)


def kept_on_host(data: Dataset, monkeypatch) -> Dataset:
    monkeypatch.setenv(LIMIT, "0")
    found = Dataset.from_rows(*data.on_host())
    monkeypatch.delenv(LIMIT)
    assert isinstance(found.observations, HostRows)
    return found


def vectors() -> Dataset:
    rng = np.random.default_rng(0)
    ends = np.arange(90) % 9 == 8
    return Dataset.from_rows(rng.normal(size=(90, 3)), rng.uniform(-1, 1, (90, 2)), -np.ones(90), np.ones(90), ends)


@pytest.mark.parametrize("made", [vectors, lambda: Dataset.from_episodes(watched())])
@pytest.mark.parametrize(("frames", "n_step", "chunk"), [(1, 1, 1), (3, 4, 1), (2, 2, 2)])
def test_batches_are_those_from_the_device(monkeypatch, made, frames, n_step, chunk):
    device = made()
    host = kept_on_host(device, monkeypatch)
    p_aug = 0.5 if device.parts else 0.0
    device, host = (data.for_chunks(chunk).seen_as(frames, p_aug) for data in (device, host))

    @jax.jit
    def draw(data, key, next_key):
        return data.sample(key, 16, n_step, 0.9, chunk, next_key=next_key)

    keys = jax.random.split(jax.random.key(0), 6)
    for key, next_key in itertools.pairwise(keys):
        one, other = draw(device, key, next_key), draw(host, key, next_key)
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), one, other))
    rows = np.array([0, 5, 30])
    assert (np.asarray(host.observations_at(rows)) == np.asarray(device.observations_at(rows))).all()
    one, other = device.obs_stats(), host.obs_stats()
    near = 1e-6 if device.parts is None else 0.0  # parts that are vectors are computed alike
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, near, near), one, other))
    assert host.fingerprint() == device.fingerprint()
    assert host.dims == device.dims


def test_the_next_batch_is_gathered_by_the_thread(monkeypatch):
    host = kept_on_host(vectors(), monkeypatch)
    gathered, gather = [], host.observations._gather
    monkeypatch.setattr(host.observations, "_gather", lambda numbers: gathered.append(len(numbers)) or gather(numbers))

    @jax.jit
    def total(data, key):
        def step(number, found):
            keys = (jax.random.fold_in(key, number + i) for i in range(2))
            return found + data.sample(next(keys), 8, next_key=next(keys))["observations"].sum()

        return jax.lax.fori_loop(0, 20, step, jnp.float32(0))

    total(host, jax.random.key(0)).block_until_ready()
    host.observations._thread.shutdown()
    assert len(gathered) == 21  # the first at once, and one more than was asked for
    assert len(host.observations._awaited) == 1


def test_runs_of_a_fleet_draw_their_own_batches(monkeypatch):
    """vmapped, as on a GPU, and one after another, as on a CPU."""
    device = Dataset.from_episodes(watched())
    host, keys = kept_on_host(device, monkeypatch), jax.random.split(jax.random.key(0), 3)
    one = lambda data: lambda key: data.sample(key, 4, next_key=jax.random.fold_in(key, 1))  # noqa: E731
    for apply in (jax.vmap, lambda function: lambda keys: jax.lax.map(function, keys)):
        found, wanted = (jax.jit(apply(one(data)))(keys) for data in (host, device))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, wanted))


def test_a_mixture_of_old_and_new_data_is_the_same(monkeypatch):
    device = Dataset.from_episodes(watched())
    sources = [data.seen_as(2, 0.5) for data in (device, kept_on_host(device, monkeypatch))]

    @jax.jit
    def draw(data, key, next_key):
        return Mixture(*Source.halves(data, jnp.int32(5)), jnp.float32(0.3)).sample(key, 16, 2, 0.9, next_key=next_key)

    keys = jax.random.split(jax.random.key(0), 2)
    one, other = (draw(data, *keys) for data in sources)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_data_of_several_tasks_are_laid_end_to_end(monkeypatch):
    device = [Dataset.from_episodes(watched()), Dataset.from_episodes(watched(seed=1))]
    host = [kept_on_host(data, monkeypatch) for data in device]
    one, other = (np.asarray(FleetData.of(tasks).trajectories.observations) for tasks in (device, host))
    assert (one == other).all()


def test_rows_go_with_their_dataset(monkeypatch):
    host = kept_on_host(vectors(), monkeypatch)
    jax.jit(lambda data, key: data.sample(key, 8))(host, jax.random.key(0))
    rows = weakref.ref(host.observations)
    del host
    gc.collect()
    assert rows() is None


@pytest.mark.parametrize("shape", [(3,), pytest.param((8, 8, 3), marks=pytest.mark.slow)])
def test_runs_on_several_devices(shape, tmp_path):
    """In a process of its own: each of two cores is a device with one run."""
    observations = np.random.default_rng(0).integers(0, 256, (90, *shape)).astype(np.uint8)
    ends = np.arange(90) % 9 == 8
    arrays = {"actions": np.zeros((90, 2)), "rewards": -np.ones(90), "masks": np.ones(90), "terminals": ends}
    np.savez(tmp_path / "x.npz", observations=observations, **arrays)
    sizes = "--agent.value_hidden_dims=(8,) --agent.actor_hidden_dims=(8,)"
    sizes += " --agent.encoder=impala_debug" * (len(shape) > 1)
    data = f"--dataset={tmp_path / 'x.npz'} --env_name=None"
    run = f"{data} --agent=fql --seeds 0 1 --offline_steps=2 --eval_interval=0 {sizes}"
    code = f"""
import os
from floq import cli
for limit in ("1", "0"):
    os.environ["FLOQ_DATA_GB"] = limit
    assert cli.run(["train", *{run.split()}, "--save_dir={tmp_path}/" + limit]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (0, 1):
        folders = [next((tmp_path / limit).glob(f"**/sd00{seed}_*")) for limit in ("1", "0")]
        one, other = (checkpoint.load(folder / "checkpoints").agent.params for folder in folders)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


CAMERA = {"env_name": "probe_envs:Camera-v0", "agent": agent_config(FLOQ, ACTOR, encoder="impala_debug")}
CAMERA |= {"frame_stack": 2, "p_aug": 0.5}
NO_CAMERA = {"env_name": None, "dataset": "mine", "agent": agent_config(SCALAR, ACTOR)}


def trained(folder, data, monkeypatch, limit: str | None, **settings):
    if limit is not None:
        monkeypatch.setenv(LIMIT, limit)
    own = {"offline_steps": 4, "online_steps": 0, "eval_interval": 4, "save_interval": 2}
    run = floq.train(config(folder, **(own | settings)), data, show=False)
    monkeypatch.delenv(LIMIT, raising=False)
    return run


@pytest.mark.parametrize(
    ("made", "settings"),
    [
        pytest.param(vectors, NO_CAMERA, id="vectors"),
        pytest.param(lambda: Dataset.from_episodes(watched()), CAMERA, id="images", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_a_run_and_its_resumption_are_bit_for_bit_those_on_the_device(tmp_path, monkeypatch, made, settings):
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    data = made()
    device = trained(tmp_path / "device", data, monkeypatch, None, **settings)
    short = trained(tmp_path / "host", data, monkeypatch, "0", offline_steps=2, **settings)
    monkeypatch.setenv(LIMIT, "0")
    host = floq.resume(str(short.folder), data, offline_steps=4)
    first, second = (checkpoint.load(run.folder / "checkpoints").agent for run in (device, host))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first.params, second.params))
    own, others = ({k: x for k, x in run.training().items() if "time" not in k} for run in (device, host))
    assert own == others


def test_learning_online_needs_them_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    said = "online_steps=4: observations stay in a mapped file, .* are more than FLOQ_DATA_GB=0, and online"
    with pytest.raises(UserError, match=said):
        trained(tmp_path, Dataset.from_episodes(watched()), monkeypatch, "0", **(CAMERA | {"online_steps": 4}))


def test_a_batch_is_not_divided(monkeypatch):
    splits = Splits.of(*[vectors().on_host()] * 2, "")
    run_data.check_on_device(floq.configure(batch_devices=2), splits)
    host = splits._replace(train=kept_on_host(splits.train, monkeypatch))
    with pytest.raises(UserError, match="batch_devices=2: observations stay in"):
        run_data.check_on_device(floq.configure(batch_devices=2), host)


@pytest.mark.parametrize("given", ["many", "-1", "nan", "inf", ""])
def test_a_limit_that_is_none(monkeypatch, given):
    monkeypatch.setenv(LIMIT, given)
    with pytest.raises(UserError, match=f"FLOQ_DATA_GB={given}: it is how many GB"):
        vectors()


# --- Files ---


@pytest.fixture(params=[np.savez, np.savez_compressed])
def file(request, tmp_path):
    ends = np.arange(len(PIXELS)) % 9 == 8
    own = {"observations": PIXELS, "actions": np.zeros((len(PIXELS), 2), np.float32), "terminals": ends}
    request.param(tmp_path / "x.npz", rewards=-np.ones(90), masks=np.ones(90), **own)
    return tmp_path / "x.npz"


def test_pixels_are_mapped(file, monkeypatch):
    monkeypatch.setenv(LIMIT, "1e-6")
    arrays = open_npz(file, ("observations", "actions"))
    assert isinstance(arrays["observations"], np.memmap)
    assert not isinstance(arrays["actions"], np.memmap)
    assert (arrays["observations"] == PIXELS).all()


@pytest.mark.parametrize("file", [np.savez], indirect=True)
def test_a_file_is_mapped_through_to_the_batches(file, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(LIMIT, "1e-6")
    words = ["--agent=fql", "--dataset", str(file), "--agent.encoder=impala_debug", "--offline_steps=1"]
    sizes = ["--eval_interval=0", "--agent.value_hidden_dims=(8,)", "--agent.actor_hidden_dims=(8,)"]
    assert cli.run(["train", *words, *sizes, "--env_name=None", f"--save_dir={tmp_path / 'exp'}"]) == 0
    said = capsys.readouterr().out
    assert "observations stay in a mapped file" in said
    assert "more than FLOQ_DATA_GB=1e-6: a thread gathers those of each batch" in said


def test_damage_of_what_is_mapped_is_found(file, monkeypatch):
    monkeypatch.setenv(LIMIT, "1e-6")
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo("observations.npy")
    content = bytearray(file.read_bytes())
    content[entry.header_offset + entry.compress_size // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"x\.npz cannot be read"):
        open_npz(file, ("observations",))


def test_a_stream_that_ends_early_is_found(tmp_path, monkeypatch):
    """One that declares more than it holds, in its header and in the directory."""
    monkeypatch.setenv(LIMIT, "1e-6")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9000,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observations.npy", header.getvalue() + bytes(10))
        archive.getinfo("observations.npy").file_size = len(header.getvalue()) + 9000
    with pytest.raises(UserError, match=r"x\.npz cannot be read"):
        open_npz(tmp_path / "x.npz", ("observations",))


def test_the_largest_are_mapped_until_the_others_fit(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT, "3e-5")
    np.savez(tmp_path / "x.npz", **{"observations/a": PIXELS, "observations/b": PIXELS[:, :7]})  # 17 and 15 kB
    read = open_npz(tmp_path / "x.npz", (), with_parts=("observations",))["observations"]
    assert [isinstance(read[name], np.memmap) for name in "ab"] == [True, False]


def test_episodes_are_put_in_a_file_as_they_come(tmp_path, monkeypatch):
    """Those of a folder of npz files, with a limit that holds one of them."""
    monkeypatch.setenv(LIMIT, "6e-6")
    for number, pixels in enumerate(PIXELS.reshape(6, 15, 8, 8, 3)):
        parts = {"observations/a": pixels, "observations/b": np.ones((15, 2))}
        np.savez(tmp_path / f"{number}.npz", actions=np.zeros((15, 1), np.float32), rewards=-np.ones(15), **parts)
    found = open_dataset(str(tmp_path), "").data.observations
    assert isinstance(found, np.memmap)
    assert (found["a"] == PIXELS).all()
    assert (found["b"] == 1).all()


def test_an_episode_is_copied_even_if_its_maker_reuses_it():
    def episodes():
        frames = np.zeros((3, 8, 8, 3), np.uint8)
        for number in range(3):
            frames[:] = number
            yield {"observations": frames, "actions": np.zeros((2, 1)), "rewards": np.zeros(2)}

    data = Dataset.from_episodes(episodes())
    assert np.unique(np.asarray(data.observations)).tolist() == [0, 1, 2]


def test_several_cameras_are_converted_without_a_copy_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv(LIMIT, "0")
    eyes = {"left": np.zeros((3_000, 64, 64, 3), np.uint8), "right": np.ones((3_000, 64, 64, 3), np.uint8)}
    rows, ends = np.zeros(3_000), np.arange(3_000) == 2_999
    data = from_arrays(eyes, rows[:, None], rows, rows, ends)
    tracemalloc.start()
    written = convert(data, True, str(tmp_path / "eyes.npz"), "made up")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.observations.nbytes * 0.8  # NumPy writes them in pieces of 16 MB
    read = open_npz(written, ["rewards"], with_parts=["observations"])["observations"]
    assert {name: int(x.sum()) for name, x in read.items()} == {"left": 0, "right": 3_000 * 64 * 64 * 3}


def test_copies_of_what_is_mapped_are_mapped(monkeypatch):
    rows = np.arange(0, 90, 2)
    kept = take(PIXELS, rows)
    monkeypatch.setenv(LIMIT, "1e-6")
    found = take(PIXELS, rows)
    assert isinstance(found, np.memmap)
    assert not isinstance(kept, np.memmap)
    assert (found == kept).all()
    episodes = [
        {"observations": {"a": PIXELS, "b": np.ones((90, 2))}, "actions": np.zeros((89, 1)), "rewards": -np.ones(89)}
    ]
    data = Dataset.from_episodes(episodes * 2)
    assert isinstance(data.observations, HostRows)
    assert data.observations.is_mapped
    read = data.obs_spec.read(np.asarray(data.observations))
    assert (read["a"] == np.concatenate([PIXELS, PIXELS])).all()
    assert (read["b"] == 1).all()


def test_a_disk_without_room_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv(LIMIT, "0")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room in .* \(No space left on device\): name a folder .* TMPDIR"):
        take(PIXELS, np.arange(5))
    monkeypatch.undo()
    monkeypatch.setenv(LIMIT, "0")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no room in .*nowhere"):
        take(PIXELS, np.arange(5))


def test_trajectories_keep_their_rows_whatever_their_length(monkeypatch):
    """Flat arrays with next observations, compared piece by piece."""
    monkeypatch.setattr("floq.data.arrays.PIECE", 7)
    obs = vectors().on_host().observations
    after = np.concatenate([obs[1:], obs[:1] + 1])
    flat = (obs, np.zeros((90, 1)), np.zeros(90), np.zeros(90))
    ends = np.asarray(Dataset.from_arrays(*flat, next_observations=after).ends)
    assert ends.sum() == 1
    after[41] += 1
    data = Dataset.from_arrays(*flat, next_observations=after)
    assert np.flatnonzero(data.ends).tolist() == [42, 91]
