"""An exported program as an ONNX graph: each operation is one of ONNX's, or two or three of them.

jax2onnx, which converts JAX functions, is no help here: version 0.17.1 knows no random keys, which are left in the
program of every policy that ranks actions. The operations of `floq.exported` are ONNX's already.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from floq.export.operations import Program
from floq.exported import OPERATIONS

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
