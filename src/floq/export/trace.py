"""Trace of a policy's computation by primitives: calls inlined, loops unrolled, random draws replaced with inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, PRNGKeyArray

from floq.agent.policy import Policy
from floq.networks.cpu import mean_p
from floq.utils.obs_spec import ObsSpec

DRAWS = {"_normal": "normal", "_uniform": "uniform"}  # functions of jax.random, by their names in a program


class Noise(NamedTuple):
    """An array of random numbers that a policy draws for one action: N(0, 1), or uniform in [0, 1)."""

    distribution: str
    shape: tuple[int, ...]


class Interpreter:
    """Interpreter of a program. It computes primitives with JAX and takes the draws of JAX; subclasses do otherwise."""

    def primitive(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """Return the outputs of an equation of one primitive."""
        outputs = equation.primitive.bind(*inputs, **equation.params)
        return list(outputs) if equation.primitive.multiple_results else [outputs]

    def draw(self, noise: Noise, sample: Callable[[], Array]) -> Any:
        """Return random numbers; `sample()` are those of JAX, if values are arrays."""
        return sample()

    def run(self, program: Any, inputs: Sequence[Any]) -> list[Any]:
        """Interpret a program with the given inputs and return its outputs."""
        jaxpr, consts = (program.jaxpr, program.consts) if hasattr(program, "consts") else (program, ())
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]  # noqa: E731
        for equation in jaxpr.eqns:
            given, p = [read(atom) for atom in equation.invars], equation.params
            inner = next((p[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in p), None)
            if inner is not None and p.get("name") in DRAWS:
                outputs = self._draw(equation, inner, given)
            elif equation.primitive is mean_p:
                outputs = self._inline(lambda x: jnp.mean(x, axis=-1), [equation.invars[0].aval], given)
            elif equation.primitive.name == "scan":
                outputs = self._unroll(equation, given)
            elif inner is not None and equation.primitive.name not in ("while", "cond"):
                outputs = self.run(inner, given)
            else:
                outputs = self.primitive(equation, given)
            values |= zip(equation.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _draw(self, equation: Any, inner: core.ClosedJaxpr, given: list[Any]) -> list[Any]:
        """Replace a draw with noise; uniform noise is scaled to the interval of the draw."""
        (key, *interval), (out,) = given, equation.outvars
        avals = [atom.aval for atom in equation.invars[1:]]
        unit = [jnp.full(aval.shape, end, aval.dtype) for aval, end in zip(avals, (0, 1), strict=bool(avals))]
        noise = Noise(DRAWS[equation.params["name"]], tuple(out.aval.shape))
        value = self.draw(noise, lambda: core.jaxpr_as_fun(inner)(key, *unit)[0])
        if not interval:
            return [value]
        return self._inline(lambda u, low, high: low + (high - low) * u, [out.aval, *avals], [value, *interval])

    def _unroll(self, equation: Any, given: list[Any]) -> list[Any]:
        """Interpret a scan step by step."""
        p, body = equation.params, equation.params["jaxpr"]
        num_fixed, num_carry = _scan_sizes(p)
        fixed, carry, rows = given[:num_fixed], given[num_fixed : num_fixed + num_carry], given[num_fixed + num_carry :]
        row_avals = [atom.aval for atom in equation.invars[num_fixed + num_carry :]]
        made: dict[int, list[Any]] = {}
        for i in sorted(range(p["length"]), reverse=p["reverse"]):
            row = self._inline(lambda *xs, i=i: [x[i] for x in xs], row_avals, rows)
            outputs = self.run(body, [*fixed, *carry, *row])
            carry, made[i] = outputs[:num_carry], outputs[num_carry:]
        stacked = []
        for place, aval in enumerate(body.out_avals[num_carry:]):
            parts = [made[i][place] for i in range(p["length"])]
            stacked += self._inline(lambda *xs: jnp.stack(xs), [aval] * len(parts), parts)
        return [*carry, *stacked]

    def _inline(self, function: Callable[..., Any], avals: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Trace a JAX function for these shapes, and interpret it with these inputs."""
        specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        return self.run(jax.make_jaxpr(function)(*specs), inputs)


class _WithNoise(Interpreter):
    """Interpreter that takes the given noise, or without it keeps what JAX draws."""

    def __init__(self, given: Sequence[Array] | None = None):
        self._left, self.drawn = None if given is None else iter(given), []

    def draw(self, noise: Noise, sample: Callable[[], Array]) -> Array:
        self.drawn.append(sample() if self._left is None else next(self._left))
        return self.drawn[-1]


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many inputs of a scan are the same in each step, and how many are carried from step to step."""
    if "num_consts" in params:  # before JAX 0.12
        return params["num_consts"], params["num_carry"]
    fixed, carry, _ = params["ft_in"].unpack()
    return len(fixed), len(carry)


@dataclass(frozen=True)
class TracedPolicy:
    """A policy as a program of (observation, key), and as functions of it."""

    program: core.ClosedJaxpr  # of the policy's arrays, an observation and a key
    names: list[str]  # of the policy's arrays
    leaves: list[Array]
    obs_shape: tuple[int]  # of an observation as numbers, those of its parts end to end, pixels from 0 to 255

    @classmethod
    def of(cls, policy: Policy, obs_spec: ObsSpec, explore: bool = False) -> "TracedPolicy":
        """Trace `Policy.act`, or with `explore` the exploration policy `Policy.explore`."""
        method = type(policy).explore if explore else type(policy).act
        paths, tree = jax.tree_util.tree_flatten_with_path(policy)

        def act(leaves: list[Array], obs: Array, key: PRNGKeyArray) -> Array:
            return method(jax.tree.unflatten(tree, leaves), obs_spec.of_numbers(obs), key)

        leaves = [leaf for _, leaf in paths]
        zeros = np.zeros(obs_spec.num_numbers, np.float32)
        program = jax.make_jaxpr(act)(leaves, zeros, jax.random.key(0))
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        return cls(program, names, leaves, zeros.shape)

    def act(self, obs: Float[Array, " obs"], *noise: Float[Array, "..."]) -> Float[Array, " act"]:
        """Return the action for given noise."""
        return _WithNoise(noise).run(self.program, [*self.leaves, obs, jax.random.key(0)])[0]

    def draw(self, key: PRNGKeyArray) -> tuple[Float[Array, "..."], ...]:
        """Draw the noise that the policy itself draws with `key`. Consumes `key`."""
        (interpreter := _WithNoise()).run(self.program, [*self.leaves, jnp.zeros(self.obs_shape), key])
        return tuple(interpreter.drawn)
