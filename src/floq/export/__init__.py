"""`floq export`: a policy as a standalone program, a list of operations on arrays.

The operations are those that JAX traces when the policy acts, so networks are not described a second time. `trace.py`
traces `Policy.act`, for any critic and actor, and unrolls its loops. `operations.py` evaluates what depends on neither
observation nor noise, and translates the rest into some forty operations that NumPy has too. A new actor or critic is
exported without further code if it computes with these.

Random numbers are inputs. Actors draw them with `jax.random.normal` and `uniform`; in the exported program the results
of these calls are replaced with inputs. Another runtime then draws noise with its own generator, and given the same
noise it returns the same actions. JAX's generator rebuilt in NumPy would not have worked for ONNX.

Every policy is compared with the agent before its folder appears (`verification.py`), which finds wrong replacements,
should JAX rename its functions. The reader is `floq/export/exported.py`, which needs NumPy alone.
"""
