"""The reader of exported policies: what it takes, what it needs, and that a stranger's files do no harm."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exporting import PAIRS, make_agent, make_exportable, written
from helpers import ACT, OBS
from hypothesis import given, settings
from hypothesis import strategies as st

from floq.export import exported
from floq.export.exported import Policy, PolicyError, load_policy
from floq.export.formats import write_exported

# --- acting ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy that needs noise."""
    folder = tmp_path_factory.mktemp("policy")
    written(folder, make_agent(*PAIRS["fql"]))
    return folder


def test_noise_is_drawn_or_given(folder):
    policy, obs = load_policy(folder), np.ones(OBS)
    noise = policy.draw(np.random.default_rng(3))
    assert [(x.shape, x.dtype) for x in noise] == [((ACT,), np.float32)]
    np.testing.assert_array_equal(policy.act(obs, np.random.default_rng(3)), policy.act(obs, noise=noise))
    assert (policy.draw(np.random.default_rng(4))[0] != noise[0]).any()
    assert policy.about["step"] == 3


@pytest.mark.parametrize(
    ("obs", "noise", "says"),
    [
        (np.ones(OBS + 1), None, r"has shape \(4,\); this policy takes \(3,\)"),
        ([1.0, np.nan, 1.0], None, r"not finite, the first at \[1\]"),
        ([1e300, 1.0, 1.0], None, "not finite"),
        ("abc", None, "not an array of numbers"),
        (np.ones(OBS), [], "0 arrays of noise were given; this policy takes 1"),
        (np.ones(OBS), [np.ones(5)], "noise 0 has shape"),
        (np.full(OBS, 3e38), None, "the action is not finite"),
    ],
)
def test_wrong_observations_and_noise(folder, obs, noise, says):
    with pytest.raises(ValueError, match=says):
        load_policy(folder).act(obs, noise=noise)


def test_a_controller_hands_out_chunks(tmp_path):
    """Three actions of two numbers at once: the policy is asked in every third step, and anew after a reset."""
    agent = make_agent(*PAIRS["fql"], action_dim=3 * ACT)
    write_exported("numpy", make_exportable(agent, chunk=3), tmp_path)
    policy = load_policy(tmp_path)
    rng = np.random.default_rng(7)
    first, second = (policy.act(obs, rng).reshape(3, ACT) for obs in (np.zeros(OBS), np.full(OBS, 3.0)))
    controller = policy.controller(seed=7)
    got = [controller(np.full(OBS, float(step))) for step in range(4)]
    np.testing.assert_array_equal(got, [*first, second[0]])
    controller.reset()
    assert (controller(np.zeros(OBS)) != second[1]).any()


def test_the_reader_needs_numpy_alone(folder):
    """The copy beside the policy, and floq's own, in a process that says what it imported."""
    code = (
        "import sys; sys.path.insert(0, {path!r}); from {module} import load_policy; import numpy as np\n"
        "print(load_policy({folder!r}).act(np.ones({size}), np.random.default_rng(0)).tolist())\n"
        "print([name for name in ('jax', 'safetensors', 'scipy', 'equinox', 'onnx') if name in sys.modules])"
    )
    own = Path(exported.__file__).parents[1]
    for path, module in ((folder, "read_policy"), (own, "floq.export.exported")):
        command = code.format(path=str(path), module=module, folder=str(folder), size=OBS)
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        action, imported = map(json.loads, done.stdout.replace("'", '"').splitlines())
        assert imported == []
        np.testing.assert_array_equal(action, load_policy(folder).act(np.ones(OBS), np.random.default_rng(0)))
    shown = subprocess.run([sys.executable, folder / "read_policy.py"], capture_output=True, text=True, check=True)
    assert "ms per action" in shown.stdout


