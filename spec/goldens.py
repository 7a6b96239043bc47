"""Reads, checks and writes the files of `golden/`; their format is in golden/README.md."""

import json
import math
from pathlib import Path

import cases
import cases_backward
from arithmetic import STORAGE, Trace, from_bits, narrow, to_bits
from layers import Array, Case, run
from order import row_dot, row_sum

GOLDEN = Path(__file__).parent / "golden"

ORDER_SIZES = [0, 1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 511, 512, 513]
ORDER_SIZES += [1000, 4095, 4096, 4097, 16384, 100003]


# ---------------------------------------------------------------- arrays as text


def packed(array):
    digits = STORAGE[array.dtype].hex_digits
    text = "".join(f"{to_bits(v, array.dtype):0{digits}x}" for v in array.values)
    return {"dtype": array.dtype, "bits": text}


def unpacked(entry):
    dtype, text = entry["dtype"], entry["bits"]
    digits = STORAGE[dtype].hex_digits
    words = [text[i : i + digits] for i in range(0, len(text), digits)]
    return Array(dtype, [from_bits(int(w, 16), dtype) for w in words])


def differences(name, expected, found):
    """Texts of the first few values that differ in a bit; NaN matches any NaN."""
    if expected.dtype != found.dtype or len(expected.values) != len(found.values):
        return [f"{name}: {expected.dtype} x {len(expected.values)} expected, "
                f"{found.dtype} x {len(found.values)} found"]
    bits = lambda v: "NaN" if math.isnan(v) else f"{to_bits(v, expected.dtype):x}"
    pairs = enumerate(zip(expected.values, found.values))
    unlike = [f"{name}[{i}]: {bits(e)} expected, {bits(f)} found"
              for i, (e, f) in pairs if bits(e) != bits(f)]
    return unlike[:3]


# ---------------------------------------------------------------- norms.json


def shared_array(words, dtype):
    """norms.json writes every value widened to f32."""
    return Array(dtype, [from_bits(int(w, 16), "f32") for w in words])


def shared_case(entry, operation, options):
    """One operation of a case of norms.json, as a `Case`."""
    dtype = entry["dtype"]
    kept = options.get("affine", "weight+bias")
    weight, bias = (shared_array(entry[p], dtype) if p in kept else None for p in ("weight", "bias"))
    if "weight" in options:
        weight = shared_array(options["weight"], "f32")
    rows = "rows" in entry
    name = operation if not rows else operation[: operation.index("_norm") + 5]
    names = {"batch_norm_train_eps_outside_no_affine": "batch_norm_train"}
    return Case(
        norm=names.get(name, name),
        shape=(entry["rows"], entry["n"]) if rows else (entry["N"], entry["C"], entry["S"]),
        x=shared_array(entry["x"], dtype),
        eps=options["eps"],
        y_type=options.get("out_dtype", dtype),
        weight=weight,
        bias=bias,
        eps_outside=options.get("eps_outside", False),
        llama=options.get("recipe") == "llama",
        weight_offset=options.get("weight_offset", 0.0),
        partial=options.get("partial"),
        groups=options.get("groups"),
        dy=shared_array(entry["dy"], dtype) if "dx" in options else None,
    )


def check_shared():
    """Every output of norms.json. Returns (arrays compared, texts of differences)."""
    compared, unlike = 0, []
    for entry in json.loads((GOLDEN / "norms.json").read_text())["cases"]:
        for operation, options in entry["out"].items():
            case = shared_case(entry, operation, options)
            out, grads = run(case)
            title = f"norms.json {case.shape} {entry['dtype']} {entry['kind']} {operation}"
            for name, found in (out | grads).items():
                if name in options:
                    expected = shared_array(options[name], found.dtype)
                    unlike += differences(f"{title} {name}", expected, found)
                    compared += 1
    return compared, unlike


# ---------------------------------------------------------------- our own files

ARRAYS = "x residual weight bias running_mean running_var dy dresidual".split()
DEFAULTS = {"eps_outside": False, "llama": False, "weight_offset": 0.0, "partial": None,
            "groups": None, "momentum": None, "biased_running_var": False}
PARAMETERS = {"dweight": "weight", "dbias": "bias"}


def stored_results(case):
    """What the file keeps: parameter gradients in their parameter's type, absent without one."""
    out, grads = run(case)
    for gradient, parameter in PARAMETERS.items():
        values = getattr(case, parameter)
        found = grads.pop(gradient, None)
        if found is not None and values is not None:
            grads[gradient] = found.to(values.dtype)
    return out, grads


def entry_of(name, case, results, pool):
    entry = {"name": name, "norm": case.norm, "shape": list(case.shape), "eps": case.eps}
    entry |= {k: getattr(case, k) for k, plain in DEFAULTS.items() if getattr(case, k) != plain}
    for key in ARRAYS:
        array = getattr(case, key)
        if array is not None:
            entry[key] = pool.setdefault(json.dumps(packed(array)), len(pool))
    entry["y_type"] = case.y_type
    if case.r_type:
        entry["r_type"] = case.r_type
    return entry | {"out": {k: packed(v) for k, v in results.items()}}


def write_cases(file, named, pick):
    pool, entries = {}, []
    for name, case in named:
        entries.append(entry_of(name, case, stored_results(case)[pick], pool))
    lines = ['{"contract":1,', '"arrays":[', ",\n".join(pool), '],', '"cases":[']
    lines += [",\n".join(json.dumps(e) for e in entries), "]}"]
    (GOLDEN / file).write_text("\n".join(lines) + "\n")


def fingerprints(n):
    row = [Trace.load(float(i)) for i in range(1, n + 1)]
    return {"n": n, "row_sum": f"{row_sum(Trace, row):016x}",
            "row_dot": f"{row_dot(Trace, row, row):016x}"}


def order_text():
    lines = ",\n".join(json.dumps(fingerprints(n)) for n in ORDER_SIZES)
    return '{"contract":1,\n"rows":[\n' + lines + "\n]}\n"


def write():
    write_cases("forward.json", cases.forward(), 0)
    write_cases("backward.json", cases_backward.backward(), 1)
    (GOLDEN / "order.json").write_text(order_text())
    return 0


def case_of(entry, arrays):
    fields = {k: entry[k] for k in DEFAULTS if k in entry}
    fields |= {k: unpacked(arrays[entry[k]]) for k in ARRAYS if k in entry}
    return Case(norm=entry["norm"], shape=tuple(entry["shape"]), eps=entry["eps"],
                y_type=entry["y_type"], r_type=entry.get("r_type"), **fields)


def check_own(file, pick):
    compared, unlike = 0, []
    content = json.loads((GOLDEN / file).read_text())
    for entry in content["cases"]:
        found = stored_results(case_of(entry, content["arrays"]))[pick]
        if set(found) != set(entry["out"]):
            unlike.append(f"{file} {entry['name']}: outputs {sorted(found)}")
            continue
        for name, array in found.items():
            expected = unpacked(entry["out"][name])
            unlike += differences(f"{file} {entry['name']} {name}", expected, array)
            compared += 1
    return compared, unlike


def check():
    results = {"norms.json": check_shared(), "forward.json": check_own("forward.json", 0),
               "backward.json": check_own("backward.json", 1)}
    same_order = (GOLDEN / "order.json").read_text() == order_text()
    results["order.json"] = (len(ORDER_SIZES), [] if same_order else ["order.json: other hashes"])
    for file, (compared, unlike) in results.items():
        print(f"{file}: {compared} compared, {len(unlike)} unlike")
        for text in unlike[:20]:
            print("   ", text)
    return 1 if any(unlike or not compared for compared, unlike in results.values()) else 0
