"""The audit: an invariant norm passes, and each kind of broken one is found where it is broken."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import isonorm
from isonorm._audit.dimensions import DIMENSIONS, Way, dimension

HIDDEN = 64


def norm(x, backwards=False, eps=1e-6):
    """An RMSNorm whose sum has one of two orders, elementwise but for that: neither depends on anything else."""
    total = x * x
    if backwards:
        total = total[..., ::-1].cumsum(axis=-1)[..., -1:]  # one by one, the last first
    while total.shape[-1] > 1:
        total = total[..., ::2] + total[..., 1::2]
    return x / np.sqrt(total / x.dtype.type(x.shape[-1]) + x.dtype.type(eps))


def by_batch(at_least):
    return lambda x: norm(x, backwards=x.size >= at_least * HIDDEN)


def by_position(x):
    y = norm(x)
    y.reshape(-1, HIDDEN)[3:4] = norm(x.reshape(-1, HIDDEN)[3:4], backwards=True)
    return y


def found(function, **options):
    """The dimensions in which bits change, and the smallest case of each."""
    report = isonorm.audit(function, HIDDEN, **{"rows": 33, **options})
    return {finding.dimension: finding.smallest for finding in report.differing}


def test_an_invariant_norm_passes():
    report = isonorm.audit(norm, HIDDEN, rows=64, dtypes=["float32", "float64"])
    assert report.ok and not report.differing
    assert {finding.result for finding in report.findings} == {"y"}
    assert {left.dimension for left in report.left} == {"threads", "gradient mode"}
    assert "The same bits in all" in str(report)


def test_a_sum_ordered_by_the_batch_is_found():
    changes = found(by_batch(5))
    assert set(changes) == {"batch size", "padding"}  # padding makes a batch larger
    case = changes["batch size"]
    assert (case.rows, case.threads) == (5, 1)
    assert 0 < case.differing_elements <= case.elements == 5 * HIDDEN
    assert case.ulps >= 1


def test_the_smallest_batch_is_found_between_those_that_are_tried():
    assert found(by_batch(21))["batch size"].rows == 21


def test_a_row_that_depends_on_its_position_is_found():
    changes = found(by_position)
    assert {"batch size", "row position"} <= set(changes) <= {"batch size", "row position", "padding"}
    assert changes["batch size"].rows == 4 and changes["batch size"].position == 3
    assert changes["row position"].rows == 4 and changes["row position"].position == 3


def test_a_sum_ordered_by_alignment_is_found():
    changes = found(lambda x: norm(x, backwards=x.ctypes.data % 64 != 0))
    assert set(changes) == {"alignment"}
    assert changes["alignment"].rows == 1 and "after a multiple of 64 bytes" in changes["alignment"].how


def test_a_sum_ordered_by_strides_is_found():
    assert set(found(lambda x: norm(x, backwards=x.strides[-1] != x.itemsize))) == {"element stride"}
    changes = found(lambda x: norm(x, backwards=x.strides == (4 * (HIDDEN + 16), 4)))
    assert set(changes) == {"row stride"}
    assert changes["row stride"].rows == 2 and changes["row stride"].how == "row stride of x 80"


def test_a_sum_ordered_by_the_number_of_axes_is_found():
    changes = found(lambda x: norm(x, backwards=x.ndim == 3))
    assert set(changes) == {"leading shape"} and changes["leading shape"].how == "x of shape (1, 1, 64)"


def test_a_sum_ordered_by_what_the_other_rows_hold_is_found():
    changes = found(lambda x: norm(x, backwards=not x[-1].any()))
    assert set(changes) == {"padding"} and changes["padding"].how == "and 1 row of padding"


def test_what_a_norm_refuses_is_said():
    def of_two_axes(x):
        _rows, _hidden = x.shape
        return norm(x)

    report = isonorm.audit(of_two_axes, HIDDEN, rows=8)
    reason = next(left.reason for left in report.left if left.dimension == "leading shape")
    assert report.ok and reason.startswith("refused: x of shape (1, 1, 64): ValueError: too many values to unpack")
    assert reason in str(report)


def test_a_sum_ordered_by_threads_is_found():
    changes = found(lambda x, threads=1: norm(x, backwards=threads == 3))
    assert set(changes) == {"threads"}
    assert (changes["threads"].rows, changes["threads"].threads) == (1, 3)


def by_instructions(x):
    return norm(x, backwards=os.environ.get("ISONORM_LEVEL") == "scalar")


def ends_elsewhere(x):
    print("not an answer")
    if os.environ.get("ISONORM_LEVEL") == "scalar":
        os._exit(3)
    return norm(x)


def test_a_sum_ordered_by_the_instruction_set_is_found():
    changes = found(by_instructions)
    assert set(changes) == {"instruction set"}
    assert (changes["instruction set"].rows, changes["instruction set"].how) == (1, "in plain code")


def test_what_cannot_be_taken_to_another_process_is_left_out_with_a_reason(tmp_path):
    def reasons(report):
        assert report.ok
        return {left.reason for left in report.left if left.dimension == "instruction set"}

    assert reasons(isonorm.audit(lambda x: norm(x), HIDDEN, rows=2)) == {
        "left out: it cannot be imported in another process, as a lambda cannot"
    }
    (reason,) = reasons(isonorm.audit(ends_elsewhere, HIDDEN, rows=2))
    assert reason == "refused: in plain code: AuditError: it ended the process of its own, with status 3"
    assert not reasons(isonorm.audit(norm, HIDDEN, rows=2))  # there is a new process

    script = tmp_path / "script.py"
    script.write_text(
        "import isonorm, numpy\n"
        "def square(x): return x * x\n"
        "print(isonorm.audit(square, 8, rows=2, dimensions=['repeat', 'instruction set']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "refused: in plain code: AuditError: in a process of its own, AttributeError: Can't get" in done.stdout


def test_a_norm_that_is_not_repeatable_is_found_and_the_rest_left_out():
    draw = random.Random(0)
    report = isonorm.audit(lambda x: norm(x, backwards=draw.random() < 0.5), HIDDEN, rows=64)
    assert {finding.dimension for finding in report.findings} == {"repeat"} and not report.ok
    assert {left.dimension for left in report.left} == set(DIMENSIONS) - {"repeat"}
    assert "other bits each time" in str(report)


def test_threads_that_race_do_not_hide_the_rest():
    draw = random.Random(0)
    changes = found(lambda x, threads=1: norm(x, backwards=threads > 1 and draw.random() < 0.5))
    assert set(changes) == {"repeat", "threads"}
    assert changes["repeat"].threads == 2


def test_gradients_of_a_function_come_from_its_backward():
    def backward(dy, x, weight):
        rows = dy.reshape(-1, HIDDEN)
        return dy * weight, (rows * x.reshape(-1, HIDDEN)).sum(axis=0), rows.sum(axis=0)

    report = isonorm.audit(lambda x, weight: x * weight, HIDDEN, rows=33, backward=backward)
    results = {finding.result: finding for finding in report.findings}
    assert list(results) == ["y", "dx", "dweight", "dbias"]
    assert {(f.dimension, f.result) for f in report.differing} >= {("micro-batches", "dweight")}
    case = next(f.smallest for f in report.differing if f.result == "dweight" and f.dimension == "micro-batches")
    assert case.position is None and case.rows >= 2 and case.elements == HIDDEN


@pytest.mark.parametrize("function", [isonorm.rms_norm, isonorm.layer_norm], ids=lambda function: function.__name__)
def test_norms_of_this_package_pass(function, dtype):
    rows = 140 if dtype == np.float32 else 20  # 128 are a leaf of the sums over rows
    report = isonorm.audit(function, 200, dtypes=[dtype.name], rows=rows)
    assert report.ok, str(report)
    assert {finding.result for finding in report.findings} == {"y", "dx", "dweight", "dbias"}
    assert {left.dimension for left in report.left} == {"gradient mode"}


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (isonorm.group_norm, {"num_groups": 2}),
        (isonorm.instance_norm, {}),
        (isonorm.batch_norm, {"running_mean": np.zeros(8, np.float32), "running_var": np.ones(8, np.float32)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_norms_over_channels_pass(function, options):
    dimensions = [name for name in DIMENSIONS if name != "micro-batches"]  # they have no sums to accumulate
    report = isonorm.audit(function, (8, 5, 5), rows=10, options=options, dimensions=dimensions)
    assert report.ok, str(report)


def test_a_report_is_plain_data():
    report = isonorm.audit(by_batch(5), HIDDEN, rows=16, seed=7, name="by batch")
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["name"], data["row"], data["ok"], data["environment"]["seed"]) == ("by batch", [HIDDEN], False, 7)
    finding = next(finding for finding in data["findings"] if finding["dimension"] == "batch size")
    assert finding["differing"] > 0 and finding["smallest"]["rows"] == 5
    text = str(report)
    assert (
        text.startswith("by batch, rows of 64\n")
        and "Smallest cases" in text
        and "5 rows, in a batch, 1 thread" in text
    )


def test_a_dimension_is_one_function():
    before = set(DIMENSIONS)
    try:

        @dimension("nothing")
        def nothing(base, scene):
            """Nothing is other."""
            yield Way("as before", base, base)

        report = isonorm.audit(norm, HIDDEN, rows=8, dimensions=["nothing"])
        assert [finding.dimension for finding in report.findings] == ["nothing"]
    finally:
        for name in set(DIMENSIONS) - before:
            del DIMENSIONS[name]


def test_all_dimensions_are_documented():
    documentation = " ".join(isonorm.audit.__doc__.split())
    assert ", ".join(DIMENSIONS) in documentation
    assert all(entry.about.endswith(".") for entry in DIMENSIONS.values())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((norm, 0), {}, "hidden is 0, but a number of at least 1"),
        ((norm, ()), {}, "hidden has no axis"),
        ((norm, 8.5), {}, "hidden is 8.5"),
        ((3, HIDDEN), {}, "3 is not callable"),
        ((norm, HIDDEN), {"dtypes": ["int8"]}, "'int8' is no dtype: one of float64, float32"),
        ((norm, HIDDEN), {"dimensions": ["colour"]}, "'colour' is no dimension: one of repeat, batch size"),
        ((norm, HIDDEN), {"rows": 0}, "rows is 0"),
        ((norm, HIDDEN), {"threads": [0]}, "threads is 0"),
        ((norm, HIDDEN), {"dimensions": ["threads"]}, "could be compared: threads, left out: it has no parameter"),
        ((norm, HIDDEN), {"arrays": "jax"}, "'jax' is no kind of arrays"),
        ((norm, HIDDEN), {"options": {"epss": 1.0}}, "unexpected keyword argument 'epss'"),
        ((isonorm.group_norm, (8, 4)), {}, "needs num_groups: give it as an option"),
        ((lambda x: x[:, :3], HIDDEN), {"arrays": "numpy"}, "returned an array of shape (1, 3), but x's (1, 64)"),
        ((lambda x: x > 0, HIDDEN), {"arrays": "numpy"}, "returned bool, but one of float64"),
        ((lambda x: None, HIDDEN), {"arrays": "numpy"}, "returned NoneType, but a NumPy array"),
        ((lambda x: x @ np.ones((3, 3)), HIDDEN), {"arrays": "numpy"}, "with numpy, ValueError"),
    ],
)
def test_errors_say_what_was_found_and_expected(arguments, options, message):
    with pytest.raises(isonorm.AuditError) as error:
        isonorm.audit(*arguments, **options)
    assert message in str(error.value)
