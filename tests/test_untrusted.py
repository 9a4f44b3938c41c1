"""Files from strangers: attacks by name, each refused with one line; nothing is run, written elsewhere or allocated."""

import csv
import json
import os
import re
import resource
import shutil
import sys
import tomllib
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from episodes import flat, make_episodes, write_hdf5, write_minari
from hostile import edit_json, nested, npy, npz, safetensors, sign_manifest
from run_folders import make_run

from floq import cli
from floq.analysis.evaluate_run import evaluate_run
from floq.data.collection import collect
from floq.data.collection.experts import Walker
from floq.data.formats import d4rl, ogbench
from floq.data.formats.files import open_npz
from floq.data.formats.minari import read as read_minari
from floq.data.formats.open import open_dataset
from floq.runs import checkpoint, run_data
from floq.runs.config import Config
from floq.runs.loggers import read_csv
from floq.runs.run import Run
from floq.runs.run_data import _kept
from floq.sweep.experiment import read_experiment
from floq.utils import untrusted
from floq.utils.errors import UserError
from floq.utils.progress import Display
from floq.utils.schema import read_toml
from floq.utils.untrusted import CSV_LIMIT, JSON_LIMIT, TOML_LIMIT, printable, read_json, read_tensors, read_text

ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture
def stranger(run_dir, tmp_path):
    """A copy of a finished run, for a stranger to change."""
    return Path(shutil.copytree(run_dir, tmp_path / "stranger"))


@pytest.fixture
def little_memory():
    """While the test runs, this process may take half a GiB more than it has: who allocates more fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def sparse(path: Path, size: int) -> Path:
    """A file of that size that takes no room."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_every_promise_has_its_test():
    here = Path(__file__).parent
    promised = set(re.findall(r"`(test_\w+)`", (here.parent / "docs" / "untrusted.md").read_text()))
    written = {
        name for path in here.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(promised) > 20
    assert promised - written == set()


# --- text ---


@pytest.mark.parametrize("limit", [JSON_LIMIT, TOML_LIMIT, CSV_LIMIT])
def test_a_file_is_measured_before_it_is_read(tmp_path, limit, little_memory):
    with pytest.raises(ValueError, match="more than the"):
        read_text(sparse(tmp_path / "huge", 2**40), limit)
    assert len(read_text(sparse(tmp_path / "small", 1000), limit)) == 1000


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no file"):
            read_text(path, JSON_LIMIT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(100_000), "nested more than 32 deep"),
        (nested(500), "nested more than 32 deep"),
        ("[" * 100_000, "nested more than 32 deep"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is no number"),
        ('{"a": 1' + "0" * 5000 + "}", "is too large a number"),
        ('{"a": 9223372036854775808}', "is too large a number"),
        ("[]", "no JSON object"),
        ("{", "no JSON"),
        ('{"a": "\ud800"}', "surrogates not allowed"),
    ],
)
def test_json_that_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=message if "surrogate" not in message else "invalid"):
        read_json(tmp_path / "a.json")


