"""The stored bits of spec/golden, through Python, with no tolerance."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np

import isonorm
from conftest import assert_same_bits

GOLDEN = Path(__file__).parents[3] / "spec" / "golden"
TYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
OPTIONS = ("eps", "eps_outside", "weight_offset", "partial")


def load(name):
    file = json.loads((GOLDEN / name).read_text())
    return [array(stored) for stored in file.get("arrays", [])], file["cases"]


def array(stored):
    dtype = np.dtype(TYPES[stored["dtype"]])
    patterns = np.frombuffer(bytes.fromhex(stored["bits"]), dtype=f">u{dtype.itemsize}")
    return patterns.astype(f"=u{dtype.itemsize}").view(dtype)


class Case:
    """One call: its inputs in their shapes, its options by Python's names, its outputs."""

    def __init__(self, arrays, case):
        self.name, self.norm, self.shape = case["name"], case["norm"], case["shape"]
        self.is_rows = self.norm in ("rms_norm", "layer_norm")
        full = {"x", "dy", "residual", "dresidual"}
        names = full | {"weight", "bias", "running_mean", "running_var"}
        self.inputs = {
            name: arrays[case[name]].reshape(self.shape if name in full else -1) for name in names if name in case
        }
        self.options = {name: case[name] for name in OPTIONS if name in case}
        if case.get("llama"):
            self.options["recipe"] = "llama"
        if self.norm == "group_norm":
            self.options["num_groups"] = case["groups"]
        if self.norm.startswith("batch_norm"):
            self.options["training"] = self.norm.endswith("train")
        self.case, self.out = case, case["out"]
        self.y_type, self.r_type = TYPES[case["y_type"]], TYPES.get(case.get("r_type"))

    def function(self, suffix=""):
        prefix = "add_" if "residual" in self.inputs else ""
        return getattr(isonorm, prefix + self.norm.removesuffix("_train").removesuffix("_eval") + suffix)

    def check(self, output, found, form=""):
        expected = array(self.out[output])
        assert_same_bits(np.reshape(found, -1), expected, f"{self.name} {output} {form}")

    def given(self, *names):
        return {name: self.inputs[name] for name in names if name in self.inputs}


def check_stats(case, stats):
    for name in ("mean", "var", "rstd"):
        if name in case.out:
            case.check(name, getattr(stats, name))


def forward(case):
    options = case.options | case.given("weight", "bias")
    y = np.full(case.shape, np.nan, dtype=case.y_type)
    if "residual" in case.inputs:
        options["residual_out"] = np.full(case.shape, np.nan, dtype=case.r_type)
        _, r, stats = case.function()(**case.given("x", "residual"), **options, out=y, return_stats=True)
        case.check("r", r)
    elif case.norm == "batch_norm_eval":
        case.function()(case.inputs["x"], **options, **case.given("running_mean", "running_var"), out=y)
        stats = None
    else:
        running = {name: values.copy() for name, values in case.given("running_mean", "running_var").items()}
        if running and "momentum" in case.case:
            running["momentum"] = case.case["momentum"]
            running["biased_running_var"] = case.case.get("biased_running_var", False)
        elif running:
            running = {}
        _, stats = case.function()(case.inputs["x"], **options, **running, out=y, return_stats=True)
        for name in {"running_mean", "running_var"} & running.keys() & case.out.keys():
            case.check(name, running[name])
    case.check("y", y)
    if stats is not None:
        check_stats(case, stats)


def transposed(case):
    """Rows along the first axis, of a new y: x is copied, and y a view."""
    if case.y_type == case.inputs["x"].dtype:
        y = case.function()(case.inputs["x"].T, **case.options, **case.given("weight", "bias"), axis=0)
        case.check("y", y.T, "transposed")


def channels_last(case):
    """NHWC."""
    if case.y_type == case.inputs["x"].dtype:
        x = np.moveaxis(case.inputs["x"], 1, -1).copy()
        running = case.given("running_mean", "running_var") if case.norm == "batch_norm_eval" else {}
        y = case.function()(x, **case.options, **case.given("weight", "bias"), **running, axis=-1)
        case.check("y", np.moveaxis(y, -1, 1), "channels last")


def test_forward():
    arrays, cases = load("forward.json")
    for stored in cases:
        case = Case(arrays, stored)
        forward(case)
        if "residual" not in case.inputs:
            (transposed if case.is_rows else channels_last)(case)
    assert len(cases) > 1300


def gradients(case, **saved):
    wanted = {f"d{name}": name in case.inputs for name in ("weight", "bias")}
    for name in ("weight", "bias"):
        if name in case.inputs:
            wanted[f"d{name}"] = np.full_like(case.inputs[name], np.nan)
    options = case.options | case.given("weight") | wanted | saved
    if "residual" in case.inputs:
        add = {name: value for name, value in options.items() if name in (*OPTIONS, "recipe", "weight")}
        _, r, stats = case.function()(
            **case.given("x", "residual"), **add, return_stats=True, residual_out=np.empty(case.shape, case.r_type)
        )
        out = np.full(case.shape, np.nan, dtype=case.inputs["x"].dtype)
        dx, dr, *parameters = case.function("_backward")(
            case.inputs["dy"], r, **case.given("dresidual"), **options, out=out, stats=stats
        )
        case.check("dr", dr)
    else:
        running = case.given("running_mean", "running_var") if case.norm == "batch_norm_eval" else {}
        dx, *parameters = case.function("_backward")(case.inputs["dy"], case.inputs["x"], **options, **running)
    case.check("dx", dx)
    for name, gradient in zip(("dweight", "dbias"), parameters, strict=True):
        if name in case.out:
            case.check(name, gradient)


def test_backward():
    arrays, cases = load("backward.json")
    for stored in cases:
        case = Case(arrays, stored)
        gradients(case)
        if case.norm != "batch_norm_eval" and "residual" not in case.inputs:
            _, stats = case.function()(case.inputs["x"], **case.options, **case.given("weight"), return_stats=True)
            gradients(case, stats=stats)
    assert len(cases) > 700
