"""What a policy computes, primitive by primitive: calls opened, loops unrolled, random draws cut out as inputs."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float, PRNGKeyArray

from floq.agent.policy import Policy

DRAWS = {"_normal": "normal", "_uniform": "uniform"}  # functions of jax.random as they appear in a program


class Noise(NamedTuple):
    """An array of random numbers that a policy draws for one action: N(0, 1), or uniform in [0, 1)."""

    distribution: str
    shape: tuple[int, ...]


class Visitor(abc.ABC):
    """What `walk` asks about the values that it carries through a program."""

    @abc.abstractmethod
    def primitive(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of an equation of one primitive."""

    @abc.abstractmethod
    def draw(self, noise: Noise, sample: Callable[[], Array]) -> Any:
        """Random numbers; `sample` is what JAX would draw, where values are arrays."""


def walk(program: core.ClosedJaxpr, inputs: Sequence[Any], visitor: Visitor) -> list[Any]:
    """Follow a program with the given inputs, whatever the visitor takes them for, and return its outputs."""
    return _walk(program.jaxpr, program.consts, inputs, visitor)


def _walk(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], visitor: Visitor) -> list[Any]:
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]  # noqa: E731
    for equation in jaxpr.eqns:
        given, name = [read(atom) for atom in equation.invars], equation.params.get("name")
        inner = next((equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params), None)
        if inner is not None and name in DRAWS:
            outputs = _drawn(equation, inner, given, visitor)
        elif equation.primitive.name == "scan":
            outputs = _unrolled(equation, given, visitor)
        elif inner is not None and equation.primitive.name not in ("while", "cond"):
            inner_jaxpr, inner_consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            outputs = _walk(inner_jaxpr, inner_consts, given, visitor)
        else:
            outputs = visitor.primitive(equation, given)
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _drawn(equation: Any, inner: core.ClosedJaxpr, given: list[Any], visitor: Visitor) -> list[Any]:
    """What a draw is replaced with: noise, for a uniform one stretched to its interval."""
    (key, *interval), (out,) = given, equation.outvars
    avals = [atom.aval for atom in equation.invars[1:]]
    unit = [jnp.full(aval.shape, end, aval.dtype) for aval, end in zip(avals, (0, 1), strict=bool(avals))]
    noise = Noise(DRAWS[equation.params["name"]], tuple(out.aval.shape))
    value = visitor.draw(noise, lambda: core.jaxpr_as_fun(inner)(key, *unit)[0])
    if not interval:
        return [value]
    return _inlined(lambda u, low, high: low + (high - low) * u, [out.aval, *avals], [value, *interval], visitor)


def _unrolled(equation: Any, given: list[Any], visitor: Visitor) -> list[Any]:
    p, body = equation.params, equation.params["jaxpr"]
    fixed, carry = given[: p["num_consts"]], given[p["num_consts"] : p["num_consts"] + p["num_carry"]]
    rows = given[p["num_consts"] + p["num_carry"] :]
    row_avals = [atom.aval for atom in equation.invars[p["num_consts"] + p["num_carry"] :]]
    made: dict[int, list[Any]] = {}
    for i in sorted(range(p["length"]), reverse=p["reverse"]):
        own = _inlined(lambda *xs, i=i: [x[i] for x in xs], row_avals, rows, visitor)
        outputs = walk(body, [*fixed, *carry, *own], visitor)
        carry, made[i] = outputs[: p["num_carry"]], outputs[p["num_carry"] :]
    stacked = []
    for place, aval in enumerate(body.out_avals[p["num_carry"] :]):
        parts = [made[i][place] for i in range(p["length"])]
        stacked += _inlined(lambda *xs: jnp.stack(xs), [aval] * len(parts), parts, visitor)
    return [*carry, *stacked]


def _inlined(function: Callable[..., Any], avals: Sequence[Any], inputs: Sequence[Any], visitor: Visitor) -> list[Any]:
    """Follow a function of our own."""
    specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return walk(jax.make_jaxpr(function)(*specs), inputs, visitor)


@dataclass(frozen=True)
class Traced:
    """A policy as a program of (observation, key), and as functions of it."""

    program: core.ClosedJaxpr  # of the policy's arrays, an observation and a key
    names: list[str]  # of the policy's arrays
    leaves: list[Array]
    obs_size: int

    @classmethod
    def of(cls, policy: Policy, obs_size: int, explore: bool = False) -> "Traced":
        """The program with which a policy acts; with `explore`, with which it makes new experience."""
        verb = type(policy).explore if explore else type(policy).act
        paths, tree = jax.tree_util.tree_flatten_with_path(policy)

        def act(leaves: list[Array], obs: Array, key: PRNGKeyArray) -> Array:
            return verb(jax.tree.unflatten(tree, leaves), obs, key)

        leaves = [leaf for _, leaf in paths]
        program = jax.make_jaxpr(act)(leaves, jnp.zeros(obs_size), jax.random.key(0))
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        return cls(program, names, leaves, obs_size)

    def act(self, obs: Float[Array, " obs"], *noise: Float[Array, "..."]) -> Float[Array, " act"]:
        """The action for given noise."""
        left = iter(noise)
        return walk(self.program, [*self.leaves, obs, jax.random.key(0)], _Bound(lambda *_: next(left)))[0]

    def draw(self, key: PRNGKeyArray) -> tuple[Float[Array, "..."], ...]:
        """The noise that the policy itself draws with a key."""
        drawn: list[Array] = []

        def draw(noise: Noise, sample: Callable[[], Array]) -> Array:
            drawn.append(sample())
            return drawn[-1]

        walk(self.program, [*self.leaves, jnp.zeros(self.obs_size), key], _Bound(draw))
        return tuple(drawn)


class _Bound(Visitor):
    """Follows a program by computing it, with JAX."""

    def __init__(self, draw: Callable[[Noise, Callable[[], Array]], Any]):
        self._draw = draw

    def draw(self, noise: Noise, sample: Callable[[], Array]) -> Any:
        return self._draw(noise, sample)

    def primitive(self, equation: Any, inputs: list[Any]) -> list[Any]:
        outputs = equation.primitive.bind(*inputs, **equation.params)
        return list(outputs) if equation.primitive.multiple_results else [outputs]