def test_what_floq_writes_is_read_back(tmp_path):
    (tmp_path / "a.json").write_text(nested(30))
    assert read_json(tmp_path / "a.json") == json.loads(nested(30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 10_000, "recursion|nested"),
        (".".join("a" * 5000) + " = 1", "nested more than 32 deep"),
        ("[" + ".".join("a" * 500) + "]", "nested more than 32 deep"),
        ("a = 1" + "0" * 5000, "cannot read it"),
        ("a = '\x00'", "not TOML"),
        ("a" * TOML_LIMIT + " = 1", "more than the"),
    ],
)
def test_toml_that_is_refused(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_toml(tmp_path / "a.toml")


# --- configurations ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed = '0': must be a whole number"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"offline_steps": 1.5}, "offline_steps = 1.5: must be a whole number"),
        ({"offline_steps": 2**40}, "offline_steps=1099511627776: must be at most"),
        ({"env_name": ["a"]}, "env_name = \\['a'\\]: must be a text"),
        ({"logger": "wandb"}, "logger = 'wandb': must be"),
        ({"agent": {"critic": ["floq"]}}, "--agent.critic=\\['floq'\\]: choose"),
        ({"agent": {"value_hidden_dims": "88"}}, "agent.value_hidden_dims = '88': must be"),
        ({"agent": {"value_hidden_dims": [8] * 1000}}, "at most 256"),
        ({"agent": {"block_depth": 10**9}}, "block_depth=1000000000: must be at most 256"),
        ({"agent": {"noise_samples": 10**9}}, "noise_samples=1000000000: must be at most"),
        ({"agent": {"alpha": None}}, "agent.alpha = None: must be a number"),
        ({"agent": None}, "agent = None: must be a table"),
        ({"__class__": 1}, "__class__: no such setting"),
        ({"run_group": "../../x"}, "run_group='../../x': must be the name of a folder"),
        ({"project_name": "/etc"}, "project_name='/etc': must be the name of a folder"),
        ({"run_group": ""}, "must be the name of a folder"),
    ],
)
def test_a_configuration_with_wrong_values(stranger, changes, message):
    edit_json(stranger / "config.json", **changes)
    with pytest.raises(UserError, match=f"config.json is damaged .*{message}"):
        Run.open(stranger)


def test_a_group_on_the_command_line_cannot_leave_the_folder_either(tmp_path, capsys):
    assert cli.run(["train", "--run_group=../../x", f"--save_dir={tmp_path}"]) == 2
    assert "run_group='../../x': must be the name of a folder" in capsys.readouterr().err
    assert Run.parent(Config(env_name=None, dataset="..", save_dir=str(tmp_path))).resolve().is_relative_to(tmp_path)


TRAP = "open(__file__ + '.sprung', 'w')\n"


