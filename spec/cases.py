"""The inputs of golden/forward.json and golden/backward.json."""

import math

import draw
from arithmetic import F32
from layers import Case, run

LENGTHS = [1, 31, 32, 33, 127, 128, 129, 255, 257, 513, 4097]
MIXED = [  # types of x, weight and y
    ("f64", "f64", "f64"), ("f64", "f32", "f64"), ("f64", "bf16", "f64"),
    ("f32", "f32", "bf16"), ("f32", "bf16", "f32"), ("f32", "f16", "f16"),
    ("bf16", "bf16", "bf16"), ("bf16", "f32", "f32"), ("bf16", "f32", "bf16"),
    ("bf16", "f16", "bf16"), ("bf16", "bf16", "f16"),
    ("f16", "f16", "f16"), ("f16", "f32", "f16"), ("f16", "bf16", "f32"),
]
EPS = 1e-5


def rows_of(hidden):
    return 2 if hidden < 1000 else 1


def row_case(norm, hidden, x="f32", weight=None, bias=None, y=None, rows=None, kind="normal",
             dy=None, **options):
    """A row-wise case by its types: `weight`, `bias` and `dy` name a type or are absent."""
    rows = rows or rows_of(hidden)
    values = draw.array(f"x{rows}", x, rows * hidden, kind)
    return Case(
        norm, (rows, hidden), values, options.pop("eps", EPS), y or x,
        weight=weight and draw.weight(weight, hidden),
        bias=bias and draw.array("bias", bias, hidden),
        dy=dy and draw.array(f"dy{rows}", dy, rows * hidden),
        **options,
    )


ROW_NORMS = ("rms_norm", "layer_norm")


# ---------------------------------------------------------------- forward


def every_length():
    for hidden in LENGTHS:
        for norm in ROW_NORMS:
            for x, weight, y in [("f64", "f64", "f64"), ("f16", "f32", "f16"), ("bf16", "f32", "f32")]:
                yield f"{norm}/length {hidden}/{x}", row_case(norm, hidden, x, weight, y=y)
            yield f"{norm}/length {hidden}/offset", row_case(norm, hidden, weight="f32", kind="offset")


def types_and_parameters():
    for x, p, y in MIXED:
        for norm in ROW_NORMS:
            name = f"{norm}/x {x} parameters {p} y {y}"
            yield f"{name}/weight", row_case(norm, 129, x, p, y=y)
            yield f"{name}/both", row_case(norm, 129, x, p, p, y=y)
            yield f"{name}/bias", row_case(norm, 129, x, bias=p, y=y)
            yield f"{name}/neither", row_case(norm, 33, x, y=y)
            yield f"{name}/offset 1", row_case(norm, 33, x, p, y=y, weight_offset=1.0)
            yield f"{name}/offset -0.3 both", row_case(norm, 33, x, p, p, y=y, weight_offset=-0.3)
            yield f"{name}/outside", row_case(norm, 33, x, p, p, y=y, eps_outside=True)
        llama = dict(llama=True, y=y)
        name = f"rms_norm/x {x} parameters {p} y {y}/llama"
        yield f"{name} weight", row_case("rms_norm", 129, x, p, **llama)
        yield f"{name} both", row_case("rms_norm", 129, x, p, p, **llama)
        yield f"{name} bias", row_case("rms_norm", 33, x, bias=p, **llama)
        yield f"{name} neither", row_case("rms_norm", 33, x, **llama)
        yield f"{name} offset 1", row_case("rms_norm", 129, x, p, weight_offset=1.0, **llama)


def partial():
    for hidden in (1, 33, 129, 257):
        for k in sorted({1, 31, 32, 100, 128, 129, 256, hidden - 1, hidden}):
            if 0 < k <= hidden:
                yield f"rms_norm/partial {k} of {hidden}", row_case("rms_norm", hidden, weight="f32", partial=k)
    for x in ("f64", "f16", "bf16"):
        for k in (1, 77, 129):
            case = row_case("rms_norm", 129, x, x, partial=k, eps_outside=k == 77, llama=k == 1)
            yield f"rms_norm/partial {k} of 129 {x}", case


RESIDUALS = [  # types of x, residual, r, weight and y
    ("f32", "f32", "f32", "f32", "f32"), ("bf16", "bf16", "bf16", "bf16", "bf16"),
    ("bf16", "f32", "f32", "f32", "bf16"), ("bf16", "f32", "f32", "bf16", "f32"),
    ("f16", "f16", "f16", "f32", "f16"), ("f16", "f32", "bf16", "f16", "f32"),
    ("f64", "f64", "f64", "f64", "f64"), ("bf16", "bf16", "f32", "bf16", "bf16"),
]


