"""What XLA's CPU backend computes slowly, in forms that it computes fast: products in bfloat16 and means of rows.

It multiplies bfloat16 fast where it finds [batch, rows, n] x [batch, n, columns] in memory, and otherwise in float32:
so all gradients, because it makes the transposition of an operand a part of the product. Sums over the last axis go
through memory several times.

These are primitives of JAX, so that they remain what they are under vmap and grad, and only where they are compiled for
a CPU take these forms.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, BFloat16, Float

# --- Means ---

mean_p = Primitive("row_mean")


def row_mean(x: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    """Return the means over the last axis."""
    return mean_p.bind(x)


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=-1)


def _mean_by_product(x: Array) -> Array:
    return jnp.matmul(x, jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype), precision="highest")[..., 0]


def _transpose_mean(ct: Array, x: Any) -> list[Array]:
    return [jnp.broadcast_to(ct[..., None] / x.aval.shape[-1], x.aval.shape)]


# --- Products ---

Indices: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Of the axes of x, of y and of their product; summed over are those that the product lacks."""

product_p = Primitive("bf16_product")
rounded_p = Primitive("bf16_rounded")


def bf16_product(
    x: Float[Array, " size_in"], weight: Float[Array, "size_in size_out"], dtype: Any
) -> Float[Array, " size_out"]:
    """Compute x W, both rounded to bfloat16, with float32 sums. The result is of type `dtype`, gradients are of
    those of x and W."""
    return product_p.bind(x, weight, indices=((0,), (0, 1), (1,)), dtype=dtype)


def _product(x: Array, y: Array, *, indices: Indices, dtype: Any, arrange: bool = False) -> Array:
    of_x, of_y, of_out = indices
    batch = [i for i in of_x if i in of_y and i in of_out]
    summed = [i for i in of_x if i in of_y and i not in of_out]
    rows, columns = ([i for i in own if i not in (*batch, *summed)] for own in (of_x, of_y))
    sizes = dict(zip(of_x, x.shape, strict=True)) | dict(zip(of_y, y.shape, strict=True))
    left, right = _matrices(x, of_x, batch, rows, summed, arrange), _matrices(y, of_y, batch, summed, columns, arrange)
    out = jnp.matmul(left, right, preferred_element_type=jnp.float32 if arrange else dtype, precision="default")
    order = [*batch, *rows, *columns]
    return jnp.transpose(out.reshape([sizes[i] for i in order]), [order.index(i) for i in of_out]).astype(dtype)


def _matrices(
    x: Array, own: Sequence[int], batch: Sequence[int], rows: Sequence[int], columns: Sequence[int], arrange: bool
) -> BFloat16[Array, "batch rows columns"]:
    """Return x in bfloat16 as a stack of matrices; `arrange`: they lie in memory row by row."""
    turned = own[-1] in rows and bool(columns)
    first, last = (columns, rows) if turned else (rows, columns)
    shape = [math.prod(x.shape[own.index(i)] for i in group) for group in (batch, first, last)]
    x = jnp.transpose(x.astype(jnp.bfloat16), [own.index(i) for i in (*batch, *first, *last)]).reshape(shape)
    if not turned:
        return x
    return _transposed(x) if arrange else jnp.swapaxes(x, 1, 2)


def _transposed(x: BFloat16[Array, "batch rows columns"]) -> BFloat16[Array, "batch columns rows"]:
    """Transpose matrices in memory, by blocks of rows: five times as fast as XLA's element by element."""
    in_memory = lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim))))  # noqa: E731
    count, rows, columns = x.shape
    block = math.gcd(rows, 32)
    blocks = in_memory(jnp.swapaxes(x.reshape(count, rows // block, block, columns), 2, 3))
    return in_memory(jnp.swapaxes(jax.lax.optimization_barrier(blocks), 1, 2)).reshape(count, columns, rows)


def _product_shape(x: Any, y: Any, *, indices: Indices, dtype: Any) -> ShapedArray:
    sizes = dict(zip(indices[0], x.shape, strict=True)) | dict(zip(indices[1], y.shape, strict=True))
    return ShapedArray(tuple(sizes[i] for i in indices[2]), dtype)


def _vmap_product(args: Sequence[Array], axes: Sequence[int | None], *, indices: Indices, dtype: Any):
    """Give the mapped axis an index of its own, in the product the place where `_product` leaves it."""
    new = 1 + max(i for own in indices for i in own)
    operands = [
        own if axis is None else (*own[:axis], new, *own[axis:]) for own, axis in zip(indices[:2], axes, strict=True)
    ]
    x, y, out = *operands, indices[2]
    if new not in x:
        place = 1 + max((k for k, i in enumerate(out) if i in x), default=-1)
    else:
        place = 0 if new in y else sum(i in x and i in y for i in out)
    return product_p.bind(*args, indices=(x, y, (*out[:place], new, *out[place:])), dtype=dtype), place


def _jvp_of_product(primals: Sequence[Array], tangents: Sequence[Any], *, indices: Indices, dtype: Any):
    (x, y), (dx, dy) = primals, tangents
    bind = functools.partial(product_p.bind, indices=indices, dtype=dtype)
    if type(dy) is not ad.Zero:
        x = rounded_p.bind(x)  # what the gradient of the weights keeps of it
    terms = [bind(dx, y)] if type(dx) is not ad.Zero else []
    terms += [bind(x, dy)] if type(dy) is not ad.Zero else []
    return bind(x, y), functools.reduce(ad.add_jaxvals, terms)


def _transpose_product(ct: Array, x: Any, y: Any, *, indices: Indices, dtype: Any):
    of_x, of_y, of_out = indices
    if ad.is_undefined_primal(x):
        return product_p.bind(ct, y, indices=(of_out, of_y, of_x), dtype=x.aval.dtype), None
    return None, product_p.bind(x, ct, indices=(of_x, of_out, of_y), dtype=y.aval.dtype)


def _rounded(x: Array) -> BFloat16[Array, "..."]:
    """Round to bfloat16 in memory: without the barrier XLA computes x again, with all that leads to it, for each of its
    uses."""
    return jax.lax.optimization_barrier(x.astype(jnp.bfloat16))


# --- Rules ---


def _define(
    primitive: Primitive, plain: Callable[..., Array], on_cpu: Callable[..., Array], static: Sequence[str] = ()
):
    primitive.def_impl(jax.jit(plain, static_argnames=static))
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")


_define(mean_p, _mean, _mean_by_product)
mean_p.def_abstract_eval(lambda x: ShapedArray(x.shape[:-1], x.dtype))
batching.primitive_batchers[mean_p] = lambda args, axes: (mean_p.bind(jnp.moveaxis(args[0], axes[0], 0)), 0)
ad.deflinear2(mean_p, _transpose_mean)

_define(product_p, _product, functools.partial(_product, arrange=True), ("indices", "dtype"))
product_p.def_abstract_eval(_product_shape)
batching.primitive_batchers[product_p] = _vmap_product
ad.primitive_jvps[product_p] = _jvp_of_product
ad.primitive_transposes[product_p] = _transpose_product

_define(rounded_p, _rounded, _rounded)
rounded_p.def_abstract_eval(lambda x: ShapedArray(x.shape, jnp.bfloat16))
batching.primitive_batchers[rounded_p] = lambda args, axes: (rounded_p.bind(*args), axes[0])
