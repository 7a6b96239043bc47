"""The inputs of golden/backward.json."""

import draw
from cases import (
    BATCH_SHAPES, CHANNEL_OPTIONS, CHANNEL_TYPES, EPS, GROUPS, LENGTHS, MIXED, RESIDUALS,
    ROW_NORMS, channel_case, residual_case, row_case,
)


def every_length():
    for hidden in LENGTHS:
        for norm in ROW_NORMS:
            yield f"{norm}/length {hidden}/f64", row_case(norm, hidden, "f64", "f64", rows=1, dy="f64")
            case = row_case(norm, hidden, "bf16", "f32", "f32", rows=2, dy="bf16")
            yield f"{norm}/length {hidden}/bf16", case
    for rows in (1, 15, 16, 17, 31, 32, 33, 65, 257):
        for norm in ROW_NORMS:
            yield f"{norm}/rows {rows}", row_case(norm, 3, weight="f32", bias="f32", rows=rows, dy="f32")


def types_and_parameters():
    """dy has y's type."""
    for x, p, y in MIXED:
        for norm in ROW_NORMS:
            name = f"{norm}/x {x} parameters {p} dy {y}"
            row = dict(x=x, y=y, dy=y)
            yield f"{name}/both", row_case(norm, 33, weight=p, bias=p, **row)
            yield f"{name}/bias", row_case(norm, 33, bias=p, **row)
            yield f"{name}/neither", row_case(norm, 33, **row)
            yield f"{name}/offset 1", row_case(norm, 33, weight=p, weight_offset=1.0, **row)
            yield f"{name}/outside", row_case(norm, 33, weight=p, eps_outside=True, **row)
        name = f"rms_norm/x {x} parameters {p} dy {y}/llama"
        row |= dict(llama=True)
        yield f"{name} both", row_case("rms_norm", 129, weight=p, bias=p, **row)
        yield f"{name} neither", row_case("rms_norm", 33, **row)
        yield f"{name} offset 1", row_case("rms_norm", 33, weight=p, weight_offset=1.0, **row)
        yield f"{name} partial", row_case("rms_norm", 33, weight=p, partial=20, **row)


def partial():
    for hidden in (1, 33, 129, 257):
        for k in sorted({1, 32, 100, 128, hidden - 1, hidden}):
            if 0 < k <= hidden:
                for outside in (False, True):
                    case = row_case("rms_norm", hidden, weight="f32", dy="f32", partial=k, eps_outside=outside)
                    yield f"rms_norm/partial {k} of {hidden} {'outside' if outside else 'inside'}", case


def residuals():
    for types in RESIDUALS:
        name = "residual " + " ".join(types)
        for norm in ROW_NORMS:
            for hidden in (33, 129):
                case = residual_case(types, norm, hidden, dy=types[4], dresidual=True)
                yield f"{norm}/{name}/{hidden}", case
            yield f"{norm}/{name}/alone", residual_case(types, norm, 33, dy=types[4])
        case = residual_case(types, "rms_norm", 33, dy=types[4], dresidual=True, llama=True)
        yield f"rms_norm/{name}/llama", case


def range_rule():
    for x, scales in {"f32": [1e30, 8e37, 1e-20, 1e-40], "f64": [1e200, 1e-200, 1e-320],
                      "bf16": [8e37, 1e-40]}.items():
        for scale in scales:
            for eps in (0.0, 1e-40, 1e-5):
                for outside in (False, True):
                    for norm in ROW_NORMS:
                        case = row_case(norm, 17, x, x, rows=2, kind=scale, dy=x, eps=eps, eps_outside=outside)
                        side = "outside" if outside else "inside"
                        yield f"{norm}/range {x} {scale:g} eps {eps:g} {side}", case


def no_root():
    """Rows whose moment is 0 under eps outside the root: q is 0, and its products are taken."""
    dys, rows = draw.hostile_rows("f32", 33)
    for norm in ROW_NORMS:
        case = row_case(norm, 33, weight="f32", rows=rows, dy="f32", eps_outside=True)
        case.x, case.dy = draw.Array("f32", [0.0] * 33 * rows), dys
        yield f"{norm}/zero x and hostile dy", case
        case = row_case(norm, 33, rows=rows, kind=1e-30, dy="f32", eps_outside=True)
        case.dy = draw.Array("f32", [v * 1e30 if i % 3 else 0.0 for i, v in enumerate(case.dy.values)]).to("f32")
        yield f"{norm}/vanishing squares", case


def hostile():
    for x in ("f32", "bf16", "f16", "f64"):
        values, rows = draw.hostile_rows(x, 33)
        for norm in ROW_NORMS:
            for eps in (0.0, EPS):
                for outside in (False, True):
                    side = "outside" if outside else "inside"
                    name = f"{norm}/hostile {x} eps {eps:g} {side}"
                    case = row_case(norm, 33, x, x, rows=rows, dy=x, eps=eps, eps_outside=outside)
                    case.x = values
                    yield name, case
                    case = row_case(norm, 33, x, x, rows=rows, dy=x, eps=eps, eps_outside=outside)
                    case.dy = values
                    yield f"{name} dy", case


def channel_norms():
    train, evaluate = "batch_norm_train", "batch_norm_eval"
    for shape in BATCH_SHAPES:
        for types in CHANNEL_TYPES:
            for norm in (train, evaluate):
                name = f"{norm}/{shape} {' '.join(types)}"
                running = norm == evaluate
                yield name, channel_case(norm, shape, types, running=running, dy=types[3])
        for kind in ("offset", "huge", "tiny"):
            case = channel_case(train, shape, kind=kind, running=False, dy="f32", eps=0.0 if kind == "tiny" else EPS)
            yield f"{train}/{shape} {kind}", case
    for name, options in CHANNEL_OPTIONS.items():
        yield f"{train}/{name}", channel_case(train, (5, 3, 7), running=False, dy="f32", **options)
        yield f"{evaluate}/{name}", channel_case(evaluate, (5, 3, 7), dy="f32", **options)
    for shape, groups in GROUPS:
        for types in CHANNEL_TYPES:
            name = f"group_norm/{shape} in {groups} {' '.join(types)}"
            yield name, channel_case("group_norm", shape, types, groups=groups, dy=types[3])
        for name, options in CHANNEL_OPTIONS.items():
            case = channel_case("group_norm", shape, groups=groups, dy="f32", **options)
            yield f"group_norm/{shape} in {groups} {name}", case


def backward():
    for part in (every_length, types_and_parameters, partial, residuals, range_rule, no_root, hostile,
                 channel_norms):
        yield from part()
