"""benchmarks/gpu.py without a GPU: all of it but streams, graphs and the sanitizer, in tiny sizes."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = 120

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the benchmarks need Python 3.11")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_it_runs_on_the_cpu(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--first", str(CASES), "--json", output]
    # Compiling takes long, and is the GPU's matter.
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reached:" in done.stdout and len(done.stdout.splitlines()) <= 30
    found = json.loads(output.read_text())
    cases = found["bits"]["cases"]
    assert len(cases) == CASES and not found["bits"]["not_reached"] and not found["bits"]["logs"]
    skipped = [name for name, case in cases.items() if "skipped" in case]
    assert skipped and all(name.endswith((" streams", " graph", " far")) for name in skipped)
    assert all("same" in case for name, case in cases.items() if name not in skipped)
    assert {tool["verdict"] for tool in found["sanitizer"].values()} == {"skipped"}
    for cell in found["cells"]:
        assert {"isonorm_torch", "pytorch"} <= {one["peer"] for one in cell["results"]}, cell
        assert cell["difference"] is None and not cell["wrong"], cell


def test_the_first_difference_is_named():
    from on_gpu.compare import difference

    x = torch.tensor([[1.0, float("nan"), -0.0], [2.0, 3.0, 4.0]], dtype=torch.bfloat16)
    other = x.clone()
    assert difference((x, x), (x, other)) is None
    other.view(torch.int16)[0, 1] = 0x7FFF  # another NaN
    assert difference((x,), (other,)) is None
    other[1, 2], other[0, 2] = 4.03125, 0.0
    found = {"result": 1, "index": [0, 2], "found": "8000", "expected": "0000", "differ": 2, "of": 6}
    assert difference((x, x), (x, other)) == found
    assert difference((x,), (x.float(),)) == {
        "result": 0,
        "found": "torch.bfloat16 [2, 3]",
        "expected": "torch.float32 [2, 3]",
    }
    assert difference((x,), (x, x)) == {"results": 1, "expected": 2}


def test_a_device_that_computes_other_bits_is_found(tmp_path):
    from on_gpu import bits, table
    from on_gpu.cases import Rows
    from on_gpu.progress import Progress

    class Broken(Rows):
        calls = 0

        def call(self, *arguments, **tensors):
            Broken.calls += 1
            *plain, dx, dweight = super().call(*arguments, **tensors)
            return *plain, dx, dweight if Broken.calls == 1 else -dweight

    progress = Progress(tmp_path / "progress", float("inf"))
    bits.run(progress, [Broken("rms_norm", (3, 40)), Rows("rms_norm", (3, 40), options=(("recipe", "?"),))], "cpu")
    differs, fails = progress.found.values()
    assert differs["difference"]["result"] == 3 and "recipe" in fails["error"]
    for cases in (differs, fails):
        found = {"bits": {"cases": {"name": cases, "other": {"same": 1}}}, "cells": []}
        assert table.is_wrong(found)
    assert not table.is_wrong({"bits": {"cases": {"other": {"same": 1}}}, "cells": []})


def test_a_step_that_ends_the_process_is_named_and_the_next_is_done(tmp_path):
    from on_gpu.progress import STARTED, Progress

    path = tmp_path / "progress"
    first = Progress(path, float("inf"))
    for name in first.steps(["a", "b", "c"]):
        if name == "b":
            break
        first.record(name, {"same": 1})
    with open(path, "a") as file:
        file.write('\n{"name": "c", "resu')
    again = Progress(path, float("inf"))
    assert list(again.steps(["a", "b", "c"])) == ["c"]
    assert again.found == {"a": {"same": 1}, "b": STARTED, "c": STARTED}
    assert list(Progress(path, 0.0).steps(["d"])) == []


@pytest.mark.parametrize(
    ("log", "case", "verdict"),
    [
        ("========= ERROR SUMMARY: 0 errors", "same", "clean"),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", "same", "complains"),
        ("========= Error: Device not supported\n========= ERROR SUMMARY: 1 error", "error", "failed"),
        ("", "same", "failed"),
    ],
)
def test_what_a_sanitizer_says(tmp_path, log, case, verdict):
    from on_gpu import sanitizer, table

    path = tmp_path / "log"
    path.write_text(log)
    child = types.SimpleNamespace(log=path, found=lambda: {"name": {case: 1}}, tail=lambda lines: [])
    found = sanitizer.verdict(child)
    assert found["verdict"] == verdict
    assert table.is_wrong({"sanitizer": {"tool": found}, "cells": []}) == (verdict == "complains")
