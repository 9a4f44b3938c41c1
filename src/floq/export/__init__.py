"""`floq export`: a policy to take away, as a list of operations on arrays.

Which operations? Those that JAX traces when the policy acts. Nobody describes networks a second time: `traced.py`
asks for the program of `Policy.act`, whatever critic and actor are behind it, and unrolls its loops; `operations.py`
computes what depends on neither observation nor noise, and writes the rest as some forty operations that NumPy has
too. So an actor or a critic that is added later is exported as it is, as long as it computes with these.

Random numbers are inputs. An actor draws them with `jax.random.normal` and `uniform`, and there its program is cut:
what these would have returned is asked for instead. A policy elsewhere then draws noise with whatever generator it has,
and given the same noise it acts as here. JAX's generator, rebuilt in NumPy, would have been no help to ONNX.

Every policy is compared with the agent before its folder appears (`check.py`), so a cut in the wrong place, should JAX
rename its functions, is found then and there. The reader is `floq/export/exported.py`, which needs NumPy alone.
"""
