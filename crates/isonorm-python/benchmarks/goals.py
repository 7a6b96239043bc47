"""What the package set itself to reach beside PyTorch: how many times as long PyTorch's function takes, at least."""

from dataclasses import dataclass

from cells import BACKWARD, FRESH, NCHW, NHWC, PREALLOCATED, TRAINING, Cell


@dataclass(frozen=True)
class Goal:
    cell: Cell
    theirs: Cell
    mode: str
    at_least: float


def _goals():
    token, row, large, training = (1, 64), (1, 4096), (4096, 4096), (2048, 4096)
    for norm in ("RMSNorm", "LayerNorm"):
        yield Goal(Cell(norm, token), Cell("LayerNorm", token), FRESH, 1 / 0.75)
        yield Goal(Cell(norm, token, work=TRAINING), Cell("LayerNorm", token, work=TRAINING), FRESH, 1.0)
    yield Goal(Cell("RMSNorm", row), Cell("RMSNorm", row), FRESH, 4.0)
    for dtype in ("f32", "bf16"):
        for mode, times in ((FRESH, 2.5), (PREALLOCATED, 5.0)):
            yield Goal(Cell("RMSNorm", large, dtype), Cell("RMSNorm", large, dtype), mode, times)
            yield Goal(Cell("LayerNorm", large, dtype), Cell("LayerNorm", large, dtype), mode, 1.0)
    for norm, times in (("RMSNorm", 3.0), ("LayerNorm", 1.0)):
        yield Goal(Cell(norm, training, work=BACKWARD), Cell(norm, training, work=BACKWARD), FRESH, times)
    for layout in (NCHW, NHWC):
        image = Cell("BatchNorm", (32, 64, 56, 56), work=TRAINING, layout=layout)
        yield Goal(image, image, FRESH, 1.0)


GOALS = tuple(_goals())
