from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias, final, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "Partial",
    "Stats",
    "TorchPartial",
    "__version__",
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "batch_norm",
    "batch_norm_backward",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "register_emulated_gpu",
    "register_torch",
    "rms_norm",
    "rms_norm_backward",
    "torch_row_norm",
]

__version__: str

# Elements may be of ml_dtypes.bfloat16, which NumPy's types do not know.
_Array: TypeAlias = NDArray[Any]
_Axis: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
_Recipe: TypeAlias = Literal["torch", "llama"]
_Gradients: TypeAlias = tuple[_Array, _Array | None, _Array | None]
_AddGradients: TypeAlias = tuple[_Array, _Array, _Array | None, _Array | None]

@final
class Stats:
    @property
    def mean(self) -> _Array: ...
    @property
    def var(self) -> _Array: ...
    @property
    def rstd(self) -> _Array: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __reduce__(self) -> tuple[Any, tuple[_Array]]: ...

@final
class Partial:
    def __new__(cls, dtype: DTypeLike, columns: int, start: int = 0) -> Partial: ...
    def push(self, dy: ArrayLike, x_hat: ArrayLike) -> None: ...
    def merge(self, next: Partial) -> None: ...
    @classmethod
    def join(cls, parts: Iterable[Partial]) -> Partial: ...
    def dweight(self, dtype: DTypeLike | None = None) -> _Array: ...
    def dbias(self, dtype: DTypeLike | None = None) -> _Array: ...
    def to_bytes(self) -> bytes: ...
    @classmethod
    def from_bytes(cls, data: bytes) -> Partial: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, tuple[bytes]]: ...

@overload
def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    eps: float = 1e-6,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    recipe: _Recipe = "torch",
    eps_outside: bool = False,
    partial: int | None = None,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> _Array: ...
@overload
def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    eps: float = 1e-6,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    recipe: _Recipe = "torch",
    eps_outside: bool = False,
    partial: int | None = None,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, Stats]: ...
def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-6,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    recipe: _Recipe = "torch",
    eps_outside: bool = False,
    partial: int | None = None,
    dweight: bool | _Array | None = None,
    dbias: bool | _Array | None = None,
    stats: Stats | None = None,
    mask: ArrayLike | None = None,
    accumulate: Partial | None = None,
    threads: int | None = None,
) -> _Gradients: ...
@overload
def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    eps: float = 1e-6,
    axis: _Axis = -1,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    weight_offset: float = 0.0,
    recipe: _Recipe = "torch",
    eps_outside: bool = False,
    partial: int | None = None,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> tuple[_Array, _Array]: ...
@overload
def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    eps: float = 1e-6,
    axis: _Axis = -1,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    weight_offset: float = 0.0,
    recipe: _Recipe = "torch",
    eps_outside: bool = False,
    partial: int | None = None,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, _Array, Stats]: ...
def add_rms_norm_backward(
    dy: ArrayLike,
    r: ArrayLike,
    dresidual: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-6,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    recipe: _Recipe = "torch",
    eps_outside: bool = False,
    partial: int | None = None,
    dweight: bool | _Array | None = None,
    dbias: bool | _Array | None = None,
    stats: Stats | None = None,
    mask: ArrayLike | None = None,
    accumulate: Partial | None = None,
    threads: int | None = None,
) -> _AddGradients: ...
@overload
def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> _Array: ...
@overload
def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, Stats]: ...
def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    dweight: bool | _Array | None = None,
    dbias: bool | _Array | None = None,
    stats: Stats | None = None,
    mask: ArrayLike | None = None,
    accumulate: Partial | None = None,
    threads: int | None = None,
) -> _Gradients: ...
@overload
def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = -1,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> tuple[_Array, _Array]: ...
@overload
def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = -1,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, _Array, Stats]: ...
def add_layer_norm_backward(
    dy: ArrayLike,
    r: ArrayLike,
    dresidual: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = -1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    dweight: bool | _Array | None = None,
    dbias: bool | _Array | None = None,
    stats: Stats | None = None,
    mask: ArrayLike | None = None,
    accumulate: Partial | None = None,
    threads: int | None = None,
) -> _AddGradients: ...
@overload
def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    biased_running_var: bool = False,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> _Array: ...
@overload
def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    biased_running_var: bool = False,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, Stats]: ...
def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    training: bool = False,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    dweight: bool | _Array = True,
    dbias: bool | _Array = True,
    stats: Stats | None = None,
    threads: int | None = None,
) -> _Gradients: ...
@overload
def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> _Array: ...
@overload
def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, Stats]: ...
def group_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    dweight: bool | _Array = True,
    dbias: bool | _Array = True,
    stats: Stats | None = None,
    threads: int | None = None,
) -> _Gradients: ...
@overload
def instance_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[False] = False,
    threads: int | None = None,
) -> _Array: ...
@overload
def instance_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    return_stats: Literal[True],
    threads: int | None = None,
) -> tuple[_Array, Stats]: ...
def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: SupportsIndex = 1,
    out: _Array | None = None,
    weight_offset: float = 0.0,
    eps_outside: bool = False,
    dweight: bool | _Array = True,
    dbias: bool | _Array = True,
    stats: Stats | None = None,
    threads: int | None = None,
) -> _Gradients: ...

# For isonorm.torch.
def register_torch(path: str, nvrtc: list[str]) -> None: ...
def register_emulated_gpu(path: str) -> None: ...
def torch_row_norm(x, shape, weight, bias, centered: bool, eps: float, weight_offset: float, llama: bool, out=None): ...

@final
class TorchPartial:
    number: int
    start: int
    end: int
    def __new__(cls, columns: int, is_f64: bool, is_of_samples: bool, start: int) -> TorchPartial: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def join(parts: list[bytes]) -> TorchPartial: ...