def residual_case(types, norm, hidden, kind="normal", rows=None, dresidual=False, **options):
    x, residual, r, weight, y = types
    case = row_case(norm, hidden, x, weight, y=y, kind=kind, rows=rows, **options)
    case.residual = draw.array("residual", residual, len(case.x.values), kind)
    case.r_type = r
    if dresidual:
        case.dresidual = draw.array("dresidual", r, len(case.x.values))
    return case


def residuals():
    for types in RESIDUALS:
        name = "residual " + " ".join(types)
        for norm in ROW_NORMS:
            for hidden in (33, 257):
                yield f"{norm}/{name}/{hidden}", residual_case(types, norm, hidden)
            yield f"{norm}/{name}/huge", residual_case(types, norm, 33, "huge")
        yield f"rms_norm/{name}/llama", residual_case(types, "rms_norm", 33, llama=True)


SCALES = {
    "f32": [1e19, 3e19, 1e30, 8e37, 1e-15, 1e-16, 1e-20, 1e-23, 1e-38, 1e-40, 1e-44],
    "f64": [1e154, 1e200, 3e307, 1e-135, 1e-136, 1e-200, 1e-308, 1e-320],
    "bf16": [3e19, 8e37, 1e-20, 1e-40],
}
BELOW = 1 - 2.0**-24
EDGE_EPS = {  # zero, least, around the two thresholds of the rule, ordinary, large
    "f32": [0.0, 1e-45, 2.0**-76 * BELOW, 2.0**-76, 2.0**-26 * BELOW, 2.0**-26, 1e-5, 1e38],
    "f64": [0.0, 5e-324, 2.0**-840 * BELOW, 2.0**-840, 2.0**-416 * BELOW, 2.0**-416, 1e300],
    "bf16": [0.0, 1e-45, 1e-30, 1e-5],
}


def range_rule():
    for x, scales in SCALES.items():
        for scale in scales:
            for eps in EDGE_EPS[x]:
                for outside in (False, True):
                    for norm in ROW_NORMS:
                        case = row_case(norm, 17, x, x, rows=1, kind=scale, eps=eps, eps_outside=outside)
                        side = "outside" if outside else "inside"
                        yield f"{norm}/range {x} {scale:g} eps {eps:.9g} {side}", case
    for edge in (2.0**-50, 2.0**-50 * BELOW):
        case = row_case("rms_norm", 32, rows=1, eps=0.0)
        case.x = draw.Array("f32", [edge] * 32)
        yield f"rms_norm/range threshold {edge:.9g}", case
    yield from moment_thresholds()
    for k in (1, 5):
        for scale in (1e30, 1e-30):
            case = row_case("rms_norm", 17, kind=scale, partial=k, eps=0.0, weight="f32")
            yield f"rms_norm/range partial {k} {scale:g}", case


def moment_thresholds():
    """x[0]^2 at the least moment that is not too small, above it and below it; x[1] * s overflows."""
    for x, root, beyond in (("f32", 2.0**-50, 2.0**77), ("f64", 2.0**-450, 2.0**573)):
        for first, second in ((root, beyond), (root * 1.375, beyond * 2), (root * BELOW, beyond)):
            case = row_case("rms_norm", 4, x, rows=1, eps=0.0, partial=1)
            case.x = draw.Array(x, [first, second, math.nan, -math.inf])
            yield f"rms_norm/range moment {x} {first / root:.9g}", case


def hostile():
    for x, hidden in [("f32", 1), ("f32", 33), ("f32", 129), ("bf16", 33), ("f16", 33), ("f64", 33)]:
        values, rows = draw.hostile_rows(x, hidden)
        for norm in ROW_NORMS:
            for eps in (0.0, 1e-5):
                for outside in (False, True):
                    case = row_case(norm, hidden, x, x, x, rows=rows, eps=eps, eps_outside=outside)
                    case.x = values
                    side = "outside" if outside else "inside"
                    yield f"{norm}/hostile {x} {hidden} eps {eps:g} {side}", case
        plain = row_case("rms_norm", hidden, x, rows=rows, llama=True)
        plain.x = values
        yield f"rms_norm/hostile {x} {hidden} llama without weight", plain


BATCH_SHAPES = [(2, 1, 1), (3, 2, 5), (17, 3, 1), (33, 2, 1), (16, 2, 4), (2, 2, 257), (1, 2, 33), (40, 1, 3)]
CHANNEL_TYPES = [  # types of x, parameters, running statistics and y
    ("f32", "f32", "f32", "f32"), ("bf16", "f32", "f32", "bf16"), ("f64", "f64", "f64", "f64"),
    ("f64", "f32", "f32", "f64"), ("f16", "f16", "f16", "f16"), ("bf16", "bf16", "bf16", "f32"),
]


