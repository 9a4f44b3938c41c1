"""Translate a traced policy into the operations of `exported.py`, with constants folded."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from floq.export.exported import DTYPES, OPERATIONS, PolicyError, Type
from floq.export.trace import Interpreter, Noise, TracedPolicy
from floq.utils.errors import UserError


@dataclass(frozen=True)
class Program:
    """Computation of a policy, as stored in `policy.json` and `policy.safetensors`."""

    lines: list[list[Any]]  # [operation, inputs, parameters], see `floq.export.exported`
    tensors: dict[str, np.ndarray]
    noise: list[Noise]


class Constant(NamedTuple):
    """A constant, with a name if it is one of the policy's own arrays."""

    array: np.ndarray
    name: str | None = None

    @property
    def type(self) -> Type:
        """Shape and dtype of the array."""
        return Type(self.array.shape, str(self.array.dtype))


class Variable(NamedTuple):
    """A value that depends on the observation or the noise: the name of an input, or the number of a line."""

    name: str | int
    type: Type


Value: TypeAlias = Constant | Variable
HIDDEN = object()  # a random key, or a value computed from one without `normal` or `uniform`


def translate(traced: TracedPolicy) -> Program:
    """Return the program of a traced policy.

    Raises:
        UserError: it computes something for which there is no operation.
    """
    writer = _Writer()
    leaves = [Constant(np.asarray(leaf), name) for name, leaf in zip(traced.names, traced.leaves, strict=True)]
    observation = Variable("observation", Type(traced.obs_shape, "float32"))
    (action,) = writer.run(traced.program, [*leaves, observation, HIDDEN])
    if action is HIDDEN:
        raise UserError(
            "this actor draws random numbers with a function that floq export does not know: use jax.random.normal or "
            "uniform, or others that are made of them"
        )
    if isinstance(action.name, int):
        return _prune(writer, action.name)
    writer.line("reshape", [action], action.type.shape)  # of a constant or an input
    return _prune(writer, len(writer.lines) - 1)


@dataclass
class _Writer(Interpreter):
    """Interpreter that writes lines for primitives, and evaluates those whose inputs are all constants."""

    lines: list[tuple[str, list[Value], list[Any]]] = field(default_factory=list)
    noise: list[Noise] = field(default_factory=list)

    def draw(self, noise: Noise, sample: Any) -> Variable:
        self.noise.append(noise)
        return Variable(f"noise.{len(self.noise) - 1}", Type(noise.shape, "float32"))

    def primitive(self, equation: Any, inputs: list[Any]) -> list[Any]:
        if any(x is HIDDEN for x in inputs):
            return [HIDDEN] * len(equation.outvars)
        pairs = zip(equation.invars, inputs, strict=True)
        given: list[Any] = [
            x if isinstance(x, Constant | Variable) else Constant(np.asarray(x, atom.aval.dtype)) for atom, x in pairs
        ]
        if all(isinstance(x, Constant) for x in given):
            return [Constant(np.asarray(x)) for x in super().primitive(equation, [jnp.asarray(x.array) for x in given])]
        name = equation.primitive.name
        if name in UNCHANGED:
            return list(given)
        if name not in TRANSLATIONS:
            raise UserError(f"this policy computes {name!r}, for which exported policies have no operation")
        try:
            made = TRANSLATIONS[name](self, given, equation.params)
        except PolicyError as error:
            raise UserError(f"this policy computes {name!r} in a way that exported policies cannot: {error}") from error
        return made if isinstance(made, list) else [made]

    def line(self, operation: str, inputs: list[Any], parameters: Iterable[Any] = ()) -> Variable:
        """Write a line; the type of its result is given by the reader's own rule."""
        numbers = list(parameters)
        made = OPERATIONS[operation].types([x.type for x in inputs], numbers)
        if unsupported := {x.dtype for x in (made, *(x.type for x in inputs))} - set(DTYPES.values()):
            raise PolicyError(f"it is of dtype {unsupported.pop()}")
        self.lines.append((operation, inputs, numbers))
        return Variable(len(self.lines) - 1, made)

    def arithmetic(self, operation: str, a: Value, b: Value) -> Value:
        """Write an operation with two inputs, unless one is a neutral element: without normalisation, observations are
        divided by 1."""
        neutral = {"add": 0, "subtract": 0, "multiply": 1, "divide": 1}.get(operation)
        pairs = [(a, b), (b, a)] if operation in ("add", "multiply") else [(a, b)]
        for kept, other in pairs:
            is_broadcast = np.broadcast_shapes(a.type.shape, b.type.shape) != kept.type.shape
            if isinstance(other, Constant) and (other.array == neutral).all() and not is_broadcast:
                return kept
        return self.line(operation, [a, b])

    def reshape(self, x: Value, shape: Iterable[int]) -> Value:
        """Reshape a value, at once if it is constant, otherwise by a line if its shape changes."""
        shape = [int(n) for n in shape]
        if x.type.shape == tuple(shape):
            return x
        return Constant(np.reshape(x.array, shape)) if isinstance(x, Constant) else self.line("reshape", [x], shape)

    def transpose(self, x: Value, axes: Iterable[int]) -> Value:
        """Transpose a value, at once if it is constant, otherwise by a line if the order of its axes changes."""
        axes = [int(axis) for axis in axes]
        if axes == sorted(axes):
            return x
        return Constant(np.transpose(x.array, axes)) if isinstance(x, Constant) else self.line("transpose", [x], axes)

    def slice(self, x: Value, starts: Iterable[Any], ends: Iterable[Any]) -> Variable:
        return self.line("slice", [x], [[int(a), int(b)] for a, b in zip(starts, ends, strict=True)])