def test_a_run_cannot_have_a_module_imported(stranger, tmp_path, monkeypatch, capsys):
    """Gymnasium imports `trap` to make `trap:Any-v0`; `python -m floq` has the current folder on its path."""
    monkeypatch.setenv(untrusted.CONSENT, "")  # other tests name modules on the command line
    (tmp_path / "trap.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path)
    edit_json(stranger / "config.json", env_name="trap:Any-v0")
    for command in (["eval", str(stranger)], ["inspect", str(stranger)], ["train", f"--resume={stranger}"]):
        assert cli.run(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "would import the Python module 'trap': if you trust it, set FLOQ_ENV_MODULES=trap" in line
    assert not list(tmp_path.glob("*.sprung"))
    monkeypatch.setenv(untrusted.CONSENT, "other,trap")
    assert Run.open(stranger).config.env_name == "trap:Any-v0"
    monkeypatch.delenv(untrusted.CONSENT)
    monkeypatch.setitem(sys.modules, "trap", sys)  # imported by the person before
    assert Run.open(stranger).config.env_name == "trap:Any-v0"


def test_an_experiment_cannot_have_a_module_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "budgets").mkdir()
    (tmp_path / "budgets" / "b.toml").write_text('tasks = ["trap:Any-v0"]\nseeds = [0]\n')
    (tmp_path / "e.toml").write_text('title = "t"\nreference = "a"\n[[groups]]\nname = "a"\n')
    with pytest.raises(UserError, match=r"b.toml names the environment trap:Any-v0"):
        read_experiment(tmp_path / "e.toml", "b")
    assert not list(tmp_path.glob("*.sprung"))


@pytest.mark.parametrize("name", [f"a{ESCAPE}", "a\nb", ""])
def test_names_of_groups_are_shown_in_tables(tmp_path, name):
    (tmp_path / "budgets").mkdir()
    (tmp_path / "budgets" / "b.toml").write_text('tasks = ["pointmaze-medium-navigate-singletask-v0"]\nseeds = [0]\n')
    (tmp_path / "e.toml").write_text(f'title = "t"\nreference = "a"\n[[groups]]\nname = {json.dumps(name)}\n')
    assert tomllib.loads((tmp_path / "e.toml").read_text())
    with pytest.raises(UserError, match="write the name in letters that show, on one line"):
        read_experiment(tmp_path / "e.toml", "b")


# --- nothing is written outside ---


@pytest.mark.parametrize("name", ["checkpoints", "plots", "train.csv", "checkpoints/6/manifest.json"])
def test_a_link_out_of_a_run_folder(stranger, tmp_path, name):
    outside, inside = tmp_path / "outside", stranger / name
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        Run.open(stranger)
    inside.unlink()
    outside.rename(stranger / "elsewhere")
    inside.symlink_to(stranger / "elsewhere")  # within it, it may
    assert Run.open(stranger).config.seed == 0


@pytest.mark.parametrize("settings", [{"dataset_dir": "victim"}, {"dataset_mirror": "file:///etc"}])
def test_missing_data_is_not_brought_to_where_a_stranger_says(stranger, tmp_path, monkeypatch, settings):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    edit_json(stranger / "config.json", **({"dataset_dir": "~/.ogbench/data"} | settings))
    run = Run.open(stranger)
    with pytest.raises(UserError, match=r"nothing is brought from or to where .* says: bring it there yourself"):
        run_data.load_data(run.config, Display(False), run=run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stranger"]


@pytest.mark.parametrize("name", ["a/../../../x-play-v0", "a\\..\\x-play-v0", "x-play-\n-v0"])
def test_a_dataset_cannot_be_named_like_a_path(tmp_path, name):
    with pytest.raises(UserError, match="is no name of a dataset"):
        ogbench.find_files(name, tmp_path / "data", lambda *_: pytest.fail("it was fetched"))


def test_a_dataset_to_collect_cannot_be_named_like_a_path(tmp_path):
    with pytest.raises(UserError):
        collect.collect("../pointmaze-medium-navigate-v0", tmp_path / "data", episodes=1)
    assert list(tmp_path.iterdir()) == []


# --- checkpoints ---


def edited_manifest(stranger, **changes):
    path = stranger / "checkpoints" / "6" / "manifest.json"
    edit_json(path, **changes)
    sign_manifest(path)
    return stranger / "checkpoints"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_size": 10**9}, "obs_size=1000000000: must be at most 1048576"),
        ({"act_size": True}, "act_size = True: must be a whole number"),
        ({"obs_size": "2"}, "obs_size = '2': must be a whole number"),
        ({"pending": ["../../x"]}, "pending = '../../x': must be a whole number"),
        ({"pending": list(range(5000))}, "pending: give at most 1024"),
        ({"clocks": {"seconds": "1"}}, "clocks.seconds = '1': must be a number"),
        ({"clocks": [1]}, "clocks = \\[1\\]: must be a table"),
        ({"config": []}, "config = \\[\\]: must be a table"),
        ({"config": {"agent": {"critic": "floq", "actor": "fql", "value_hidden_dims": [10**9]}}}, "hidden_dims"),
        ({"format": 10**9}, "checkpoint format 1000000000"),
    ],
)
def test_a_manifest_with_wrong_values(stranger, changes, message):
    with pytest.raises(UserError, match=message):
        checkpoint.load(edited_manifest(stranger, **changes))


def test_networks_that_are_larger_than_their_file(stranger, little_memory):
    """Each layer would have 16 GiB: it is refused by its shape, for which nothing is allocated."""
    config = json.loads((stranger / "checkpoints" / "6" / "manifest.json").read_text())["config"]
    config["agent"] |= {"value_hidden_dims": [2**16] * 3, "block_width": 2**16}
    with pytest.raises(UserError, match=r"does not fit its configuration: .* is missing, extra or of another shape"):
        checkpoint.load(edited_manifest(stranger, config=config))


@pytest.mark.parametrize("name", ["1e3", "٣", "007", "9" * 5000, "-1"])
def test_folders_that_are_no_steps(tmp_path, name):
    try:
        (tmp_path / name).mkdir()
    except OSError:  # too long a name for this disk
        return
    (tmp_path / name / "manifest.json").write_text("{}")
    assert checkpoint.steps(tmp_path) == []