def test_the_example_of_the_documentation(folder, tmp_path):
    """As it stands there, but for fewer steps without waiting."""
    shutil.copytree(folder, tmp_path / "policy")
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    assert "PERIOD = 0.02" in code
    assert "range(100)" in code
    code = code.replace("PERIOD = 0.02", "PERIOD = 0.0").replace("range(100)", "range(3)")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'policy')\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [[float(x) for x in line.strip("[]").split()] for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert all(abs(a) <= 2 and abs(b) <= 0.5 for a, b in rows)


# --- a stranger's files ---


def reread(folder, tmp_path, document=None, tensors=None):
    """Load the policy with one of its files replaced."""
    stranger = tmp_path / "stranger"
    shutil.copytree(folder, stranger, dirs_exist_ok=True)
    if document is not None:
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        (stranger / "policy.json").write_bytes(text)
    if tensors is not None:
        (stranger / "policy.safetensors").write_bytes(tensors)
    return load_policy(stranger)


def with_program(folder, *lines, **changes):
    return json.loads((folder / "policy.json").read_text()) | {"program": [*lines]} | changes


LINES = {
    "unknown operation": [["eval", ["observation"], []]],
    "KeyError|'later'": [["tanh", ["later"], []]],
    "line 0 of its program: 1": [["tanh", [1], []], ["tanh", ["observation"], []]],
    "wrong number of inputs": [["add", ["observation"], []]],
    "shapes do not fit": [["reshape", ["observation"], [4]]],
    "it would take more than": [["broadcast", ["observation"], [2**30, 3]]],
    "is no list": [["tanh", "observation", []]],
    "makes Type": [["tanh", ["observation"], []]],
    "out of range": [["slice", ["observation"], [[0, 9]]]],
    "whole number": [["reshape", ["observation"], [-3]]],
    "not 1 to": [],
    "mixed dtypes": [["cast", ["observation"], ["int32"]], ["add", [0, "observation"], []]],
    "unknown dtype": [["cast", ["observation"], ["object"]]],
    "not a permutation": [["transpose", ["observation"], [0, 0]]],
    "unhashable": [["tanh", [["observation"]], []]],
    "more than 8 dimensions": [["reshape", ["observation"], [1] * 8 + [3]]],
}


@pytest.mark.parametrize("says", LINES)
def test_a_wrong_program_is_refused(says, folder, tmp_path):
    with pytest.raises(PolicyError, match=says):
        reread(folder, tmp_path, with_program(folder, *LINES[says]))


def test_memory_is_reckoned_before_it_is_taken(folder, tmp_path):
    """Each array is below the limit, all that live at once are not: refused. One after another they fit."""
    grown = [["broadcast", ["observation"], [2**18, 3]]] * 8
    summed = [["concatenate", list(range(8)), [0]], ["max", [8], [0]], ["slice", [9], [[0, 2]]]]
    with pytest.raises(PolicyError, match=r"more than 0\.0234 GiB of memory"):
        load_policy(_copied(folder, tmp_path, with_program(folder, *grown, *summed)), memory=24 * 2**20)
    chain = [["broadcast", ["observation"], [2**18, 3]], *(["tanh", [i], []] for i in range(20)), ["max", [20], [0]]]
    policy = load_policy(_copied(folder, tmp_path, with_program(folder, *chain, ["slice", [21], [[0, 2]]])), 24 * 2**20)
    assert policy.act(np.ones(OBS)).shape == (2,)


def _copied(folder, tmp_path, document):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "policy.json").write_text(json.dumps(document))
    return tmp_path


def header_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def file_of(header, body):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tampered_tensors(folder):
    """Files that are wrong in one way each."""
    content = (folder / "policy.safetensors").read_bytes()
    header, body = header_of(content)
    name = next(iter(header))
    change = lambda **entry: file_of(header | {name: header[name] | entry}, body)  # noqa: E731
    begin, end = header[name]["data_offsets"]
    return {
        "empty": b"",
        "cut off": content[:-1],
        "trailing": content + b"\0",
        "a header beyond the file": (2**62).to_bytes(8, "little") + content[8:],
        "an object": change(dtype="O"),
        "no dtype": change(dtype=["F32"]),
        "a huge shape": change(shape=[2**60, 2**60]),
        "a negative shape": change(shape=[-1]),
        "overlapping": change(data_offsets=[begin + 4, end]),
        "beyond": change(data_offsets=[begin, end + 4]),
        "no header": file_of([], body),
        "no entries": file_of({name: None}, body),
        "NaN": b"\x05\0\0\0\0\0\0\0" + b'{"":N' + body,
        "an input's name": file_of({("observation" if n == name else n): entry for n, entry in header.items()}, body),
        "deep": file_of({}, b"")[:8] + b"[" * 200_000,
    }


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "cut off", "trailing", "a header beyond the file", "an object", "no dtype", "a huge shape"),
        *("a negative shape", "overlapping", "beyond", "no header", "no entries", "NaN", "an input's name", "deep"),
    ],
)
def test_wrong_tensors_are_refused(kind, folder, tmp_path):
    with pytest.raises(PolicyError, match="holds no policy that can be loaded"):
        reread(folder, tmp_path, tensors=tampered_tensors(folder)[kind])


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"{", "damaged JSON"),
        (b"\xff", "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
        (b'{"format": NaN}', "its format is not"),
        (b"[]", "is no dict"),
        (b"{}", "its format is not"),
        (b'{"format": "floq policy", "version": 2}', "its version is 2, not 1"),
        (b'{"format": "floq policy", "version": 1, "program": []}', "sizes"),
    ],
)
def test_a_wrong_document_is_refused(document, says, folder, tmp_path):
    with pytest.raises(PolicyError, match=says):
        reread(folder, tmp_path, document)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(PolicyError, match=r"there is no file policy\.json"):
        load_policy(tmp_path)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_damage_is_a_policy_error_or_harmless(folder, data):
    """Bytes and words replaced at random: the reader says no, or what it loads acts or says no."""
    name = data.draw(st.sampled_from(["policy.json", "policy.safetensors"]))
    files = {file: (folder / file).read_bytes() for file in ("policy.json", "policy.safetensors")}
    content = bytearray(files[name])
    header = len(content) if name == "policy.json" else 8 + int.from_bytes(content[:8], "little")
    words = [b"0", b"-1", b"9" * 30, b"1e999", b"null", b"[]", b"{}", b'"x"', b"true", b"[[", b'"observation"', b""]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header))
        content[at : at + data.draw(st.integers(0, 12))] = data.draw(st.sampled_from(words) | st.binary(max_size=4))
    files[name] = bytes(content)
    try:
        document = exported._of(exported._json(files["policy.json"]), dict, "the file")
        policy = Policy(document, exported._tensors(files["policy.safetensors"]), 2**24)
    except PolicyError:
        return
    try:
        policy.act(np.zeros(policy.observation_size))
    except ValueError:
        return
