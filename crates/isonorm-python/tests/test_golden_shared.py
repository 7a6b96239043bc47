"""The bits that another, independent program stored in spec/golden/norms.json, through Python, with no tolerance."""

import numpy as np

import isonorm
from conftest import assert_same_bits
from test_golden import TYPES, load

OPTIONS = ("eps", "eps_outside", "weight_offset", "partial", "recipe")


def patterns(stored, dtype=np.float32):
    return np.array([int(word, 16) for word in stored], dtype=np.uint32).view(np.float32).astype(dtype)


def check(label, operation, output, found):
    """The stored values are widened to f32; gradients of parameters and statistics are f32."""
    if output in operation:
        expected = patterns(operation[output]).reshape(np.shape(found))
        assert_same_bits(np.asarray(found).astype(np.float32), expected, f"{label} {output}")
        return 1
    return 0


def run(case, name, operation):
    dtype = np.dtype(TYPES[case["dtype"]])
    is_rows = "rows" in case
    shape = (case["rows"], case["n"]) if is_rows else (case["N"], case["C"], case["S"])
    x, dy = (patterns(case[values], dtype).reshape(shape) for values in ("x", "dy"))
    affine = operation.get("affine", "weight+bias")
    weight = patterns(case["weight"], dtype) if "weight" in affine else None
    if "weight" in operation:  # of its own type
        weight = patterns(operation["weight"])
    options = {option: operation[option] for option in OPTIONS if option in operation}
    norm = next(norm for norm in ("rms_norm", "layer_norm", "batch_norm", "group_norm") if name.startswith(norm))
    if norm == "group_norm":
        options["num_groups"] = operation["groups"]
    if norm == "batch_norm":
        options["training"] = True
    label, checked = f"{name} {shape} {dtype} {case['kind']}", 0
    if "y" in operation:
        out = np.empty(shape, TYPES[operation.get("out_dtype", case["dtype"])])
        bias = patterns(case["bias"], dtype) if "bias" in affine else None
        y, stats = getattr(isonorm, norm)(x, weight=weight, bias=bias, out=out, return_stats=True, **options)
        checked += check(label, operation, "y", y)
        for output in ("mean", "var", "rstd"):
            checked += check(label, operation, output, getattr(stats, output))
    if "dx" in operation:
        length = shape[1]
        dx, dweight, dbias = getattr(isonorm, norm + "_backward")(
            dy, x, weight=weight, dweight=np.empty(length, np.float32), dbias=np.empty(length, np.float32), **options
        )
        for output, found in (("dx", dx), ("dweight", dweight), ("dbias", dbias)):
            checked += check(label, operation, output, found)
    return checked


def test_the_bits_of_an_independent_program():
    _, cases = load("norms.json")
    operations = [(case, name, operation) for case in cases for name, operation in case["out"].items()]
    for case, name, operation in operations:
        assert run(case, name, operation) > 0, f"{name}: nothing was checked"
    assert len(cases) == 65
