"""Gradients of a Hugging Face model's norms over micro-batches with padding, by its own `attention_mask`."""

import pytest
import torch
from test_accumulate_mask import padded

import isonorm.torch

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def qwen3():
    """With norms of heads."""
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TINY, **HEADS, head_dim=8)), 9


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**TINY, num_attention_heads=4)), 6


def micro_batches():
    """Seven samples in micro-batches of different lengths, padded on the left."""
    tokens = torch.randint(50, (29,))
    lengths = [3, 7, 1, 5, 5, 6, 2]
    ids, real = padded(tokens, 7, left=True, lengths=lengths)
    for part, to in ((slice(0, 3), 7), (slice(3, 4), 6), (slice(4, 7), 6)):
        ids_part, real_part = ids[part, -to:], real[part, -to:]
        labels = ids_part.masked_fill(real_part == 0, -100)
        labels[real_part.cumsum(1) == 1] = -100  # a first token would be predicted from padding
        yield {"input_ids": ids_part, "attention_mask": real_part, "labels": labels}


@pytest.mark.parametrize("make", [qwen3, bert])
def test_the_bits_are_those_of_the_real_rows(make):
    model, count = make()
    model.eval()  # without dropout
    assert isonorm.torch.patch(model).count == count
    norms = {n: m for n, m in model.named_modules() if "_isonorm_family" in vars(m)}
    rows, mask = {name: [] for name in norms}, None

    def keep(name, x, y):
        real = mask != 0
        y.register_hook(lambda dy: rows[name].append((x.detach()[real], dy[real])))

    for name, norm in norms.items():
        norm.register_forward_hook(lambda _, inputs, y, name=name: keep(name, inputs[0], y))
    batches = list(micro_batches())
    with isonorm.torch.accumulate(model) as accumulation:
        for micro in batches:
            mask = micro["attention_mask"]
            with accumulation.mask(mask):
                (model(**micro).loss / len(batches)).backward()
    found = {name: param.grad.clone() for name, param in model.named_parameters()}
    whole = {name: [torch.cat(parts) for parts in zip(*rows[name], strict=True)] for name in norms}
    model.zero_grad()
    for name, norm in norms.items():
        x, dy = whole[name]
        norm._forward_hooks.clear()
        norm(x).backward(dy)
        for param in norm._parameters:
            assert torch.equal(norm._parameters[param].grad, found[f"{name}.{param}"]), name
    model.zero_grad()
    for micro in batches:  # padding takes no part, so leaving it out changes no value
        (model(**micro).loss / len(batches)).backward()
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.grad, found[name], rtol=1e-4, atol=1e-6)