def kind(shape, dtype="F32", offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        ({}, 2**63, "its header says that it has"),
        ({}, 1000, "its header says that it has"),
        (b"{" * 100, None, "."),
        (b"\xff" * 100, None, "."),
        (nested(100_000).encode(), None, "."),
        ({"a": kind([2**62, 4])}, None, "."),
        ({"a": kind([2**40], offsets=(0, 2**42))}, None, "."),
        ({"a": kind([1]), "b": kind([1])}, None, "."),  # both in the same place
        ({"a": kind([1], offsets=(4, 0))}, None, "."),
        ({"a": kind([2], "BF16")}, None, "a holds BF16, which floq never stores"),
        ({"a": kind([1], "O")}, None, "."),
        ({"a": kind([2])}, None, "."),
    ],
)
def test_safetensors_that_are_refused(tmp_path, header, length, message, little_memory):
    path = safetensors(tmp_path / "a.safetensors", header, b"\0\0\0\0", length)
    with pytest.raises(ValueError, match=message):
        read_tensors(path)


def test_safetensors_with_other_tensors_than_expected(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", {"a": kind([1])}, b"\0\0\0\0")
    assert read_tensors(path, {"a": ((1,), "float32")})[0]["a"].tolist() == [0.0]
    for expected in ({}, {"a": ((1, 1), "float32")}, {"a": ((1,), "int32")}, {"b": ((1,), "float32")}):
        with pytest.raises(ValueError, match="is missing, extra or of another shape"):
            read_tensors(path, expected)


def test_a_huge_header_is_not_parsed(tmp_path, little_memory):
    path = sparse(tmp_path / "a.safetensors", 90 * 2**20)
    with open(path, "r+b") as file:
        file.write((89 * 2**20).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="its header says that it has 93,323,264 bytes"):
        read_tensors(path)


@pytest.mark.parametrize("damage", ["missing", "dtype", "shapes", "header", "none"])
def test_a_walker_that_is_none(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    layers = [
        (np.zeros((3, 4), np.float32), np.zeros(4, np.float32)),
        (np.zeros((4, 2), np.float32), np.zeros(2, "f4")),
    ]
    if damage == "dtype":
        layers[0] = (np.zeros((3, 4), np.int32), layers[0][1])
    if damage == "shapes":
        layers[1] = (np.zeros((5, 2), np.float32), layers[1][1])
    if damage == "none":
        assert cli.run(["--help"]) == 0
    else:
        Walker(layers[: 0 if damage == "missing" else 2], {}).save(path)
    if damage == "header":
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="is no walker"):
        Walker.load(str(path))


# --- data ---


def array(entries, tmp_path, compression=zipfile.ZIP_STORED):
    return open_npz(npz(tmp_path / "a.npz", entries, compression), ["a"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a.npy": npy((2**40,), b"\0" * 24)}, "says that it has the shape"),
        ({"a.npy": npy((10**9,), b"\0" * 24)}, "says that it has the shape"),
        ({"a.npy": npy((1,), b"\0" * 24)}, "says that it has the shape"),
        ({"a.npy": npy((1,), b"\0" * 8, "|O")}, "holds pickled objects"),
        ({"a.npy": npy((1,), b"\0" * 8, [("x", "|O")])}, "holds pickled objects"),
        ({"a.npy": npy((1,), b"", "|V1000000000")}, "says that it has the shape"),
        ({"a.npy": b"\x93NUMPY\x03\x00" + b"\0" * 100}, "has version"),
        ({"a.npy": b"\x80\x04K\x01."}, "magic|EOF"),  # a pickle
    ],
)
def test_arrays_that_are_refused(tmp_path, entries, message, little_memory):
    with pytest.raises(UserError, match=f"cannot be read .*{message}"):
        array(entries, tmp_path)


def test_an_entry_without_the_suffix_does_not_slip_past_the_limit(tmp_path, monkeypatch):
    """NumPy reads `a` as well as `a.npy`, the former whole and whatever it is: only the latter is looked at."""
    monkeypatch.setattr(untrusted, "SIZE_LIMIT", 2**20)
    assert array({"a": b"\0" * 2**21}, tmp_path, zipfile.ZIP_DEFLATED) == {}


def test_dearer_compressions_are_refused(tmp_path):
    with pytest.raises(UserError, match="is compressed in a way that NumPy does not write"):
        array({"a.npy": npy((3,), b"\0" * 24)}, tmp_path, zipfile.ZIP_BZIP2)


def test_a_zip_with_a_huge_table_of_contents(tmp_path):
    path = npz(tmp_path / "a.npz", {f"{number:0200d}": b"" for number in range(5000)})
    with pytest.raises(UserError, match="its table of contents has 1,230,000 bytes"):
        open_npz(path, ["a"])


def test_a_folder_of_bombs_counts_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "SIZE_LIMIT", 2**20)
    rows = 10_000
    for number in range(9):
        np.savez_compressed(
            tmp_path / f"{number}.npz",
            observations=np.zeros((rows + 1, 1)), actions=np.zeros((rows, 1)), rewards=np.zeros(rows),
        )  # fmt: skip
    with pytest.raises(UserError, match=r"4\.npz would unpack to"):
        open_dataset(str(tmp_path), "none")


