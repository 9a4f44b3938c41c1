"""Downloads, from a server of our own: both files whole, or none at all."""

import contextlib
import http.server
import threading
import urllib.error

import numpy as np
import pytest

from floq import cli
from floq.data.formats import ogbench as download_module
from floq.data.formats.ogbench import download, load_tasks
from floq.utils.errors import UserError
from floq.utils.files import lock_folder

NAME = "cube-single-play-v0"


class MetricSink(http.server.BaseHTTPRequestHandler):
    """Serves what `files` says; a file in `broken` ends in the middle, though its whole length was promised."""

    files: dict[str, bytes]
    broken: set[str]

    def do_GET(self):
        body = self.files.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path in self.broken else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror():
    """The address of a running mirror, and its handler."""
    handler = type("Handler", (MetricSink,), {"files": {}, "broken": set()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/data", handler
        server.shutdown()
        thread.join()


def fill(handler):
    handler.files = {f"/data/{NAME}.npz": b"a" * 3_000_000, f"/data/{NAME}-val.npz": b"b" * 1000}


def test_both_files_arrive_whole_and_progress_is_shown(mirror, tmp_path):
    address, handler = mirror
    fill(handler)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / f"{NAME}.json").write_text("{}")
    seen = []

    @contextlib.contextmanager
    def bar(name, total):
        yield lambda done: seen.append((name, done, total))

    download(NAME, tmp_path / "new", address + "/", bar)
    assert {path.name: path.stat().st_size for path in (tmp_path / "new").iterdir()} == {
        f"{NAME}.npz": 3_000_000, f"{NAME}-val.npz": 1000
    }  # fmt: skip
    assert (f"{NAME}.npz", 2, 2) in seen
    download(NAME, tmp_path / "deeper" / "still", (tmp_path / "new").as_uri())
    assert (tmp_path / "deeper" / "still" / f"{NAME}.npz").read_bytes() == handler.files[f"/data/{NAME}.npz"]


@pytest.mark.parametrize("file", [f"{NAME}.npz", f"{NAME}-val.npz"])
@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_one_file_without_the_other_is_none(mirror, tmp_path, file, fault):
    address, handler = mirror
    fill(handler)
    if fault == "missing":
        del handler.files[f"/data/{file}"]
    else:
        handler.broken = {f"/data/{file}"}
    reason = "Not Found" if fault == "missing" else "broke off after"
    with pytest.raises(UserError, match=f"could not be downloaded from {address} .*{reason}.*floq data collect {NAME}"):
        download(NAME, tmp_path / "new", address)
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_downloads_a_dataset(mirror, tmp_path):
    address, handler = mirror
    fill(handler)
    (tmp_path / f".{NAME}.download").mkdir()
    with (
        lock_folder(tmp_path / f".{NAME}.download", "never"),
        pytest.raises(UserError, match=f"another process is downloading {NAME} into"),
    ):
        download(NAME, tmp_path, address)
    download(NAME, tmp_path, address)
    assert {path.name for path in tmp_path.iterdir()} == {f"{NAME}.npz", f"{NAME}-val.npz"}


def test_a_disk_that_is_too_small(mirror, tmp_path, monkeypatch):
    address, handler = mirror
    fill(handler)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"the disk 0\.0 GB left"):
        download(NAME, tmp_path / "new", address)
    assert list(tmp_path.iterdir()) == []


def test_training_downloads_from_the_mirror(mirror, dataset_dir, tmp_path):
    address, handler = mirror
    demo = "pointmaze-medium-navigate-v0"
    handler.files = {f"/data/{p.name}": p.read_bytes() for p in dataset_dir.glob("*.npz")}
    flags = [f"--dataset_mirror={address}", f"--dataset_dir={tmp_path}/data", f"--save_dir={tmp_path}"]
    wrong = ["--agent=fql", "--offline_steps=1", "--env_name=pointmaze-large-navigate-singletask-v0"]
    assert cli.run(["train", *wrong, *flags]) == 2  # not there; and nothing is left of it
    assert list(tmp_path.iterdir()) == []
    from floq.runs.config import configure
    from floq.runs.run_data import load_data
    from floq.utils.progress import Display

    config = configure(dataset_mirror=address, dataset_dir=str(tmp_path / "data"))
    assert len(load_data(config, Display(show=False)).train) == 3000
    assert (tmp_path / "data" / f"{demo}.npz").exists()


@pytest.fixture
def no_server(monkeypatch):
    """A machine without a network."""

    def refuse(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(download_module.urllib.request, "urlopen", refuse)


def test_a_missing_dataset_is_one_line_and_leaves_nothing_behind(no_server, tmp_path, capsys):
    folders = [f"--dataset_dir={tmp_path}/a/data", f"--save_dir={tmp_path}/exp"]
    assert cli.run(["train", "--env_name=pointmaze-large-navigate-singletask-v0", *folders]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/a/data/pointmaze-large-navigate-v0.npz is missing" in line
    assert "make it here with `floq data collect pointmaze-large-navigate-v0`, or name a --dataset_mirror" in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dataset_names_the_file_the_source_and_the_remedy(no_server, tmp_path):
    with pytest.raises(UserError) as error:
        load_tasks(["pointmaze-large-navigate-singletask-v0"], tmp_path)
    message = str(error.value)
    assert str(tmp_path / "pointmaze-large-navigate-v0.npz") in message
    assert "no route to host" in message
    assert "floq data collect pointmaze-large-navigate-v0" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="floq has no expert that could make it"):
        load_tasks(["humanoidmaze-large-navigate-singletask-v0"], tmp_path)


@pytest.mark.parametrize("mirror_address", ["example.org/data", "ftp://example.org", ""])
def test_an_address_that_is_none(tmp_path, mirror_address):
    with pytest.raises(UserError, match="give an address that begins with https, http or file"):
        download(NAME, tmp_path / "new", mirror_address)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_not_needed_to_fetch(tmp_path):
    """A mirror on a shared disk: what is there is copied as it is, and opening it is where damage shows."""
    np.savez(tmp_path / f"{NAME}.npz", a=np.zeros(1))
    (tmp_path / f"{NAME}-val.npz").write_bytes(b"")
    download(NAME, tmp_path / "new", tmp_path.as_uri())
    with pytest.raises(UserError, match="lacks observations, actions, terminals"):
        load_tasks(["cube-single-play-singletask-v0"], tmp_path / "new")
