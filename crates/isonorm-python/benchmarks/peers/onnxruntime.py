"""onnxruntime: a model of one node; fresh results by `run`, preallocated ones by IO binding.

Its CPU kernels know no bfloat16, no NHWC and, in the inference package, no training. A session has threads of its own,
which wait actively for a while after a call, as they do by default; they end with the cell.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from cells import EPS, FORWARD, FRESH, NHWC, PREALLOCATED
from peers import threads

NAME = "onnxruntime"
_FLOAT = onnx.TensorProto.FLOAT


def version():
    return onnxruntime.__version__


def contestants(cell, t):
    if cell.work != FORWARD or cell.dtype != "f32" or cell.layout == NHWC:
        return {}
    op, names, domain, outputs = {
        "RMSNorm": ("RMSNormalization", ("x", "weight"), "", ["y"]),
        "LayerNorm": ("LayerNormalization", ("x", "weight", "bias"), "", ["y"]),
        "BatchNorm": ("BatchNormalization", ("x", "weight", "bias", "mean", "var"), "", ["y"]),
        "add + RMSNorm": (
            *("SkipSimplifiedLayerNormalization", ("x", "residual", "weight"), "com.microsoft"),
            ["y", "", "", "sum"],
        ),
    }[cell.norm]
    inputs = dict(zip(names, t.numpy(*names), strict=True))
    results = [name for name in outputs if name]
    written = t.numpy(*results)
    session = _session(helper.make_node(op, list(names), outputs, domain=domain, epsilon=EPS), inputs, results)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    for name, array in zip(results, written, strict=True):
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def into():
        session.run_with_iobinding(binding)
        return written

    return {FRESH: lambda: session.run(None, inputs), PREALLOCATED: into}


def _session(node, inputs, results):
    def value(name):
        return helper.make_tensor_value_info(name, _FLOAT, inputs.get(name, inputs["x"]).shape)

    graph = helper.make_graph([node], "norm", list(map(value, inputs)), list(map(value, results)))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
