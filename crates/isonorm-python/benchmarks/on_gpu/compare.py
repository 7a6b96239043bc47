"""Whether results have the same bits, as integers; every NaN counts as the same one."""

import torch

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    tensor = tensor.detach().cpu().contiguous()
    words = tensor.view(_WORDS[tensor.element_size()])
    quiet = torch.full((), float("nan"), dtype=tensor.dtype).view(words.dtype)
    return torch.where(tensor.isnan(), quiet, words)


def difference(found, expected):
    """Where results first differ, with both patterns, or None."""
    if len(found) != len(expected):
        return {"results": len(found), "expected": len(expected)}
    for result, pair in enumerate(zip(found, expected, strict=True)):
        described = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in pair]
        if described[0] != described[1]:
            return {"result": result, "found": described[0], "expected": described[1]}
        words, wanted = map(bits, pair)
        if not torch.equal(words, wanted):
            return {"result": result, **_first(words, wanted)}
    return None


def _first(words, wanted):
    differ = words != wanted
    at = torch.unravel_index(differ.flatten().to(torch.uint8).argmax(), words.shape)  # the first of the greatest
    digits = words.element_size() * 2
    found, expected = (f"{int(each[at]) % 16**digits:0{digits}x}" for each in (words, wanted))
    count = {"differ": int(differ.sum()), "of": words.numel()}
    return {"index": [int(i) for i in at], "found": found, "expected": expected, **count}
