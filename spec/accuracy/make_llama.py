"""Makes llama.json: autograd's gradients of Hugging Face's LlamaRMSNorm in bf16, on real hidden states.

x and weight are those of `examples/smollm2.safetensors`, and eps is the model's. dy is v of `make_torch.py` with seed
0, rounded to bf16 as there. `dx` and `dweight` are bf16, each value as 4 hexadecimal digits. README.md says how to run this.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from make_torch import normal, stored, write_or_check

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2.safetensors"
EPS = 1e-5


def bits(t):
    return "".join(f"{v & 0xFFFF:04x}" for v in t.reshape(-1).view(torch.int16).tolist())


def made():
    torch.set_num_threads(1)
    tensors = load_file(EXAMPLE)
    x = tensors["x"].requires_grad_()
    norm = LlamaRMSNorm(x.shape[1], EPS).to(torch.bfloat16)
    norm.weight.data.copy_(tensors["weight"])
    y = norm(x)
    assert torch.equal(y, tensors["y_huggingface"])
    dx, dweight = torch.autograd.grad(y, (x, norm.weight), stored(normal(0, x.shape), "bf16"))
    head = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    return json.dumps(head | {"dx": bits(dx), "dweight": bits(dweight)}, indent=1) + "\n"


if __name__ == "__main__":
    write_or_check("llama.json", made())