def _prune(writer: _Writer, last: int) -> Program:
    """Return the lines on which line `last` depends, renumbered, with equal tensors stored once."""
    needed, numbers = {last}, {}
    for number in range(last, -1, -1):
        if number in needed:
            needed |= {x.name for x in writer.lines[number][1] if isinstance(x, Variable) and isinstance(x.name, int)}
    names: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, np.ndarray] = {}

    def reference(value: Value) -> str | int:
        if isinstance(value, Variable):
            return numbers.get(value.name, value.name)
        content = (*value.type, value.array.tobytes())
        if content not in names:
            names[content] = value.name or f"constant.{sum(name.startswith('constant.') for name in tensors)}"
            tensors[names[content]] = np.array(value.array, order="C")
        return names[content]

    lines = []
    for number in sorted(needed):
        operation, inputs, parameters = writer.lines[number]
        lines.append([operation, [reference(x) for x in inputs], parameters])
        numbers[number] = len(lines) - 1
    return Program(lines, tensors, writer.noise)


# --- Primitives ---

Translation: TypeAlias = Callable[[_Writer, list[Any], dict[str, Any]], Value | list[Value]]
ONE = Constant(np.ones((), np.float32))


def _matmul(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    """Write any product of two arrays as a product of matrices, with shared axes first."""
    (a, b), ((a_sum, b_sum), (a_batch, b_batch)) = given, p["dimension_numbers"]
    a_own, b_own = (
        [axis for axis in range(len(x.type.shape)) if axis not in (*summed, *batch)]
        for x, summed, batch in ((a, a_sum, a_batch), (b, b_sum, b_batch))
    )
    sizes = lambda x, axes: [x.type.shape[axis] for axis in axes]  # noqa: E731
    batch, rows, columns = sizes(a, a_batch), sizes(a, a_own), sizes(b, b_own)
    length = math.prod(sizes(a, a_sum))
    lead = [*batch, math.prod(rows)] if rows or batch else []
    left = w.reshape(w.transpose(a, [*a_batch, *a_own, *a_sum]), [*lead, length])
    right = w.reshape(w.transpose(b, [*b_batch, *b_sum, *b_own]), [*batch, length, math.prod(columns)])
    return w.reshape(w.line("matmul", [left, right]), [*batch, *rows, *columns])


def _broadcast(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    axes = [int(axis) for axis in p["broadcast_dimensions"]]
    expanded = [given[0].type.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(p["shape"]))]
    x = w.reshape(given[0], expanded)
    return x if expanded == list(p["shape"]) else w.line("broadcast", [x], map(int, p["shape"]))


def _pad(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    """Write a padding as a concatenation with constants."""
    x, value = given
    if not isinstance(value, Constant) or any(low < 0 or high < 0 or inner for low, high, inner in p["padding_config"]):
        raise PolicyError("it pads with a variable, or between elements")
    for axis, (low, high, _) in enumerate(p["padding_config"]):
        shapes = [(*x.type.shape[:axis], n, *x.type.shape[axis + 1 :]) for n in (low, high)]
        before, after = (Constant(np.full(shape, value.array)) for shape in shapes)
        parts = [part for part, n in ((before, low), (x, 1), (after, high)) if n]
        x = w.line("concatenate", parts, [axis]) if len(parts) > 1 else x
    return x


def _conv(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    """Write a convolution of images (1, h, w, c) that are not skipped as a sum of products, one for each of its
    weights' pixels."""
    (x, weight), layout = given, p["dimension_numbers"]
    plain = tuple(layout) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) and isinstance(weight, Constant)
    ones = {*p["window_strides"], *p["lhs_dilation"], *p["rhs_dilation"], p["feature_group_count"], x.type.shape[0]}
    if not plain or ones != {1} or p["batch_group_count"] != 1:
        raise PolicyError("only convolutions of one image, channels last, with stride 1 are known")
    config = [(0, 0, 0), *((low, high, 0) for low, high in p["padding"]), (0, 0, 0)]
    padded = _pad(w, [x, Constant(np.zeros((), np.float32))], {"padding_config": config})
    _, height, width, channels = padded.type.shape
    rows, columns, _, out = weight.type.shape
    height, width, total = height - rows + 1, width - columns + 1, None
    for i, j in np.ndindex(rows, columns):
        part = w.slice(padded, (0, i, j, 0), (1, i + height, j + width, channels))
        product = w.line("matmul", [w.reshape(part, [height * width, channels]), Constant(weight.array[i, j])])
        total = product if total is None else w.line("add", [total, product])
    assert total is not None
    return w.reshape(total, [1, height, width, out])


def _power(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    (x,), exponent = given, abs(p["y"])
    product = x if exponent else ONE
    for _ in range(exponent - 1):
        product = w.line("multiply", [product, x])
    return product if p["y"] >= 0 else w.line("divide", [ONE, product])


def _slice(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    if any(stride != 1 for stride in p["strides"] or ()):
        raise PolicyError("it skips elements")
    return w.slice(given[0], p["start_indices"], p["limit_indices"])


def _dynamic_slice(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    (x, *starts), sizes = given, [int(n) for n in p["slice_sizes"]]
    if not all(isinstance(start, Constant) for start in starts):
        return w.line("window", [x, *starts], sizes)
    ends = [min(max(int(a.array), 0), n - k) + k for a, n, k in zip(starts, x.type.shape, sizes, strict=True)]
    return w.slice(x, [end - size for end, size in zip(ends, sizes, strict=True)], ends)


def _split(w: _Writer, given: list[Any], p: dict[str, Any]) -> list[Value]:
    (x,), parts, begin = given, [], 0
    for size in p["sizes"]:
        ranges = [[0, n] for n in x.type.shape]
        ranges[p["axis"]] = [begin, begin + size]
        parts.append(w.slice(x, *zip(*ranges, strict=True)))
        begin += size
    return parts


def _stack(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    expanded = [w.reshape(x, [*x.type.shape[: p["axis"]], 1, *x.type.shape[p["axis"] :]]) for x in given]
    return w.line("concatenate", expanded, [p["axis"]])


def _select(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    which, *cases = given
    if len(cases) != 2:
        raise PolicyError("there are more than two cases")
    return w.line("select", [which, cases[1], cases[0]])


def _cast(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    dtype = str(p["new_dtype"])
    return given[0] if given[0].type.dtype == dtype else w.line("cast", given, [dtype])


def _logistic(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
    return w.line("divide", [ONE, w.line("add", [ONE, w.line("exp", [w.line("negative", given)])])])


def _direct(operation: str, *parameters: str) -> Translation:
    """Return the translation to one operation, with these parameters of the primitive."""

    def translation(w: _Writer, given: list[Any], p: dict[str, Any]) -> Value:
        return w.line(operation, given, [int(n) for name in parameters for n in np.atleast_1d(p[name])])

    return translation


def _reduction(operation: str) -> Translation:
    """Return the translation to a reduction, left out if there are no axes to reduce."""
    reduce = _direct(operation, "axes")
    return lambda w, given, p: reduce(w, given, p) if len(p["axes"]) else given[0]


def _arithmetic(operation: str) -> Translation:
    return lambda w, given, p: w.arithmetic(operation, *given)


UNCHANGED = ("copy", "stop_gradient", "optimization_barrier")
TRANSLATIONS: dict[str, Translation] = {
    **{name: _direct(name) for name in ("exp", "log", "log1p", "tanh", "cos", "sin", "sqrt", "erf", "sign")},
    **{"neg": _direct("negative"), "abs": _direct("absolute"), "max": _direct("maximum"), "min": _direct("minimum")},
    **{"add": _arithmetic("add"), "sub": _arithmetic("subtract")},
    **{"mul": _arithmetic("multiply"), "div": _arithmetic("divide"), "add_any": _arithmetic("add")},
    **{"lt": _direct("less"), "le": _direct("less_equal"), "gt": _direct("greater"), "ge": _direct("greater_equal")},
    **{"eq": _direct("equal"), "ne": _direct("not_equal")},
    **{"not": _direct("logical_not"), "and": _direct("logical_and"), "or": _direct("logical_or")},
    "square": lambda w, given, p: w.line("multiply", [given[0], given[0]]),
    "rsqrt": lambda w, given, p: w.line("divide", [ONE, w.line("sqrt", given)]),
    "integer_pow": _power,
    "logistic": _logistic,
    "clamp": lambda w, given, p: w.line("minimum", [w.line("maximum", [given[0], given[1]]), given[2]]),
    "select_n": _select,
    "dot_general": _matmul,
    **{f"reduce_{name}": _reduction(name) for name in ("sum", "max", "min")},
    "argmax": _direct("argmax", "axes"),
    "reshape": lambda w, given, p: w.reshape(given[0], p["new_sizes"]),
    "squeeze": lambda w, given, p: w.reshape(
        given[0], [n for axis, n in enumerate(given[0].type.shape) if axis not in p["dimensions"]]
    ),
    "broadcast_in_dim": _broadcast,
    "transpose": lambda w, given, p: w.transpose(given[0], p["permutation"]),
    "concatenate": _direct("concatenate", "dimension"),
    "stack": _stack,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "pad": _pad,
    "conv_general_dilated": _conv,
    "convert_element_type": _cast,
}
