"""The audit of PyTorch's functions and modules, and of models' norms."""

import json

import numpy as np
import pytest

import isonorm
from isonorm._audit.command import main

torch = pytest.importorskip("torch")
F = torch.nn.functional


def norm(x, backwards=False):
    """An RMSNorm whose sum has one of two orders, elementwise but for that."""
    total = x * x
    if backwards:
        total = total.flip(-1)
        while total.shape[-1] > 1:
            total = torch.cat([total[..., :1] + total[..., 1:2], total[..., 2:]], dim=-1)
    while total.shape[-1] > 1:
        total = total[..., ::2] + total[..., 1::2]
    return x / torch.sqrt(total / x.shape[-1] + 1e-6)


def found(function, **options):
    report = isonorm.audit(function, 64, **{"rows": 16, "arrays": "torch", **options})
    return {finding.dimension: finding.smallest for finding in report.differing}


def changes(report, result):
    return {finding.dimension for finding in report.differing if finding.result == result}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_an_invariant_norm_passes(dtype):
    assert found(lambda x: norm(x.detach()), dtypes=[dtype]) == {}


def test_a_sum_ordered_by_threads_is_found():
    before = torch.get_num_threads()
    cases = found(lambda x: norm(x.detach(), backwards=torch.get_num_threads() == 2))
    assert set(cases) == {"threads"}
    assert (cases["threads"].rows, cases["threads"].threads) == (1, 2)
    assert torch.get_num_threads() == before


def test_a_sum_ordered_by_alignment_is_found():
    cases = found(lambda x: norm(x.detach(), backwards=x.data_ptr() % 64 != 0))
    assert set(cases) == {"alignment"} and cases["alignment"].rows == 1


def test_a_training_mode_of_its_own_is_found():
    cases = found(lambda x: norm(x.detach(), backwards=torch.is_grad_enabled()))
    assert set(cases) == {"gradient mode"} and cases["gradient mode"].rows == 1


@pytest.mark.parametrize("function", [F.layer_norm, F.rms_norm], ids=["layer_norm", "rms_norm"])
def test_functions_of_torch(function):
    report = isonorm.audit(function, 256, rows=8)
    assert {"y", "dx", "dweight"} <= {finding.result for finding in report.findings}
    assert not changes(report, "y") & {"repeat", "row position", "gradient mode"}
    assert "micro-batches" in changes(report, "dweight")  # rounded after each


def test_a_module_is_copied_and_cast():
    module = torch.nn.LayerNorm(96).bfloat16()
    weight = module.weight.clone()
    report = isonorm.audit(module, 96, rows=8)
    assert {finding.dtype for finding in report.findings} == {"bfloat16"}  # its own
    assert {finding.dtype for finding in isonorm.audit(module, 96, rows=2, dtypes=["float32"]).findings} == {"float32"}
    assert module.weight.grad is None and module.weight.dtype == torch.bfloat16 and torch.equal(module.weight, weight)


def test_a_class_is_given_the_shape_of_a_row():
    assert isonorm.audit(torch.nn.RMSNorm, 48, rows=4, dimensions=["repeat"]).ok
    assert isonorm.audit(torch.nn.GroupNorm, (8, 3, 3), rows=4, dimensions=["repeat"], options={"num_groups": 2}).ok


def test_parameters_of_any_name_have_gradients():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(32))

        def forward(self, x):
            return x * self.gain

    report = isonorm.audit(Scaled(), 32, rows=8)
    assert {finding.result for finding in report.findings} == {"y", "dx", "dgain"}


def test_batch_statistics_are_found():
    module = torch.nn.BatchNorm1d(4, track_running_stats=False)
    assert {"batch size", "padding"} <= changes(isonorm.audit(module, (4, 8), rows=8), "y")


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm", "GroupNorm", "InstanceNorm2d", "patched"])
def test_micro_batches_of_isonorms_modules_are_accumulated(name):
    own = pytest.importorskip("isonorm.torch")
    module = torch.nn.LayerNorm(64) if name == "patched" else getattr(own, name)
    own.patch(module) if name == "patched" else None
    options = {"GroupNorm": {"num_groups": 2}, "InstanceNorm2d": {"affine": True}}.get(name)
    row = (8, 3, 3) if options else 64
    report = isonorm.audit(module, row, rows=33, options=options)
    assert {(finding.dimension, finding.result) for finding in report.findings} >= {("micro-batches", "dweight")}
    assert report.ok, str(report)


def test_a_module_of_another_width_is_an_error():
    with pytest.raises(isonorm.AuditError, match=r"x of shape \(1, 65\).*normalized_shape"):
        isonorm.audit(torch.nn.LayerNorm(64), 65)


def test_options_go_to_classes_and_functions():
    short = {"rows": 2, "dimensions": ["repeat"]}
    assert isonorm.audit(torch.nn.LayerNorm, 8, options={"bias": False}, **short).ok
    assert isonorm.audit(torch.layer_norm, 8, options={"normalized_shape": (8,)}, **short).ok  # has no signature
    for target, message in [(torch.nn.LayerNorm, "epss"), (torch.nn.LayerNorm(8), "takes no options, but epss")]:
        with pytest.raises(isonorm.AuditError, match=message):
            isonorm.audit(target, 8, options={"epss": 1.0}, **short)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaModel(config).save_pretrained(folder)
    return folder


def test_the_norms_of_a_model(llama, capsys, tmp_path):
    file = tmp_path / "report.json"
    status = main(
        ["audit", "--model", str(llama), "--rows", "8", "--dimension", "repeat", "batch size", "--json", str(file)]
    )
    text, data = capsys.readouterr().out, json.loads(file.read_text())
    assert "5 norms\n  5 x LlamaRMSNorm; audited: layers.0.input_layernorm" in text
    assert status == (0 if data["ok"] else 1)
    (group,) = data["groups"]
    assert len(group["modules"]) == 5 and group["report"]["row"] == [64]


def test_every_norm_of_a_model(llama):
    from transformers import AutoModel

    report = isonorm.audit_model(AutoModel.from_pretrained(llama), every=True, rows=4, dimensions=["repeat"])
    assert [len(group.modules) for group in report.groups] == [1] * 5
    assert len(report.reports) == 5 and report.ok


def test_norms_that_cannot_be_audited_are_left_out_with_a_reason():
    class GatedNorm(torch.nn.LayerNorm):
        def forward(self, x, gate):
            return super().forward(x) * gate

    class BareNorm(torch.nn.Module):
        def forward(self, x):
            return x

    model = torch.nn.Sequential(GatedNorm(8), BareNorm(), torch.nn.LayerNorm(8))
    report = isonorm.audit_model(model, rows=4, dimensions=["repeat"])
    reasons = {group.kind: group.reason for group in report.groups}
    assert "gate" in reasons["GatedNorm"] and "shape of a row" in reasons["BareNorm"] and reasons["LayerNorm"] == ""
    assert "left out" in str(report) and report.ok


def test_a_model_without_norms_is_an_error():
    with pytest.raises(isonorm.AuditError, match=r"Sequential has no norm: .* its classes are Linear, Sequential"):
        isonorm.audit_model(torch.nn.Sequential(torch.nn.Linear(3, 3)))


def test_what_a_function_takes_is_tried():
    assert isonorm.audit(lambda x: np.abs(np.asarray(x)), 8, rows=2, dimensions=["repeat"]).ok
    assert isonorm.audit(lambda x: torch.abs(x), 8, rows=2, dimensions=["repeat"]).ok
