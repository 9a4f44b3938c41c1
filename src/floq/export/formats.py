"""The three ways in which a policy is written, each with the way back: files in a folder, and a function that acts."""

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
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from floq.export import exported
from floq.export.exported import OPERATIONS
from floq.export.operations import Program
from floq.export.trace import Traced
from floq.utils.errors import UserError

# --- An exported program as an ONNX graph ---

OPSET, IR_VERSION = 18, 8  # of 2022: what runs on a robot is seldom new
SAME = {
    **{"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max", "minimum": "Min"},
    **{"exp": "Exp", "log": "Log", "tanh": "Tanh", "cos": "Cos", "sin": "Sin", "sqrt": "Sqrt", "erf": "Erf"},
    **{"negative": "Neg", "absolute": "Abs", "sign": "Sign", "less": "Less", "less_equal": "LessOrEqual"},
    **{"greater": "Greater", "greater_equal": "GreaterOrEqual", "equal": "Equal"},
    **{"logical_not": "Not", "logical_and": "And", "logical_or": "Or", "select": "Where", "matmul": "MatMul"},
}
REDUCTIONS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}
SHAPED = {"reshape": "Reshape", "broadcast": "Expand"}
DTYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


def onnx_model(program: Program, obs_size: int, act_size: int, described: str) -> onnx.ModelProto:
    """A model with the inputs `observation`, `noise.0`, `noise.1`, ... and the output `action`.

    Args:
        program: the policy's.
        obs_size, act_size: how many numbers an observation and what the policy decides on at once have.
        described: one line for the model's documentation.
    """
    graph = _Graph(program)
    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, [obs_size])]
    inputs += [
        helper.make_tensor_value_info(f"noise.{i}", TensorProto.FLOAT, noise.shape)
        for i, noise in enumerate(program.noise)
    ]
    output = helper.make_tensor_value_info("action", TensorProto.FLOAT, [act_size])
    made = helper.make_graph(graph.nodes, "policy", inputs, [output], graph.constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, producer_name="floq", opset_imports=opset, doc_string=described)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """The nodes of a program's lines; what line i makes is called `line.i`, the last line's `action`."""

    def __init__(self, program: Program):
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [numpy_helper.from_array(array, name) for name, array in program.tensors.items()]
        last = len(program.lines) - 1
        for number, (operation, inputs, parameters) in enumerate(program.lines):
            names = [f"line.{x}" if isinstance(x, int) else x for x in inputs]
            self._line(operation, names, parameters, "action" if number == last else f"line.{number}")

    def _line(self, operation: str, inputs: list[str], parameters: list[Any], out: str) -> None:
        assert operation in OPERATIONS
        if operation in SAME:
            self._node(SAME[operation], inputs, out)
        elif operation == "not_equal":
            self._node("Not", [self._node("Equal", inputs, f"{out}.equal")], out)
        elif operation == "log1p":
            one = self._constant(f"{out}.one", np.ones((), np.float32))
            self._node("Log", [self._node("Add", [*inputs, one], f"{out}.plus")], out)
        elif operation in REDUCTIONS:
            self._node(REDUCTIONS[operation], [*inputs, self._numbers(f"{out}.axes", parameters)], out, keepdims=0)
        elif operation == "argmax":
            index = self._node("ArgMax", inputs, f"{out}.index", axis=parameters[0], keepdims=0)
            self._node("Cast", [index], out, to=TensorProto.INT32)
        elif operation in SHAPED:
            self._node(SHAPED[operation], [*inputs, self._numbers(f"{out}.shape", parameters)], out)
        elif operation == "transpose":
            self._node("Transpose", inputs, out, perm=parameters)
        elif operation == "concatenate":
            self._node("Concat", inputs, out, axis=parameters[0])
        elif operation == "slice":
            starts, ends = zip(*parameters, strict=True)
            self._node(
                "Slice", [*inputs, self._numbers(f"{out}.starts", starts), self._numbers(f"{out}.ends", ends)], out
            )
        elif operation == "cast":
            self._node("Cast", inputs, out, to=DTYPES[parameters[0]])
        else:
            assert operation == "window", operation
            self._window(inputs, parameters, out)

    def _window(self, inputs: list[str], sizes: list[int], out: str) -> None:
        """A slice whose start is computed, pushed inside where it would leave the array."""
        x, *starts = inputs
        one = self._numbers(f"{out}.one", [1])
        wide = [self._node("Cast", [start], f"{out}.wide.{i}", to=TensorProto.INT64) for i, start in enumerate(starts)]
        flat = [self._node("Reshape", [start, one], f"{out}.flat.{i}") for i, start in enumerate(wide)]
        start, size = self._node("Concat", flat, f"{out}.start", axis=0), self._numbers(f"{out}.size", sizes)
        most = self._node("Sub", [self._node("Shape", [x], f"{out}.whole"), size], f"{out}.most")
        zero = self._numbers(f"{out}.zero", [0])
        inside = self._node("Max", [self._node("Min", [start, most], f"{out}.low"), zero], f"{out}.inside")
        self._node("Slice", [x, inside, self._node("Add", [inside, size], f"{out}.end")], out)

    def _node(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def _numbers(self, name: str, numbers: Any) -> str:
        return self._constant(name, np.asarray(numbers, np.int64))

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name


Format: TypeAlias = Literal["numpy", "stablehlo", "onnx"]
Acting: TypeAlias = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]  # of an observation and noise

