"""Load a policy that `floq export` wrote, and act with it. This file needs NumPy alone, and may be copied anywhere.

    policy = load_policy("RUN_DIR/export")
    action = policy.act(observation, np.random.default_rng(0))

`policy.json` holds a list of operations on arrays, `policy.safetensors` the arrays. Neither is run as code: every
operation is one of `OPERATIONS`, and the shape and size of all results are known before the first array is allocated.
So an untrusted policy can return wrong actions or be slow, but cannot run code. An untrusted copy of this file can:
take it from a floq that you trust.
"""

import json
import math
import sys
import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PROGRAM, TENSORS = "policy.json", "policy.safetensors"
FORMAT, VERSION = "floq policy", 1
MAX_JSON, MAX_OPERATIONS, MAX_DIMS = 2**25, 200_000, 8
MEMORY = 2**31  # default limit for the arrays of a policy, in bytes
DTYPES = {"F32": "float32", "I32": "int32", "BOOL": "bool"}  # names in safetensors and in NumPy


class PolicyError(ValueError):
    """The files are not a policy that can be loaded; the message is one line."""


class Type(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Operation(NamedTuple):
    """An operation: the rule for the type of its result, and its function of inputs followed by constant parameters."""

    inputs: int | None  # number of inputs; None for any number from 1
    types: "TypeRule"
    function: Callable[..., Any]


# --- Policy ---


class Policy:
    """A policy that acts for one observation at a time: `observation_size` and `action_size` are dimensions,
    `action_chunk` is the number of actions per call, `noise` the distribution and shape of each array of noise for a
    call, `about` the origin of the policy."""

    def __init__(self, document: Mapping[str, Any], tensors: Mapping[str, np.ndarray], memory: int = MEMORY):
        """Build a policy from the contents of its two files, which `load_policy` reads. Raises PolicyError."""
        _need(document.get("format") == FORMAT, f"its format is not {FORMAT!r}")
        _need(document.get("version") == VERSION, f"its version is {document.get('version')!r}, not {VERSION}")
        _need("program" in document, "it has no program: it describes a policy in another format")
        sizes = [document.get(name, 0) for name in ("observation_size", "action_size", "action_chunk")]
        _need(all(type(size) is int and 0 < size < 2**24 for size in sizes), "its sizes are not whole numbers above 0")
        self.observation_size, self.action_size, self.action_chunk = sizes
        parts = _of(document.get("observation_parts", {}), dict, "observation_parts")
        self.observation_parts = {str(name): _shape(shape) for name, shape in parts.items()}
        fits = sum(math.prod(shape) for shape in self.observation_parts.values()) == self.observation_size
        _need(not parts or fits, "its observation_parts are not those of an observation")
        self.about: dict[str, Any] = dict(_of(document.get("about", {}), dict, "about"))
        self.noise = [_noise(entry) for entry in _of(document.get("noise"), list, "noise")]
        self._rng = np.random.default_rng()

        types = {name: Type(array.shape, str(array.dtype)) for name, array in tensors.items()}
        inputs = {"observation": Type((self.observation_size,), "float32")}
        inputs |= {f"noise.{i}": Type(shape, "float32") for i, (_, shape) in enumerate(self.noise)}
        _need(not types.keys() & inputs.keys(), "a tensor has the name of an input")
        self._tensors = list(tensors.values())
        self._steps, made = _compile(_of(document["program"], list, "program"), types | inputs, memory)
        wanted = Type((self.action_size * self.action_chunk,), "float32")
        _need(made == wanted, f"its program makes {made}, and not an action, {wanted}")

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw the noise for one call of `act`."""
        draws = {"normal": rng.standard_normal, "uniform": rng.random}
        return [draws[distribution](shape, dtype=np.float32) for distribution, shape in self.noise]

    def act(
        self,
        observation: Any,
        rng: np.random.Generator | None = None,
        noise: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return one action in [-1, 1], or `action_chunk` of them, concatenated.

        Args:
            observation: `observation_size` numbers, as the environment returned them in training; or the parts in
                `observation_parts` by name, or an image alone, with pixels from 0 to 255.
            rng: draws the noise; by default a generator with a random seed, made when the policy was loaded.
            noise: the noise itself, with the shapes in `self.noise`, for an action that can be reproduced exactly.

        Raises:
            ValueError: the observation or the noise has another shape, or numbers in it or the action are not finite.
        """
        with np.errstate(all="ignore"):
            values: list[Any] = [*self._tensors, self._flat(observation)]
            if noise is None:
                values += self.draw(self._rng if rng is None else rng)
            elif len(noise) != len(self.noise):
                raise ValueError(f"{len(noise)} arrays of noise were given; this policy takes {len(self.noise)}")
            else:
                values += [_array(f"noise {i}", noise[i], shape) for i, (_, shape) in enumerate(self.noise)]
            for function, slots, parameters, dead in self._steps:
                values.append(function(*[values[slot] for slot in slots], *parameters))
                for slot in dead:
                    values[slot] = None
        action = np.array(values[-1])
        if np.isfinite(action).all():
            return action
        raise ValueError("the action is not finite: is the observation far from all that the policy was trained on?")

    def _flat(self, observation: Any) -> np.ndarray:
        """Return an observation as numbers, those of its parts end to end."""
        parts = self.observation_parts
        if len(parts) == 1 and np.shape(observation) in parts.values():
            observation = dict.fromkeys(parts, observation)
        if parts and isinstance(observation, Mapping):
            if missing := parts.keys() ^ observation.keys():
                raise ValueError(f"{', '.join(map(str, missing))} is missing in the observation, or too much")
            flat = [_array(f"the part {name}", observation[name], shape).ravel() for name, shape in parts.items()]
            return np.concatenate(flat)
        return _array("the observation", observation, (self.observation_size,))

    def controller(self, seed: int | None = None) -> "Controller":
        """Return a function for a control loop, to be called once per step; see `Controller`."""
        return Controller(self, seed)


class Controller:
    """A function that returns one action per call. While a chunk of actions lasts, observations are ignored. Call
    `reset` at the start of an episode."""

    def __init__(self, policy: Policy, seed: int | None = None):
        self._policy, self._rng = policy, np.random.default_rng(seed)
        self._left: list[np.ndarray] = []

    def reset(self) -> None:
        """Discard the remaining actions of a chunk."""
        self._left = []

    def __call__(self, observation: Any) -> np.ndarray:
        """Return the next action, `action_size` numbers in [-1, 1]. Raises ValueError as `Policy.act` does."""
        if not self._left:
            chunk = self._policy.act(observation, self._rng)
            self._left = list(chunk.reshape(self._policy.action_chunk, self._policy.action_size))
        return self._left.pop(0)


def _array(what: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(given, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not an array of numbers") from error
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}; this policy takes {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} has numbers that are not finite, the first at {np.argwhere(~np.isfinite(array))[0]}")
    return array


# --- Operations ---


TypeRule = Callable[[list[Type], list[Any]], Type]


def _elementwise(*dtypes: str, result: str | None = None) -> TypeRule:
    def types(inputs: list[Type], parameters: list[Any]) -> Type:
        _need(not parameters and inputs[0].dtype in dtypes, "wrong parameters or dtype")
        _need(len({x.dtype for x in inputs}) == 1, "mixed dtypes")
        return Type(np.broadcast_shapes(*(x.shape for x in inputs)), result or inputs[0].dtype)

    return types


def _select(inputs: list[Type], parameters: list[Any]) -> Type:
    _need(inputs[0].dtype == "bool" and inputs[1].dtype == inputs[2].dtype and not parameters, "wrong dtypes")
    return Type(np.broadcast_shapes(*(x.shape for x in inputs)), inputs[1].dtype)


def _matmul(inputs: list[Type], parameters: list[Any]) -> Type:
    a, b = inputs
    _need(a.dtype == b.dtype == "float32" and not parameters, "wrong parameters or dtype")
    _need(len(b.shape) >= 2 and a.shape[-1:] == b.shape[-2:-1], "shapes do not fit")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return Type((*batch, *a.shape[-2:-1], *b.shape[-1:]), "float32")


def _reduction(result: str | None = None, max_axes: int = MAX_DIMS) -> TypeRule:
    def types(inputs: list[Type], parameters: list[Any]) -> Type:
        (x,), axes = inputs, _numbers(parameters, len(inputs[0].shape))
        _need(len(set(axes)) == len(axes) <= max_axes and axes and x.dtype == "float32", "wrong axes or dtype")
        _need(all(x.shape[axis] > 0 for axis in axes), "nothing to reduce")
        return Type(tuple(n for axis, n in enumerate(x.shape) if axis not in axes), result or x.dtype)

    return types


def _to_shape(fits: Callable[[tuple[int, ...], tuple[int, ...]], bool]) -> TypeRule:
    def types(inputs: list[Type], parameters: list[Any]) -> Type:
        _need(fits(inputs[0].shape, shape := _shape(parameters)), "shapes do not fit")
        return Type(shape, inputs[0].dtype)

    return types


def _transpose(inputs: list[Type], parameters: list[Any]) -> Type:
    shape = inputs[0].shape
    _need(sorted(_numbers(parameters, len(shape))) == list(range(len(shape))), "not a permutation")
    return Type(tuple(shape[axis] for axis in parameters), inputs[0].dtype)


def _concatenate(inputs: list[Type], parameters: list[Any]) -> Type:
    shape = inputs[0].shape
    _need(len(parameters) == 1 and len({x.dtype for x in inputs}) == 1, "wrong parameters or mixed dtypes")
    (axis,) = _numbers(parameters, len(shape))
    around = {(len(x.shape), x.shape[:axis], x.shape[axis + 1 :]) for x in inputs}
    _need(len(around) == 1, "shapes do not fit")
    return Type((*shape[:axis], sum(x.shape[axis] for x in inputs), *shape[axis + 1 :]), inputs[0].dtype)


def _slice(inputs: list[Type], parameters: list[Any]) -> Type:
    x, ranges = inputs[0], [_numbers(_of(pair, list, "a range")) for pair in parameters]
    _need(len(ranges) == len(x.shape) and all(len(pair) == 2 for pair in ranges), "a range for each axis is wanted")
    _need(all(a <= b <= n for (a, b), n in zip(ranges, x.shape, strict=True)), "out of range")
    return Type(tuple(b - a for a, b in ranges), x.dtype)


def _window(inputs: list[Type], parameters: list[Any]) -> Type:
    (x, *starts), sizes = inputs, _shape(parameters)
    _need(all(start == Type((), "int32") for start in starts), "starts are not whole numbers")
    _need(len(starts) == len(sizes) == len(x.shape), "shapes do not fit")
    _need(all(size <= n for size, n in zip(sizes, x.shape, strict=True)), "out of range")
    return Type(sizes, x.dtype)


def _cut_window(x: np.ndarray, *numbers: Any) -> np.ndarray:
    starts, sizes = numbers[: x.ndim], numbers[x.ndim :]
    first = [min(max(int(start), 0), n - size) for start, n, size in zip(starts, x.shape, sizes, strict=True)]
    return x[tuple(slice(a, a + size) for a, size in zip(first, sizes, strict=True))]


def _cast(inputs: list[Type], parameters: list[Any]) -> Type:
    _need(len(parameters) == 1 and parameters[0] in DTYPES.values(), "unknown dtype")
    return Type(inputs[0].shape, parameters[0])


_NODES = np.linspace(-6.0, 6.0, 3073)
_ERF = np.array([math.erf(x) for x in _NODES])
_SLOPE = 2.0 / math.sqrt(math.pi) * np.exp(-_NODES * _NODES)


def _erf(x: Any) -> np.ndarray:
    """Compute the error function within 1e-10: three terms of its Taylor series at the nearest node. NumPy lacks it."""
    x = np.clip(np.asarray(x, np.float64), -6.0, 6.0)
    nearest = np.rint(np.where(np.isnan(x), 0.0, x + 6.0) * 256.0).astype(np.int64)
    a = _NODES[nearest]
    h = x - a
    return (_ERF[nearest] + _SLOPE[nearest] * h * (1.0 - h * (a - h * (2.0 * a * a - 1.0) / 3.0))).astype(np.float32)


def _table(inputs: int, types: TypeRule, *functions: Callable[..., Any]) -> dict[str, Operation]:
    return {function.__name__: Operation(inputs, types, function) for function in functions}


_FLOAT, _NUMBER, _BOOL = _elementwise("float32"), _elementwise("float32", "int32"), _elementwise("bool")
_COMPARISON = _elementwise("float32", "int32", result="bool")
OPERATIONS: dict[str, Operation] = {
    **_table(1, _FLOAT, np.exp, np.log, np.log1p, np.tanh, np.cos, np.sin, np.sqrt),
    "erf": Operation(1, _FLOAT, _erf),
    **_table(1, _NUMBER, np.negative, np.absolute, np.sign),
    **_table(2, _NUMBER, np.add, np.subtract, np.multiply, np.maximum, np.minimum),
    "divide": Operation(2, _FLOAT, np.divide),
    **_table(2, _COMPARISON, np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal),
    **_table(1, _BOOL, np.logical_not),
    **_table(2, _BOOL, np.logical_and, np.logical_or),
    "select": Operation(3, _select, np.where),
    "matmul": Operation(2, _matmul, np.matmul),
    "sum": Operation(1, _reduction(), lambda x, *axes: np.add.reduce(x, axis=axes)),
    "max": Operation(1, _reduction(), lambda x, *axes: np.maximum.reduce(x, axis=axes)),
    "min": Operation(1, _reduction(), lambda x, *axes: np.minimum.reduce(x, axis=axes)),
    "argmax": Operation(1, _reduction("int32", max_axes=1), lambda x, axis: np.argmax(x, axis=axis).astype(np.int32)),
    "reshape": Operation(1, _to_shape(lambda a, b: math.prod(a) == math.prod(b)), lambda x, *to: np.reshape(x, to)),
    "broadcast": Operation(
        1, _to_shape(lambda a, b: np.broadcast_shapes(a, b) == b), lambda x, *to: np.broadcast_to(x, to)
    ),
    "transpose": Operation(1, _transpose, lambda x, *axes: np.transpose(x, axes)),
    "concatenate": Operation(None, _concatenate, lambda *xs: np.concatenate(xs[:-1], xs[-1])),
    "slice": Operation(1, _slice, lambda x, *ranges: x[tuple(slice(a, b) for a, b in ranges)]),
    "window": Operation(None, _window, _cut_window),
    "cast": Operation(1, _cast, lambda x, dtype: x.astype(dtype)),
}


def _compile(program: list[Any], types: dict[str, Type], memory: int) -> tuple[list[tuple[Any, ...]], Type]:
    """Check a program and return its lines, each as a function, the slots of its inputs, its parameters and the slots
    that are not read after it; and the type of the last line's result. A line is [operation, inputs, parameters]; an
    input is the name of a tensor, `observation` or `noise.i`, or the number of an earlier line."""
    _need(0 < len(program) <= MAX_OPERATIONS, f"its program has {len(program)} lines, not 1 to {MAX_OPERATIONS}")
    slots: dict[Any, int] = {name: slot for slot, name in enumerate(types)}
    known, last_read, lines = list(types.values()), {}, []
    for number, line in enumerate(program):
        try:
            name, inputs, parameters = _of(line, list, "a line")
            _need(type(name) is str and name in OPERATIONS, f"unknown operation {str(name)[:40]!r}")
            operation, own = OPERATIONS[name], [slots[x] for x in _of(inputs, list, "its inputs")]
            _need(len(own) > 0 and operation.inputs in (None, len(own)), "wrong number of inputs")
            made = operation.types([known[slot] for slot in own], _of(parameters, list, "its parameters"))
        except (ValueError, TypeError, KeyError) as error:
            raise PolicyError(f"line {number} of its program: {_short(error)}") from error
        lines.append((operation.function, own, parameters))
        last_read |= dict.fromkeys(own, number)
        slots[number] = len(known)
        known.append(made)
    steps, live = [], sum(x.bytes for x in types.values())
    for number, (function, own, parameters) in enumerate(lines):
        dead = [slot for slot in dict.fromkeys(own) if slot >= len(types) and last_read[slot] == number]
        live += known[len(types) + number].bytes
        _need(live <= memory, f"it would take more than {memory / 2**30:.3g} GiB of memory")
        live -= sum(known[slot].bytes for slot in dead)
        steps.append((function, own, parameters, dead))
    return steps, known[-1]


# --- Files ---


def load_policy(folder: str | Path, memory: int = MEMORY) -> Policy:
    """Load the policy that `floq export` wrote into a folder. Raises PolicyError if its files are missing or damaged,
    or if its arrays and the results of its operations would take more than `memory` bytes."""
    folder = Path(folder)
    try:
        document = _of(_json(_read(folder / PROGRAM, MAX_JSON)), dict, "the file")
        return Policy(document, _tensors(_read(folder / TENSORS, memory)), memory)
    except PolicyError as error:
        raise PolicyError(f"{folder} holds no policy that can be loaded: {error}") from error


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        _need(path.is_file(), f"there is no file {path.name}")
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise PolicyError(f"{path.name} cannot be read ({error.strerror})") from error
    _need(len(content) <= max_bytes, f"{path.name} is larger than {max_bytes:,} bytes")
    return content


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    """Parse a safetensors file: 8 bytes with the length of its JSON header, the header, concatenated arrays."""
    length = int.from_bytes(content[:8], "little")
    _need(len(content) >= 8 and length <= min(len(content) - 8, MAX_JSON), f"{TENSORS} is cut off")
    header, start = _of(_json(content[8 : 8 + length]), dict, "the header"), 8 + length
    header.pop("__metadata__", None)
    arrays, expected = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        _need(str(entry.get("dtype")) in DTYPES, f"tensor {name[:40]!r} has an unknown dtype")
        kind, (begin, end) = Type(_shape(entry.get("shape")), DTYPES[entry["dtype"]]), _offsets(entry)
        _need(begin == expected and end - begin == kind.bytes, f"tensor {name[:40]!r} does not lie where it should")
        _need(start + end <= len(content), f"{TENSORS} is cut off")
        flat = np.frombuffer(content, kind.dtype, math.prod(kind.shape), start + begin)
        arrays[name], expected = np.require(flat.reshape(kind.shape), requirements="A"), end
    _need(start + expected == len(content), f"{TENSORS} has bytes that belong to no tensor")
    return arrays


def _offsets(entry: Any) -> tuple[int, ...]:
    offsets = _numbers(_of(_of(entry, dict, "a tensor").get("data_offsets"), list, "the offsets"))
    _need(len(offsets) == 2, "a tensor has a begin and an end")
    return tuple(offsets)


def _noise(entry: Any) -> tuple[str, tuple[int, ...]]:
    """Return the distribution of an array of noise, and its shape."""
    entry = _of(entry, dict, "noise")
    _need(entry.get("distribution") in ("normal", "uniform"), "noise is neither normal nor uniform")
    return entry["distribution"], _shape(entry.get("shape"))


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"damaged JSON ({_short(error)})") from error


def _shape(given: Any) -> tuple[int, ...]:
    shape = tuple(_numbers(_of(given, list, "a shape")))
    _need(len(shape) <= MAX_DIMS, f"more than {MAX_DIMS} dimensions")
    return shape


def _numbers(given: list[Any], below: int = 2**40) -> list[int]:
    _need(all(type(n) is int and 0 <= n < below for n in given), "a number is no whole number, or out of range")
    return given


def _of(value: Any, kind: type, what: str) -> Any:
    _need(type(value) is kind, f"{what} is no {kind.__name__}")
    return value


def _need(condition: object, message: str) -> None:
    if not condition:
        raise PolicyError(message)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def main() -> None:
    """Print a policy's description and the time of an action on this machine: `python read_policy.py [FOLDER]`."""
    policy = load_policy(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    seconds = timeit.repeat(lambda: policy.act(np.zeros(policy.observation_size)), number=1, repeat=100)
    print("\n".join(f"{name:<12} {value}" for name, value in policy.about.items()))
    print(f"observation  {policy.observation_size} numbers")
    print(f"action       {policy.action_size} numbers, actions decided on at once: {policy.action_chunk}")
    print(f"time         {1000 * sorted(seconds)[50]:.3f} ms per action")


if __name__ == "__main__":
    main()
