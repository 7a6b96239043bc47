"""Puts isonorm's kernels under the norms of a loaded model, Hugging Face's above all, and takes them away again."""

import types
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.compiler import is_compiling

from isonorm._isonorm import torch_row_norm
from isonorm.torch import _partials, _rows
from isonorm.torch._families import family_of

#: Where the operators run.
_DEVICES = ("cpu", "cuda")
#: How far a probe's results may be from the original's, in steps of the type at their size.
_STEPS = {torch.float32: 16, torch.float64: 16, torch.float16: 1.01, torch.bfloat16: 1.01}
#: The share of results that may differ at all in the half types: another place of rounding changes about a quarter.
_SHARE = 0.1


@dataclass
class Report:
    """What :func:`patch` did: `patched` names modules by family, `left` has `(name, class, reason)`."""

    patched: dict = field(default_factory=dict)
    left: list = field(default_factory=list)

    @property
    def count(self):
        """The number of modules that were patched."""
        return sum(map(len, self.patched.values()))

    def __str__(self):
        lines = [f"{len(names)} modules patched: {family}" for family, names in self.patched.items()]
        lines += [f"left: {name} ({cls}): {reason}" for name, cls, reason in self.left]
        return "\n".join(lines) or "no norms found"


def patch(model):
    """Runs the norms of a model on isonorm: each module that is recognized gets a ``forward`` of its own.

    A module is recognized if its class's ``forward`` says, word for word, what one of these families says: Llama-type
    (Mistral, Qwen, ...), Olmo-type, Gemma 1 to 4, Llama 4, T5-type, Cohere, :class:`torch.nn.LayerNorm` and
    :class:`torch.nn.RMSNorm`. It is then compared with the original on a probe in the module's dtype, and left as it is
    where results differ by more than roundings. Parameters, ``state_dict`` and classes stay as they are. Calls with an
    input of another dtype than the weight's, or neither on the CPU nor on CUDA, go to the original ``forward``.

    Args:
        model (torch.nn.Module): a model, after loading.

    Returns:
        Report: what was patched, and what was left and why. ``print`` it.

    Example::

        >>> model = AutoModelForCausalLM.from_pretrained(path)
        >>> print(isonorm.torch.patch(model))
        61 modules patched: Llama
    """
    report = Report()
    for name, module in model.named_modules():
        cls = type(module)
        family = family_of(cls)
        if family is None:
            if "Norm" in cls.__name__ and not list(module.children()):
                report.left.append((name, cls.__name__, "not one of the families that isonorm knows"))
            continue
        reason = _refusal(module, family)
        if reason is None:
            module._isonorm_family = family
            module.forward = types.MethodType(_forward, module)
            report.patched.setdefault(family.name, []).append(name)
        else:
            report.left.append((name, cls.__name__, reason))
    return report


def unpatch(model):
    """Gives the norms that :func:`patch` changed their own ``forward`` back; returns how many they were."""
    patched = [module for module in model.modules() if "_isonorm_family" in vars(module)]
    for module in patched:
        del module._isonorm_family
        del module.forward
    return len(patched)


def _forward(self, hidden_states):
    weight = getattr(self, "weight", None)
    if hidden_states.device.type not in _DEVICES or (weight is not None and weight.dtype != hidden_states.dtype):
        if _partials.active:
            _partials.refuse_ranks(self, f"is called with {hidden_states.dtype}, for which its own `forward` is used")
        return type(self).forward(self, hidden_states)
    return _compute(self, self._isonorm_family, hidden_states, weight)


def _compute(module, family, x, weight):
    eps = getattr(module, family.eps)
    if eps is None:  # of nn.RMSNorm
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    bias = getattr(module, "bias", None) if family.centered else None
    options = (family.centered, eps, family.weight_offset, family.llama)
    if not is_compiling():
        y = torch_row_norm(x, None, weight, bias, *options)
        if y is not None:
            return y
    options = (1 if weight is None else weight.dim(), *options)
    if _partials.active:
        return _partials.row_norm(module, x, weight, bias, options)
    return _rows.row_norm(x, weight, bias, options)


def _refusal(module, family):
    """Why a module stays as it is, or None."""
    if "forward" in vars(module):
        return "patched already, or by somebody else"
    weight = getattr(module, "weight", None)
    shape = getattr(module, "normalized_shape", None)
    if weight is None and isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(shape) > 1:
        return "several normalized dimensions without a weight"
    if weight is not None and weight.device.type not in _DEVICES:
        return f"its weight is on {weight.device}"
    if weight is not None and shape is None and weight.dim() != 1:
        return f"its weight has {weight.dim()} dimensions"
    dtype = torch.float32 if weight is None else weight.dtype
    if dtype not in _STEPS:
        return f"its weight is {dtype}"
    return _difference(module, family, weight, dtype)


@torch.no_grad()
def _difference(module, family, weight, dtype):
    size = tuple(weight.shape) if weight is not None else tuple(getattr(module, "normalized_shape", (128,)))
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 0.02, 30.0, 1.0]).view(4, *[1] * len(size))
    x = (torch.randn((4, *size), generator=generator) * scale).to(dtype)
    x[3] += 2.0
    x = x.to(weight.device) if weight is not None else x
    expected = type(module).forward(module, x)
    try:
        found = _compute(module, family, x, weight)
    except RuntimeError as error:  # a GPU that is too old, or without a compiler
        return f"isonorm cannot compute it on {x.device}: {error}"
    if expected.dtype != found.dtype:
        return f"it returns {expected.dtype}, not {found.dtype}"
    error = (found.double() - expected.double()).abs()
    # Where y = 0 + bias cancels, a step is one of the row's own size.
    size_of_row = expected.double().abs().mean(-1, keepdim=True)
    steps = error / torch.maximum(expected.double().abs(), size_of_row) / torch.finfo(dtype).eps
    if not steps.max() <= _STEPS[dtype]:
        return f"results differ from its own by up to {steps.max():.3g} steps of {dtype}"
    share = (error > 0).double().mean()
    if dtype.itemsize == 2 and share > _SHARE:
        return f"{share:.0%} of the results differ from its own: it rounds at another place"
    return None
