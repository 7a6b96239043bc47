"""What is measured on a GPU and what is to be reached, the most important first."""

from dataclasses import dataclass

from cells import BACKWARD, NCHW, NHWC, TRAINING, Cell


@dataclass(frozen=True)
class Row:
    """`of_copy` is the least share of the speed of a copy that moves as many bytes; no peer may be faster anywhere."""

    cell: Cell
    of_copy: float | None = None

    @property
    def name(self):
        return self.cell.name

    @property
    def streams(self):
        """How many times the bytes of x have to be read or written; None where they are read more than once."""
        if not self.cell.is_rows or self.cell.work == TRAINING:
            return None
        return 3 if self.cell.work == BACKWARD else 4 if self.cell.norm.startswith("add") else 2


def _rows():
    rms, layer, add, bf16 = "RMSNorm", "LayerNorm", "add + RMSNorm", "bf16"
    yield Row(Cell(rms, (16384, 4096), bf16), 0.92)
    yield Row(Cell(rms, (8192, 4096), bf16, BACKWARD), 0.85)
    yield Row(Cell(add, (16384, 4096), bf16), 0.90)
    yield Row(Cell(rms, (1, 4096), bf16))
    yield Row(Cell(rms, (27030 * 24, 128), bf16), 0.88)
    yield Row(Cell(rms, (512, 4096), bf16))
    yield Row(Cell(rms, (16384, 8192), bf16), 0.92)
    yield Row(Cell(rms, (16384, 8192), bf16, BACKWARD), 0.85)
    yield Row(Cell(rms, (1024, 131072), bf16), 0.85)
    yield Row(Cell(rms, (16384, 1024), bf16), 0.90)
    yield Row(Cell(rms, (16384, 16384), bf16), 0.92)
    yield Row(Cell(layer, (16384, 4096), bf16), 0.92)
    yield Row(Cell(layer, (8192, 4096), bf16, BACKWARD), 0.85)
    yield Row(Cell(layer, (512, 4096), bf16))
    yield Row(Cell(rms, (16384, 4096)))
    for layout in (NCHW, NHWC):
        yield Row(Cell("BatchNorm", (32, 64, 56, 56), work=TRAINING, layout=layout))


def small(row):
    """The same in a few elements, to try the script where there is no GPU."""
    cell = row.cell
    limits = (4, 96) if cell.is_rows else (2, 3, 5, 5)
    shape = tuple(map(min, cell.shape, limits))
    return Row(Cell(cell.norm, shape, cell.dtype, cell.work, cell.layout), row.of_copy)


def rows(device):
    found = _rows() if device == "cuda" else map(small, _rows())
    return {row.name: row for row in found}
