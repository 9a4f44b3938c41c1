"""What holds in every test: shapes are checked at run time, and JAX refuses sloppy code."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("FLOQ_TEST_PLATFORM", "cpu")

from jaxtyping import install_import_hook

install_import_hook("floq", "beartype.beartype")  # before anything imports floq

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
