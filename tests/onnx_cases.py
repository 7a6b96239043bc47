"""The ONNX project's own cases for the five norms, through the program `isonorm`.

    pip install onnx==1.22.0 pytest
    cargo build --release && pytest tests/onnx_cases.py

ISONORM_BIN names another program than target/release/isonorm. The cases are every model that onnx 1.22.0
ships with test data (later versions ship none) and that holds one of the operators: those made for the
operator (`node`) and those once exported from PyTorch (`pytorch-converted`, `pytorch-operator`). The
`_expanded` models of the same names hold the operator no longer, but its formula in simpler ones; their
inputs and outputs are, byte for byte, those of the case without the suffix.
"""

import json
import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

PROGRAM = os.environ.get("ISONORM_BIN", Path(__file__).parents[1] / "target/release/isonorm")

NUMBER_OF_CASES = {
    "LayerNormalization": 19,
    "RMSNormalization": 19,
    "BatchNormalization": 9,
    "GroupNormalization": 2,
    "InstanceNormalization": 3,
}

# ONNX's own runner allows 1e-3 of each value and 1e-7. Here: 4 ulps of f32 at the tensor's largest value.
# The expected values were computed in f32 and are themselves up to 1.4 such ulps from an evaluation in f64;
# a few roundings of isonorm's come on top.
TIGHT = 4 * 2.0**-23


@dataclass
class Case:
    name: str
    op: str
    attributes: dict
    inputs: list  # by position in the operator's signature
    outputs: list
    rtol: float
    atol: float

    def attribute(self, name, default):
        return self.attributes.get(name, default)

    def eps(self):
        return str(np.float32(self.attribute("epsilon", 1e-5)))  # the shortest decimal of that f32


def read_tensors(folder, prefix, names):
    arrays = {}
    for i, name in enumerate(names):
        arrays[name] = onnx.numpy_helper.to_array(onnx.load_tensor(folder / f"{prefix}_{i}.pb"))
    return arrays


def read_case(test):
    """The case, or None if its model does not hold one of the operators."""
    model_file = Path(test.model_dir) / "model.onnx"
    graph = onnx.load(model_file).graph
    nodes = [node for node in graph.node if node.op_type in NUMBER_OF_CASES]
    if not nodes:
        return None
    assert len(graph.node) == 1 and graph.node[0].domain == "", f"{test.name} is more than the operator"
    node = nodes[0]
    data = model_file.with_name("test_data_set_0")
    assert not model_file.with_name("test_data_set_1").exists(), test.name
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    given = [v.name for v in graph.input if v.name not in constants]
    known = constants | read_tensors(data, "input", given)
    found = read_tensors(data, "output", [v.name for v in graph.output])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    inputs, outputs = [known[n] for n in node.input], [found[n] for n in node.output]
    return Case(test.name, node.op_type, attributes, inputs, outputs, test.rtol, test.atol)


def read_cases():
    tests = [t for kind in ("node", "pytorch-converted", "pytorch-operator") for t in load_model_tests(kind=kind)]
    cases = [case for test in tests if (case := read_case(test))]
    return sorted(cases, key=lambda case: (case.op, case.name))


CASES = read_cases()


def trailing_axes(case):
    """ONNX normalizes from `axis` to the last; the program is told each of them."""
    rank = case.inputs[0].ndim
    first = case.attribute("axis", -1) % rank
    return ",".join(str(axis) for axis in range(first, rank))


def plan(case):
    """The norm, its input files, its other options, and the names under which the outputs after Y are saved."""
    assert all(t.dtype == np.float32 for t in case.inputs + case.outputs), "only f32 is read here"
    x, *rest = case.inputs
    named = dict(zip(("weight", "bias", "running-mean", "running-var"), rest))
    options = ["--eps", case.eps()]
    if case.op == "RMSNormalization":
        return "rms-norm", x, named, [*options, "--axis", trailing_axes(case)], []
    if case.op == "LayerNormalization":
        return "layer-norm", x, named, [*options, "--axis", trailing_axes(case)], ["mean", "rstd"]
    if case.op == "InstanceNormalization":
        return "instance-norm", x, named, options, []
    if case.op == "GroupNormalization":  # since version 21 of the operators, weight and bias are by channel
        assert named["weight"].shape == x.shape[1:2]
        return "group-norm", x, named, [*options, "--groups", str(case.attribute("num_groups", None))], []
    assert case.attribute("is_test", 1) == 1, "before version 7, is_test = 0 meant training"
    if not case.attribute("training_mode", 0):
        return "batch-norm", x, named, [*options, "--eval"], []
    # ONNX's momentum is the share of the old value, and its running variance takes the biased variance.
    momentum = 1 - np.float32(case.attribute("momentum", 0.9))
    options += ["--momentum", str(momentum), "--biased-running-var"]
    return "batch-norm", x, named, options, ["running_mean", "running_var"]


def read_safetensors(file):
    """The f32 tensors of a safetensors file."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] == "F32":
            begin, end = about["data_offsets"]
            tensors[name] = np.frombuffer(raw[start + begin : start + end], "<f4").reshape(about["shape"])
    return tensors


def run(case, folder):
    """The outputs of the program, in the order of the operator's."""
    norm, x, named, options, saved = plan(case)
    assert len(case.outputs) <= 1 + len(saved), case.outputs
    np.save(folder / "x.npy", x)
    command = [str(PROGRAM), norm, str(folder / "x.npy")]
    for name, tensor in named.items():
        np.save(folder / f"{name}.npy", tensor)
        command += [f"--{name}", str(folder / f"{name}.npy")]
    command += options
    if len(case.outputs) > 1:
        command += ["--save-stats", str(folder / "stats.safetensors")]
    command += ["-o", str(folder / "y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}\nexit status {done.returncode}\n{done.stderr}"
    outputs = [np.load(folder / "y.npy")]
    if len(case.outputs) > 1:
        stats = read_safetensors(folder / "stats.safetensors")
        outputs += [stats[name] for name in saved]
    return outputs[: len(case.outputs)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx(case, tmp_path):
    outputs = run(case, tmp_path)
    assert (outputs[0].shape, outputs[0].dtype) == (case.outputs[0].shape, case.outputs[0].dtype)
    for i, (found, expected) in enumerate(zip(outputs, case.outputs, strict=True)):
        found = found.reshape(expected.shape)  # ONNX keeps the normalized axes of a statistic, with length 1
        about = f"{case.name}, output {i}"
        np.testing.assert_allclose(found, expected, rtol=case.rtol, atol=case.atol, err_msg=about)
        error = np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max()
        assert error <= TIGHT, f"{about}: differs by {error:.2g} of the largest value, more than {TIGHT:.2g}"


def test_no_case_is_missing():
    assert Counter(case.op for case in CASES) == NUMBER_OF_CASES
