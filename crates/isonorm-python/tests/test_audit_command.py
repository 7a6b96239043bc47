"""python -m isonorm audit: what it prints, writes, and returns."""

import json
import subprocess
import sys

import pytest

from isonorm._audit.command import find, main

BROKEN = "def norm(x):\n    return x * x.dtype.type(1 if len(x) < 3 else 2)\n"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken_norms.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "broken_norms.norm"
    sys.modules.pop("broken_norms", None)


def test_the_program_runs_as_a_module():
    command = [sys.executable, "-m", "isonorm", "audit", "isonorm.rms_norm", "--hidden", "64", "--rows", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("isonorm.rms_norm, rows of 64\n")


def test_numpy_is_audited_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import isonorm\n"
        "assert isonorm.audit(isonorm.layer_norm, 64, rows=4).ok\n"
        "assert isonorm.audit(lambda x: x + x, 64, rows=4).ok\n"
        "try: isonorm.audit(lambda x: x.detach(), 64)\n"
        "except isonorm.AuditError as error: assert 'PyTorch cannot be imported' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_bits_are_status_1(broken, capsys):
    assert main(["audit", broken, "--hidden", "16", "--rows", "8"]) == 1
    assert "float32 y, batch size: 3 rows, in a batch, 1 thread: 48 of 48 elements differ" in capsys.readouterr().out


def test_json_is_written_whole(broken, tmp_path):
    file = tmp_path / "out" / "report.json"
    file.parent.mkdir()
    file.write_text("old")
    arguments = ["--hidden", "16", "--rows", "4", "--json", str(file)]
    assert main(["audit", broken, "isonorm.rms_norm", *arguments]) == 1
    data = json.loads(file.read_text())
    assert data["ok"] is False and [report["ok"] for report in data["reports"]] == [False, True]
    assert list(file.parent.iterdir()) == [file]


def test_several_norms_have_a_summary(capsys):
    arguments = ["--hidden", "16", "32", "--rows", "4", "--dtype", "float32", "float64", "--dimension", "batch size"]
    assert main(["audit", "isonorm.rms_norm", "isonorm.layer_norm", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| norm | row | type | y | dx |" in lines
    assert "| isonorm.layer_norm | 32 | float64 | same | same |" in lines
    assert sum(line.startswith("| isonorm.") for line in lines) == 8


def test_rows_of_several_axes_and_options():
    rest = ["--rows", "4", "--dimension", "batch size", "repeat"]
    assert main(["audit", "isonorm.group_norm", "--hidden", "4,3,3", "--option", "num_groups=2", *rest]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either import paths of norms or --model was expected"),
        (["isonorm.rms_norm", "--model", "x"], "either import paths"),
        (["isonorm.rms_norm"], "--hidden was expected"),
        (["--model", "x", "--hidden", "8"], "--hidden goes with import paths"),
        (["isonorm.rms_nrm", "--hidden", "8"], "isonorm has no 'rms_nrm': did you mean rms_norm"),
        (["isonorn.rms_norm", "--hidden", "8"], "there is no module 'isonorn'"),
        (["math.pi", "--hidden", "8"], "math.pi is a float, but a function"),
        (["isonorm.rms_norm", "--hidden", "8", "--dtype", "int8"], "'int8' is no dtype"),
        (["isonorm.rms_norm", "--hidden", "8", "--dimension", "colour"], "'colour' is no dimension"),
        (["isonorm.rms_norm", "--hidden", "0"], "hidden is 0"),
        (["isonorm.group_norm", "--hidden", "8,2"], "needs num_groups"),
        (["isonorm.rms_norm", "--hidden", "8", "--json", "/no/such/folder/x.json"], "folder of --json"),
    ],
)
def test_bad_usage_is_status_2(arguments, message, capsys):
    assert main(["audit", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and message in output.err


@pytest.mark.parametrize("arguments", [["--hidden", "8x"], ["--hidden", "8", "--option", "eps"], ["--rows", "many"]])
def test_arguments_that_cannot_be_read_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "isonorm.rms_norm", *arguments])
    assert stopped.value.code == 2 and repr(arguments[-1]) in capsys.readouterr().err


def test_models_that_are_not_there_are_status_2(tmp_path, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text("{}")
    for name, message in [
        (str(tmp_path / "nothing"), "does not exist, but a folder with config.json"),
        (str(tmp_path.parent), "no config.json and 0 GGUF files"),
        (str(tmp_path), "cannot be loaded"),
    ]:
        assert main(["audit", "--model", name]) == 2
        assert message in capsys.readouterr().err


def test_import_paths_may_go_through_classes():
    assert find("json.JSONDecoder.decode") is json.JSONDecoder.decode
    assert find("json:loads") is json.loads


def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "failing_norms.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["audit", "failing_norms.norm", "--hidden", "8"]) == 2
    assert "failing_norms cannot be imported: No module named 'no_such_package'" in capsys.readouterr().err
