"""Formats of an exported policy (NumPy, StableHLO, ONNX): writing it to a folder and loading it from there."""

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.export
import numpy as np
from safetensors.numpy import save

from floq.export import exported
from floq.export.operations import Program
from floq.export.trace import TracedPolicy
from floq.utils.errors import UserError

Format: TypeAlias = Literal["numpy", "stablehlo", "onnx"]
ActFunction: TypeAlias = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]  # (observation, noise) -> action

READER, README = "read_policy.py", "README.txt"
PLATFORMS = ("cpu", "cuda")
PACKAGES = {"numpy": (), "stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime")}


@dataclass(frozen=True)
class Exportable:
    """A policy, ready to be written."""

    traced: TracedPolicy
    program: Program
    description: dict[str, Any]  # entries of policy.json: sizes, and the origin of the policy


def check_packages(form: Format) -> None:
    """Raise UserError if a package is missing that writes or reads this format."""
    for package in PACKAGES[form]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--format={form} needs {package} ({error}): pip install 'floq[export]'") from error


def write_exported(form: Format, policy: Exportable, folder: Path) -> None:
    """Write the policy's files into an empty folder."""
    noise = [entry._asdict() for entry in policy.program.noise]
    document = {"format": exported.FORMAT, "version": exported.VERSION, **policy.description, "noise": noise}
    text = json.dumps(document, indent=2, allow_nan=False)
    if form == "numpy":
        text = _with_program(text, policy.program)
        (folder / exported.TENSORS).write_bytes(save(policy.program.tensors))  # save_file hides it from other users
        (folder / READER).write_text(inspect.getsource(exported), encoding="utf-8")
    elif form == "stablehlo":
        (folder / "policy.stablehlo").write_bytes(_stablehlo(policy))
    else:
        from floq.export.onnx_graph import onnx_model

        d = policy.description
        action_dim, described = d["action_size"] * d["action_chunk"], f"{d['about']['task']}, exported by floq"
        model = onnx_model(policy.program, policy.traced.obs_shape, action_dim, described)
        (folder / "policy.onnx").write_bytes(model.SerializeToString())
    (folder / exported.PROGRAM).write_text(text + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(form, policy), encoding="utf-8")


def load_exported(form: Format, folder: Path) -> ActFunction:
    """Load the policy that was written to a folder, with the runtime of its format."""
    if form == "numpy":
        policy = exported.load_policy(folder)
        return lambda obs, noise: policy.act(obs, noise=noise)
    if form == "stablehlo":
        call = jax.jit(jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call)
        return lambda obs, noise: np.asarray(call(obs, *noise))
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda obs, noise: np.asarray(session.run(None, dict(zip(names, (obs, *noise), strict=True)))[0])


def _with_program(text: str, program: Program) -> str:
    """Add the program to the text of a JSON document, a line for each operation."""
    lines = ",\n".join(f"    {json.dumps(line)}" for line in program.lines)
    return f'{text.removesuffix("}").rstrip()},\n  "program": [\n{lines}\n  ]\n}}'


def _stablehlo(policy: Exportable) -> bytes:
    shapes = [policy.traced.obs_shape, *(noise.shape for noise in policy.program.noise)]
    specs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return bytes(jax.export.export(jax.jit(policy.traced.act), platforms=PLATFORMS)(*specs).serialize())


def _readme(form: Format, policy: Exportable) -> str:
    about, d = policy.description["about"], policy.description
    draws = [f"noise.{i} {list(noise.shape)} {noise.distribution}" for i, noise in enumerate(policy.program.noise)]
    chunk = f", {d['action_chunk']} actions at once, laid end to end" if d["action_chunk"] > 1 else ""
    parts = "".join(f"\n{'':13}{name} {shape}" for name, shape in d.get("observation_parts", {}).items())
    end_to_end = ":" if parts else ", as the environment gave them in training"
    if (frames := d.get("frames", 1)) > 1:
        end_to_end = f", of the {frames} newest frames, the newest last{':' if parts else ''}"
    if parts:
        parts = f" these parts end to end, pixels from 0 to 255{parts}"
    return (
        f"A policy for {about['task']}, step {about['step']}, exported by floq {about['floq']}.\n\n"
        f"observation  {d['observation_size']} numbers (float32){end_to_end}{parts}\n"
        f"action       {d['action_size']} numbers in [-1, 1]{chunk}\n"
        f"noise        {', '.join(draws) or 'none'}\n\n"
    ) + Path(__file__).with_name("readme").joinpath(f"{form}.txt").read_text(encoding="utf-8")