def test_memory_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    assert untrusted.size_limit() == 1000 * 1024  # reading takes 3.6 times the size of a file
    with pytest.raises(UserError, match=r"would unpack to .* reading takes 4 times as much memory"):
        untrusted.check_size(1001 * 1024, "it")


def hdf5(tmp_path, rewards):
    """A D4RL file whose rewards are made by a function of the open file."""
    path = write_hdf5(tmp_path / "a.hdf5", flat(make_episodes([(3, True)]), with_next=True))
    with h5py.File(path, "a") as file:
        del file["rewards"]
        rewards(file)
    return path


def external_link(file):
    file["rewards"] = h5py.ExternalLink("/etc/passwd", "/rewards")


def soft_link(file):
    file["rewards"] = h5py.SoftLink("/observations")


def raw_file(file):
    file.create_dataset("rewards", (3,), "u1", external=[("/etc/passwd", 0, 3)])


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "rewards", (3,))
    file.create_virtual_dataset("rewards", layout)


def unwritten(file):
    file.create_dataset("rewards", (2**28,), "f8", chunks=(1024,), compression="gzip")


def unwritten_in_one_piece(file):
    file.create_dataset("rewards", (2**28,), "f8")


def pickled(file):
    file.create_dataset("rewards", data=np.array(["a", "b", "c"], dtype=h5py.string_dtype()))


def twice_packed(file):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((3,))
    plan.set_deflate(9)
    plan.set_deflate(9)
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(file.id, b"rewards", h5py.h5t.NATIVE_FLOAT, space, plan)


def chunk_bomb(file):
    """A small chunk that inflates to a GiB: what is stored of it is larger than what may be unpacked."""
    found = file.create_dataset("rewards", (3,), "f4", chunks=(2**14,), maxshape=(None,), compression="gzip")
    found.id.write_direct_chunk((0,), b"\0" * 2**20)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (external_link, "is a link to somewhere else"),
        (soft_link, "is a link to somewhere else"),
        (raw_file, "lies in other files"),
        (virtual, "lies in other files"),
        (pickled, "holds object, not numbers"),
        (twice_packed, "is packed with the HDF5 filters"),
        (chunk_bomb, "has a packed piece of 1,048,576 bytes, which could unpack to anything"),
    ],
)
def test_hdf5_that_is_refused(tmp_path, attack, message, little_memory, monkeypatch):
    monkeypatch.setattr(untrusted, "SIZE_LIMIT", 2**29)
    path = hdf5(tmp_path, attack)
    with pytest.raises(UserError, match=f"rewards {message}"):
        d4rl.read(path)


@pytest.mark.parametrize("attack", [unwritten, unwritten_in_one_piece])
def test_hdf5_that_nobody_wrote(tmp_path, attack, little_memory, monkeypatch):
    monkeypatch.setattr(untrusted, "SIZE_LIMIT", 2**29)
    path = hdf5(tmp_path, attack)
    with pytest.raises(UserError, match=r"a\.hdf5 would unpack to 2\.0 GiB"):
        d4rl.read(path)


@pytest.fixture
def minari_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    write_minari("test/tiny-v0", make_episodes([(2, True), (3, False)]))
    return tmp_path / "store" / "test" / "tiny-v0"