READER, README = "read_policy.py", "README.txt"
PLATFORMS = ("cpu", "cuda")
NEEDS = {"numpy": (), "stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime")}


@dataclass(frozen=True)
class Exportable:
    """A policy, ready to be written."""

    traced: Traced
    program: Program
    description: dict[str, Any]  # what policy.json says of it: sizes, where it is from

    @property
    def act_size(self) -> int:
        """How many numbers it decides on at once."""
        return self.description["action_size"] * self.description["action_chunk"]


def check_installed(form: Format) -> None:
    """Raises UserError if a package is missing that writes this format or reads it back."""
    for package in NEEDS[form]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--format={form} needs {package} ({error}): pip install 'floq[export]'") from error


def write(form: Format, policy: Exportable, folder: Path) -> None:
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
        described = f"{policy.description['about']['task']}, exported by floq"
        model = onnx_model(policy.program, policy.traced.obs_size, policy.act_size, described)
        (folder / "policy.onnx").write_bytes(model.SerializeToString())
    (folder / exported.PROGRAM).write_text(text + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(form, policy), encoding="utf-8")


def load(form: Format, folder: Path) -> Acting:
    """The policy that was written there, as it will be read elsewhere."""
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
    """The document with the program, a line for each operation."""
    lines = ",\n".join(f"    {json.dumps(line)}" for line in program.lines)
    return f'{text.removesuffix("}").rstrip()},\n  "program": [\n{lines}\n  ]\n}}'


def _stablehlo(policy: Exportable) -> bytes:
    shapes = [(policy.traced.obs_size,), *(noise.shape for noise in policy.program.noise)]
    specs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return bytes(jax.export.export(jax.jit(policy.traced.act), platforms=PLATFORMS)(*specs).serialize())


def _readme(form: Format, policy: Exportable) -> str:
    return "\n".join([*_described(policy), "", *USAGE[form], "", *FRAME]) + "\n"


def _described(policy: Exportable) -> list[str]:
    about, d = policy.description["about"], policy.description
    draws = [f"noise.{i} {list(noise.shape)} {noise.distribution}" for i, noise in enumerate(policy.program.noise)]
    return [
        f"A policy for {about['task']}, step {about['step']}, exported by floq {about['floq']}.",
        "",
        f"observation  {d['observation_size']} numbers (float32), as the environment gave them in training",
        f"action       {d['action_size']} numbers in [-1, 1]"
        + (f", {d['action_chunk']} actions at once, laid end to end" if d["action_chunk"] > 1 else ""),
        f"noise        {', '.join(draws) or 'none'}",
    ]


USAGE: dict[Format, list[str]] = {
    "numpy": [
        "policy.json        the operations",
        "policy.safetensors the arrays",
        "read_policy.py     loads and runs them; needs Python and NumPy. It is floq/export/exported.py",
        "",
        "    import numpy as np",
        "    from read_policy import load_policy",
        "",
        "    policy = load_policy('.')",
        "    action = policy.act(observation, np.random.default_rng(0))",
    ],
    "stablehlo": [
        "policy.stablehlo  for jax.export, on CPU or an NVIDIA GPU; needs jax and flatbuffers",
        "policy.json       sizes and noise",
        "",
        "    import pathlib, jax.export",
        "",
        "    policy = jax.export.deserialize(bytearray(pathlib.Path('policy.stablehlo').read_bytes())).call",
        "    action = policy(observation, *noise)",
    ],
    "onnx": [
        "policy.onnx  opset 18; inputs observation, noise.0, noise.1, ...; output action",
        "policy.json  sizes and noise",
        "",
        "    import onnxruntime",
        "",
        "    session = onnxruntime.InferenceSession('policy.onnx')",
        "    (action,) = session.run(None, {'observation': observation, 'noise.0': noise})",
    ],
}
FRAME = [
    "Noise is drawn anew for every action: normal is N(0, 1), uniform is in [0, 1). Where an environment's actions are",
    "not in [-1, 1], floq scaled them in training: -1 is the lower bound of each, 1 the upper.",
]
