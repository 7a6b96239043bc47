"""Hugging Face's norms, known by what their `forward` says: the name of a class does not tell its roundings."""

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """What a norm computes, in isonorm's options; `eps` names the attribute."""

    name: str
    eps: str
    centered: bool = False
    llama: bool = False
    weight_offset: float = 0.0


_LLAMA = Family("Llama", "variance_epsilon", llama=True)
_OLMO = Family("Olmo", "variance_epsilon")
_COHERE = Family("Cohere", "variance_epsilon", centered=True)
_GEMMA = Family("Gemma", "eps", weight_offset=1.0)
_GEMMA4 = Family("Gemma 4", "eps")
_LLAMA4 = Family("Llama 4", "eps", llama=True)
# The product is rounded to a half weight's type before the weight, if the input has that type too.
_T5 = Family("T5", "variance_epsilon", llama=True)
_LAYER_NORM = Family("nn.LayerNorm", "eps", centered=True)
_RMS_NORM = Family("nn.RMSNorm", "eps")

_LLAMA_TYPE = """
def forward(self, hidden_states):
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    return """

_NORM = """
def _norm(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
"""

_SOURCES = {
    _LLAMA_TYPE + "self.weight * hidden_states.to(input_dtype)": _LLAMA,
    _LLAMA_TYPE + "(self.weight * hidden_states).to(input_dtype)": _OLMO,
    _LLAMA_TYPE + "(self.weight.to(torch.float32) * hidden_states).to(input_dtype)": _OLMO,
    _NORM
    + """
def forward(self, x):
    output = self._norm(x.float())
    output = output * (1.0 + self.weight.float())
    return output.type_as(x)
""": _GEMMA,
    _NORM
    + """
def forward(self, x):
    output = self._norm(x.float())
    output = output * self.weight.float()
    return output.type_as(x)
""": _GEMMA4,
    """
def _norm(self, hidden_states):
    mean_squared = hidden_states.pow(2).mean(-1, keepdim=True) + self.eps
    return hidden_states * torch.pow(mean_squared, -0.5)

def forward(self, hidden_states):
    normed_output = self._norm(hidden_states.float())
    if self.with_scale:
        normed_output = normed_output * self.weight.float()
    return normed_output.type_as(hidden_states)
""": _GEMMA4,
    _NORM
    + """
def forward(self, x):
    output = self._norm(x.float()).type_as(x)
    return output * self.weight
""": _LLAMA4,
    _NORM
    + """
def forward(self, x):
    return self._norm(x.float()).type_as(x)
""": _LLAMA4,
    """
def forward(self, hidden_states):
    variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    if self.weight.dtype in [torch.float16, torch.bfloat16]:
        hidden_states = hidden_states.to(self.weight.dtype)
    return self.weight * hidden_states
""": _T5,
    """
def forward(self, hidden_states):
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    mean = hidden_states.mean(-1, keepdim=True)
    variance = (hidden_states - mean).pow(2).mean(-1, keepdim=True)
    hidden_states = (hidden_states - mean) * torch.rsqrt(variance + self.variance_epsilon)
    hidden_states = self.weight.to(torch.float32) * hidden_states
    return hidden_states.to(input_dtype)
""": _COHERE,
}


def _plain(functions):
    """The text of functions without comments, docstrings, decorators and annotations."""
    texts = []
    for function in functions:
        function.returns, function.decorator_list = None, []
        for argument in function.args.args:
            argument.annotation = None
        if ast.get_docstring(function) is not None:
            function.body = function.body[1:]
        texts.append(ast.unparse(function))
    return "\n".join(texts)


_KNOWN = {_plain(ast.parse(source).body): family for source, family in _SOURCES.items()}


@functools.cache
def family_of(cls):
    """The family of a class, or None."""
    if getattr(cls, "forward", None) is nn.LayerNorm.forward:
        return _LAYER_NORM
    if getattr(cls, "forward", None) is nn.RMSNorm.forward:
        return _RMS_NORM
    try:
        functions = [cls._norm] if "_norm" in vars(cls) else []
        sources = [textwrap.dedent(inspect.getsource(function)) for function in (*functions, cls.forward)]
        return _KNOWN.get(_plain(ast.parse("\n".join(sources)).body))
    except (OSError, TypeError, SyntaxError):
        return None  # no source to read