def channel_case(norm, shape, types=CHANNEL_TYPES[0], kind="normal", affine=("weight", "bias"),
                 running=True, dy=None, **options):
    samples, channels, spatial = shape
    x, parameter, statistic, y = types
    n = samples * channels * spatial
    if norm == "group_norm":
        running = False
    return Case(
        norm, shape, draw.array(f"x{shape}", x, n, kind), options.pop("eps", EPS), y,
        weight=draw.weight(parameter, channels) if "weight" in affine else None,
        bias=draw.array("bias", parameter, channels) if "bias" in affine else None,
        running_mean=draw.array("running mean", statistic, channels) if running else None,
        running_var=draw.variance(statistic, channels) if running else None,
        dy=dy and draw.array(f"dy{shape}", dy, n),
        **options,
    )


CHANNEL_OPTIONS = {
    "affine": {},
    "none outside": dict(affine=(), eps_outside=True),
    "weight": dict(affine=("weight",)),
    "bias": dict(affine=("bias",)),
    "weight offset": dict(weight_offset=1.0),
    "eps 0": dict(eps=0.0),
}


def batch_norms():
    train, evaluate = "batch_norm_train", "batch_norm_eval"
    for shape in BATCH_SHAPES:
        for types in CHANNEL_TYPES:
            name = f"{shape} {' '.join(types)}"
            yield f"{train}/{name}", channel_case(train, shape, types, momentum=0.1)
            yield f"{evaluate}/{name}", channel_case(evaluate, shape, types)
        for kind in ("offset", "huge", "tiny"):
            case = channel_case(train, shape, kind=kind, momentum=1 / 3, eps=0.0 if kind == "tiny" else EPS)
            yield f"{train}/{shape} {kind} momentum 1/3", case
    for name, options in CHANNEL_OPTIONS.items():
        biased = dict(momentum=1.0, biased_running_var=True)
        yield f"{train}/{name}", channel_case(train, (5, 3, 7), **biased, **options)
        yield f"{evaluate}/{name}", channel_case(evaluate, (5, 3, 7), **options)
    for momentum in (0.0, 0.01, 0.3, 0.7, 0.999, 1.0):
        yield f"{train}/momentum {momentum}", channel_case(train, (5, 3, 7), momentum=momentum)
    yield f"{train}/no running", channel_case(train, (5, 3, 7), running=False)


GROUPS = [((2, 4, 9), 1), ((2, 4, 9), 2), ((2, 4, 9), 4), ((3, 6, 1), 3), ((3, 6, 1), 6),
          ((2, 4, 33), 2), ((1, 2, 257), 2), ((17, 2, 3), 1), ((2, 3, 43), 1)]


def group_norms():
    for shape, groups in GROUPS:
        for types in CHANNEL_TYPES:
            name = f"group_norm/{shape} in {groups} {' '.join(types)}"
            yield name, channel_case("group_norm", shape, types, groups=groups)
        for name, options in CHANNEL_OPTIONS.items():
            yield f"group_norm/{shape} in {groups} {name}", channel_case("group_norm", shape, groups=groups, **options)
        for kind in ("offset", "huge", "tiny"):
            case = channel_case("group_norm", shape, kind=kind, groups=groups, eps=0.0 if kind == "tiny" else EPS)
            yield f"group_norm/{shape} in {groups} {kind}", case


def fused():
    """y = fma(x_hat, w, 1) a hair above 1 + 2^-24: rounded apart, or in f64 first, it gives 1."""
    x, weight = [], []
    candidate = 1.0
    while len(x) < 8:
        candidate = F32.add(candidate, 2.0**-20)
        row = row_case("rms_norm", 1, rows=1, eps=1.0)
        row.x = draw.Array("f32", [candidate])
        x_hat = run(row)[0]["y"].values[0]
        w = F32.div(1.0, x_hat)
        if 0 < F32.fma(x_hat, w, -1.0) < 2.0**-29:
            x.append(candidate)
            weight.append(w * 2.0**-24)
    for i in range(8):
        case = row_case("rms_norm", 1, rows=1, eps=1.0)
        case.x, case.weight = draw.Array("f32", [x[i]]), draw.Array("f32", [weight[i]])
        case.bias = draw.Array("f32", [1.0])
        yield f"rms_norm/fused {i}", case


def one_rounding():
    """A mean a hair above halfway between two values of the running mean's type."""
    for statistic, half in (("bf16", 2.0**-8), ("f16", 2.0**-11), ("f32", 2.0**-24)):
        for value in (1 + half + 2.0**-50, 1 + half, 1 + 3 * half - 2.0**-50):
            types = ("f64", "f64", statistic, "f64")
            case = channel_case("batch_norm_train", (2, 1, 1), types, momentum=1.0)
            case.x = draw.Array("f64", [value, value])
            yield f"batch_norm_train/one rounding {statistic} {value!r}", case


def forward():
    for part in (every_length, types_and_parameters, partial, residuals, range_rule, hostile,
                 batch_norms, group_norms, fused, one_rounding):
        yield from part()
