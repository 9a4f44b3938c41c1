"""The operations of a policy as an ONNX graph. Imported on demand: it needs the extra floq[export]."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from floq.export.operations import Program

OPSET, IR_VERSION = 18, 8  # of 2022: the runtimes of robots are often old
ONNX_NAMES = {
    **{"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max", "minimum": "Min"},
    **{"exp": "Exp", "log": "Log", "tanh": "Tanh", "cos": "Cos", "sin": "Sin", "sqrt": "Sqrt", "erf": "Erf"},
    **{"negative": "Neg", "absolute": "Abs", "sign": "Sign", "less": "Less", "less_equal": "LessOrEqual"},
    **{"greater": "Greater", "greater_equal": "GreaterOrEqual", "equal": "Equal"},
    **{"logical_not": "Not", "logical_and": "And", "logical_or": "Or", "select": "Where", "matmul": "MatMul"},
}
REDUCTIONS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}
SHAPE_OPERATIONS = {"reshape": "Reshape", "broadcast": "Expand"}
DTYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


def onnx_model(program: Program, obs_shape: tuple[int], action_dim: int, described: str) -> onnx.ModelProto:
    """Return a model with the inputs `observation`, `noise.0`, `noise.1`, ... and the output `action`, an action or
    chunk of actions of dimension `action_dim`; `described` is its documentation, one line."""
    graph = _Graph(program)
    shapes = {"observation": obs_shape} | {f"noise.{i}": noise.shape for i, noise in enumerate(program.noise)}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("action", TensorProto.FLOAT, [action_dim])
    made = helper.make_graph(graph.nodes, "policy", inputs, [output], graph.constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, producer_name="floq", opset_imports=opset, doc_string=described)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """ONNX nodes of a program's lines; the result of line i is called `line.i`, that of the last line `action`."""

    def __init__(self, program: Program):
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [numpy_helper.from_array(array, name) for name, array in program.tensors.items()]
        last = len(program.lines) - 1
        for number, (operation, inputs, parameters) in enumerate(program.lines):
            names = [f"line.{x}" if isinstance(x, int) else x for x in inputs]
            self._add(operation, names, parameters, "action" if number == last else f"line.{number}")

    def _add(self, operation: str, inputs: list[str], parameters: list[Any], out: str) -> None:
        number = lambda name, numbers: self._numbers(f"{out}.{name}", numbers)  # noqa: E731
        if operation in ONNX_NAMES:
            self._node(ONNX_NAMES[operation], inputs, out)
        elif operation == "not_equal":
            self._node("Not", [self._node("Equal", inputs, f"{out}.equal")], out)
        elif operation == "log1p":
            one = self._constant(f"{out}.one", np.ones((), np.float32))
            self._node("Log", [self._node("Add", [*inputs, one], f"{out}.plus")], out)
        elif operation in REDUCTIONS:
            self._node(REDUCTIONS[operation], [*inputs, number("axes", parameters)], out, keepdims=0)
        elif operation == "argmax":
            index = self._node("ArgMax", inputs, f"{out}.index", axis=parameters[0], keepdims=0)
            self._node("Cast", [index], out, to=TensorProto.INT32)
        elif operation in SHAPE_OPERATIONS:
            self._node(SHAPE_OPERATIONS[operation], [*inputs, number("shape", parameters)], out)
        elif operation == "transpose":
            self._node("Transpose", inputs, out, perm=parameters)
        elif operation == "concatenate":
            self._node("Concat", inputs, out, axis=parameters[0])
        elif operation == "slice":
            starts, ends = zip(*parameters, strict=True)
            self._node("Slice", [*inputs, number("starts", starts), number("ends", ends)], out)
        elif operation == "cast":
            self._node("Cast", inputs, out, to=DTYPES[parameters[0]])
        else:
            assert operation == "window", operation
            self._add_window(inputs, parameters, out)

    def _add_window(self, inputs: list[str], sizes: list[int], out: str) -> None:
        """Add a slice with a computed start, clipped such that the slice lies within the array."""
        x, *starts = inputs
        one = self._numbers(f"{out}.one", [1])
        wide = [self._node("Cast", [start], f"{out}.wide.{i}", to=TensorProto.INT64) for i, start in enumerate(starts)]
        flat = [self._node("Reshape", [start, one], f"{out}.flat.{i}") for i, start in enumerate(wide)]
        start, size = self._node("Concat", flat, f"{out}.start", axis=0), self._numbers(f"{out}.size", sizes)
        last = self._node("Sub", [self._node("Shape", [x], f"{out}.whole"), size], f"{out}.most")
        zero = self._numbers(f"{out}.zero", [0])
        clipped = self._node("Max", [self._node("Min", [start, last], f"{out}.low"), zero], f"{out}.inside")
        self._node("Slice", [x, clipped, self._node("Add", [clipped, size], f"{out}.end")], out)

    def _node(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def _numbers(self, name: str, numbers: Any) -> str:
        return self._constant(name, np.asarray(numbers, np.int64))

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name
