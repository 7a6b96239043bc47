"""The published bits, through torch: no tolerance."""

import json
from pathlib import Path

import pytest
import torch

import isonorm.torch.functional as F

GOLDEN = Path(__file__).parents[4] / "spec" / "golden"
DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
WORDS = {"f32": torch.int32, "f64": torch.int64, "f16": torch.int16, "bf16": torch.int16}
# Options that torch's functions do not have.
ABSENT = ("eps_outside", "partial", "biased_running_var")


def load(name):
    file = json.loads((GOLDEN / f"{name}.json").read_text())
    return file["arrays"], [case for case in file["cases"] if not any(option in case for option in ABSENT)]


def tensor(array, shape):
    dtype, bits = array["dtype"], bytes.fromhex(array["bits"])
    size = DTYPES[dtype].itemsize
    words = [int.from_bytes(bits[at : at + size], "big", signed=True) for at in range(0, len(bits), size)]
    return torch.tensor(words, dtype=WORDS[dtype]).view(DTYPES[dtype]).reshape(shape)


def assert_bits(found, array, name):
    expected = tensor(array, found.shape)
    assert found.dtype == expected.dtype, name
    words = WORDS[array["dtype"]]
    same = (found.contiguous().view(words) == expected.view(words)) | (found.isnan() & expected.isnan())
    assert same.all(), f"{name}: {found[~same][:4]} instead of {expected[~same][:4]}"


class Case:
    """A case's tensors, and its call."""

    def __init__(self, arrays, case):
        self.case, self.norm, self.shape = case, case["norm"], case["shape"]
        self.is_rows = self.norm in ("rms_norm", "layer_norm")
        size = self.shape[1:2]
        for name in ("x", "dy", "residual", "dresidual"):
            setattr(self, name, tensor(arrays[case[name]], self.shape) if name in case else None)
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(self, name, tensor(arrays[case[name]], size) if name in case else None)

    def __call__(self, x, residual=None, weight=None, bias=None, out=None):
        case, eps, offset = self.case, self.case["eps"], self.case.get("weight_offset", 0.0)
        if self.norm == "rms_norm":
            options = dict(recipe="llama" if case.get("llama") else "torch", weight_offset=offset)
            if residual is not None:
                return F.add_rms_norm(x, residual, self.shape[1:], weight, eps, **options)
            return F.rms_norm(x, self.shape[1:], weight, eps, out=out, **options)
        if self.norm == "layer_norm" and residual is not None:
            return F.add_layer_norm(x, residual, self.shape[1:], weight, bias, eps, weight_offset=offset)
        if self.norm == "layer_norm":
            return F.layer_norm(x, self.shape[1:], weight, bias, eps, weight_offset=offset, out=out)
        if self.norm == "group_norm":
            return F.group_norm(x, case["groups"], weight, bias, eps, weight_offset=offset, out=out)
        training, momentum = self.norm == "batch_norm_train", case.get("momentum", 0.0)
        running = self.running_mean, self.running_var
        return F.batch_norm(x, *running, weight, bias, training, momentum, eps, weight_offset=offset, out=out)

    def has_one_type(self):
        """y has x's type, which is what a call without `out` returns."""
        residual_type = self.case.get("r_type")
        types_agree = residual_type is None or DTYPES[residual_type] == self.residual.dtype
        return DTYPES[self.case["y_type"]] == self.x.dtype and types_agree

    def is_possible(self):
        rms_with_bias = self.norm == "rms_norm" and self.bias is not None
        return not rms_with_bias and (self.has_one_type() or self.residual is None)


@pytest.mark.parametrize("level", ["plain", "out"])
def test_forward(level):
    arrays, cases = load("forward")
    count = 0
    for each in cases:
        case = Case(arrays, each)
        is_training = case.norm == "batch_norm_train"
        if not case.is_possible() or (level == "out" and case.residual is not None):
            continue
        if level == "plain" and not case.has_one_type():
            continue
        out = torch.empty(case.shape, dtype=DTYPES[each["y_type"]]) if level == "out" else None
        y = case(case.x, case.residual, case.weight, case.bias, out)
        if case.residual is not None:
            y, r = y
            assert_bits(r, each["out"]["r"], each["name"])
        assert_bits(y, each["out"]["y"], each["name"])
        for name in ("running_mean", "running_var"):
            if is_training and name in each["out"]:
                assert_bits(getattr(case, name), each["out"][name], each["name"])
        count += 1
    assert count > 100


def test_backward():
    arrays, cases = load("backward")
    count = 0
    for each in cases:
        case = Case(arrays, each)
        if not case.is_possible() or not case.has_one_type():
            continue
        inputs = {name: getattr(case, name) for name in ("x", "residual", "weight", "bias")}
        inputs = {name: value.requires_grad_() for name, value in inputs.items() if value is not None}
        y = case(**inputs)
        if case.residual is None:
            torch.autograd.backward(y, case.dy)
        elif case.dresidual is None:
            torch.autograd.backward(y[0], case.dy)
        else:
            torch.autograd.backward(y, (case.dy, case.dresidual))
        gradients = {"dx": "x", "dr": "residual", "dweight": "weight", "dbias": "bias"}
        for gradient, name in gradients.items():
            if gradient in each["out"] and name in inputs:
                assert_bits(inputs[name].grad, each["out"][gradient], f"{each['name']}, {gradient}")
        count += 1
    assert count > 100