BOX = {"type": "Box", "dtype": "float32", "low": [-1.0, -1.0], "high": [1.0, 1.0]}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_space": json.dumps(BOX | {"shape": [10**6, 10**6], "low": 0.0, "high": 0.0})}, "a Box of sizes"),
        ({"observation_space": json.dumps({"type": "Discrete", "n": 10**12, "start": 0})}, "a Discrete of sizes"),
        ({"observation_space": json.dumps({"type": "Graph"})}, "of the space 'Graph': floq reads Box"),
        ({"observation_space": nested(1000)}, "nested more than 32 deep"),
        ({"observation_space": "[]"}, "a space is no JSON object"),
        ({"total_episodes": 10**12}, None),  # there are two, whatever it says
        ({"total_episodes": -1}, "says that it has -1 episodes"),
        ({"data_format": "arrow"}, "is stored as 'arrow', floq reads Minari's hdf5"),
    ],
)
def test_minari_metadata_that_are_refused(minari_set, changes, message, little_memory):
    edit_json(minari_set / "data" / "metadata.json", **changes)
    if message is None:
        assert (~read_minari(minari_set).data.ends).sum() == 5
        return
    with pytest.raises(UserError, match=message):
        read_minari(minari_set)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_minari_episodes_that_are_links(minari_set):
    """One large episode, linked to a thousand times, would unpack to a thousand."""
    with h5py.File(minari_set / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.SoftLink("/episode_0")
    with pytest.raises(UserError, match="episode_1 is missing, or no group"):
        read_minari(minari_set)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_minari_episodes_that_are_one_and_the_same(minari_set, monkeypatch):
    with h5py.File(minari_set / "data" / "main_data.hdf5", "a") as file:
        for number in range(2, 100):
            file[f"episode_{number}"] = file["episode_0"]
    edit_json(minari_set / "data" / "metadata.json", total_episodes=100)
    assert (~read_minari(minari_set).data.ends).sum() == 2 * 99 + 3
    monkeypatch.setattr(untrusted, "SIZE_LIMIT", 2000)
    with pytest.raises(UserError, match="would unpack to"):
        read_minari(minari_set)


def test_random_play_of_a_stranger(stranger):
    names = [f"{part}_{name}" for part in ("train", "validation") for name in ("observations", "actions")]
    names += [f"{part}_{name}" for part in ("train", "validation") for name in ("rewards", "masks", "ends")]
    good = {n: np.zeros((4, 2) if n.endswith(("observations", "actions")) else 4, np.float32) for n in names}
    good |= {name: np.arange(4) == 3 for name in names if name.endswith("ends")}
    run = Run.open(stranger)
    np.savez(stranger / "random.npz", **good)
    assert _kept(run) is not None
    for odd in (
        {"train_rewards": np.zeros(3)}, {"train_actions": np.zeros(4)}, {"validation_ends": np.zeros(4, bool)},
        {"train_observations": np.full((4, 2), np.nan)}, {"train_rewards": np.array(["a"] * 4)},
    ):  # fmt: skip
        np.savez(stranger / "random.npz", **(good | odd))
        with pytest.raises(UserError, match=r"random\.npz"):
            _kept(run)


@pytest.mark.parametrize("text", ["step,a\n1,x\n", "step,a\n1\n2,3\n", "step\n\x00\n", "\xff", "a" * 200_000 + "\n1\n"])
def test_tables_that_are_none(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"a\.csv is damaged"):
        read_csv(tmp_path / "a.csv")


# --- what is shown ---


def test_what_steers_a_terminal_is_written_out(stranger, tmp_path, capsys):
    assert printable(f"a{ESCAPE}b\ud800\n") == "a\\x1b]0;owned\\x07b\\ud800\n"
    display = Display()
    display.note(f"[bold]{ESCAPE}")
    display.table(f"[/]{ESCAPE}", {f"[red]{ESCAPE}": f"[link=x]{ESCAPE}"})
    display.columns("[/]", ("a", "b"), [("[/]", ESCAPE)])
    assert cli.run([f"{ESCAPE}"]) == 2
    edit_json(stranger / "config.json", env_name=f"maze{ESCAPE}", versions={"a": ESCAPE}, run_group=f"g{ESCAPE}")
    for command in ("report", "watch"):
        flags = ["--once"] if command == "watch" else [f"--out={tmp_path / 'r.md'}"]
        assert cli.run([command, str(stranger), *flags]) == 0
    with pytest.raises(UserError):
        evaluate_run(str(stranger), show=False)
    said = capsys.readouterr()
    written = said.out + said.err + (tmp_path / "r.md").read_text()
    assert "\x1b" not in written
    assert "\x07" not in written
    assert "[bold]" in written
    assert "[link=x]" in written


MARKUP = '"></script></title><script>alert(1)</script><img src=x onerror=alert(2)>'


class Elements(HTMLParser):
    """What a browser would make of a page: its elements and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_a_page_has_no_script_of_a_stranger(tmp_path):
    """Names of tasks, groups, settings, data and packages are texts on the page and in charts, whatever they say."""
    for number in range(2):
        make_run(
            tmp_path / "exp", f"maze{MARKUP}", number, run_group=f"g{number}{MARKUP}".replace("/", "-"),
            agent={"critic": f"floq{MARKUP}", f"alpha{MARKUP}": f"{number}{MARKUP}"}, protocol=f"p{MARKUP}",
            versions={f"jax{MARKUP}": MARKUP}, data={"provenance": MARKUP}, **{f"x{MARKUP}": number},
        )  # fmt: skip
    assert cli.run(["report", str(tmp_path / "exp"), f"--out={tmp_path / 'r.html'}"]) == 0
    text = (tmp_path / "r.html").read_text()
    ours = Elements(text)
    assert "alert(1)" in text
    assert "img" not in ours.tags
    assert not [name for name in ours.attributes if name.startswith("on")]
    assert "</script><script>alert" not in text
    make_run(tmp_path / "plain", "maze", 0)
    make_run(tmp_path / "plain", "maze", 1, run_group="other")
    assert cli.run(["report", str(tmp_path / "plain"), f"--out={tmp_path / 'p.html'}"]) == 0
    assert ours.tags.count("script") == Elements((tmp_path / "p.html").read_text()).tags.count("script")


def test_a_table_has_no_formula_of_a_stranger(tmp_path):
    attack = '=HYPERLINK("http://x","y")'
    make_run(tmp_path / "exp", run_group=attack.replace("/", "-"), agent={"+cmd": "-1+1"}, **{"@x": "=1"})
    assert cli.run(["report", str(tmp_path / "exp"), f"--out={tmp_path / 'r.csv'}"]) == 0
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.reader(file))
    cells = [cell for row in rows for cell in row]
    assert {"'@x", "'=1", "'-1+1"} <= set(cells)
    assert [cell for cell in cells if cell[:1] in "=+@" and cell] == []
    assert rows[1][rows[0].index("episode_return")] == "-100.0"  # numbers stay numbers


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_names_are_no_mathematics_in_figures(tmp_path):
    make_run(tmp_path / "exp", "maze $\\frac{", run_group="$\\badcommand$")
    assert cli.run(["report", str(tmp_path / "exp"), f"--out={tmp_path / 'r.png'}"]) == 0


def test_a_run_that_diverged_has_a_summary_that_is_json(stranger):
    Run.open(stranger).write_json("summary.json", {"a": float("nan"), "b": {"c": float("inf")}, "d": 0.5})
    assert Run.open(stranger).summary == {"a": None, "b": {"c": None}, "d": 0.5}


@pytest.mark.parametrize("text", ["[]", '{"step": "1"}', "{}", "NaN", "[1]", '[{"step": null}]', "[" * 5000])
def test_notes_on_divergence_of_a_stranger(stranger, text):
    for name in ("diverged", "rewinds"):
        (stranger / f"{name}.json").write_text(text)
        if (name, text) != ("rewinds", "[]"):
            with pytest.raises(UserError, match=f"{name}.json is damaged"):
                getattr(Run.open(stranger), name)
    assert cli.run(["report", str(stranger), f"--out={stranger.parent / 'r.md'}"]) == 0
