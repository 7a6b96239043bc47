"""Training in micro-batches with padding: the norms' gradients have the same bits however a batch is cut and padded.

    python examples/accumulate_gradients.py

The matrices between norms are torch's; their gradients are added up by torch, so their last bits do depend on the cut.
"""

import isonorm.torch
import torch
from torch import nn

LENGTHS = [12, 3, 7, 1, 9, 4, 16, 2]  # of the samples of a batch


class Block(nn.Module):
    """The end of a language model: a residual add, a norm, scores."""

    def __init__(self, hidden, classes):
        super().__init__()
        self.norm = isonorm.torch.AddRMSNorm(hidden, eps=1e-6)
        self.scores = nn.Linear(hidden, classes, bias=False)

    def forward(self, x, residual):
        y, _ = self.norm(x, residual)
        # Row by row, so that a row's scores do not depend on its neighbours.
        return torch.cat([self.scores(row[None]) for row in y.flatten(0, 1)])


def pad(samples, length, value=0):
    """Samples of different lengths as one tensor [samples, length, ...]."""
    batch = torch.full((len(samples), length, *samples[0].shape[1:]), value, dtype=samples[0].dtype)
    for padded, sample in zip(batch, samples, strict=True):
        padded[: len(sample)] = sample
    return batch


def train(size, padding, steps=3):
    """The norm's weight after some steps on batches in micro-batches of so many samples, padded more than they must be."""
    torch.manual_seed(0)
    model = Block(64, 10)
    optimizer = torch.optim.SGD([model.norm.weight], lr=0.5)
    for _ in range(steps):
        x, residual, target = ([make(length) for length in LENGTHS] for make in (hidden, hidden, classes))
        optimizer.zero_grad()
        with isonorm.torch.accumulate(model) as accumulation:
            for i in range(0, len(LENGTHS), size):
                micro, length = slice(i, i + size), max(LENGTHS[i : i + size]) + padding
                classes_of_micro = pad(target[micro], length, -100)  # which cross_entropy ignores
                with accumulation.mask(classes_of_micro != -100):  # of Hugging Face: mask(attention_mask)
                    scores = model(pad(x[micro], length), pad(residual[micro], length))
                    loss = nn.functional.cross_entropy(scores, classes_of_micro.flatten(), reduction="sum")
                    (loss / sum(LENGTHS)).backward()  # the mean over the batch, not over the micro-batch
        optimizer.step()
    return model.norm.weight.detach()


def hidden(length):
    return torch.randn(length, 64)


def classes(length):
    return torch.randint(10, (length,))


if __name__ == "__main__":
    whole = train(len(LENGTHS), padding=0)
    for size, padding in ((4, 0), (3, 5), (1, 20)):
        same = torch.equal(train(size, padding), whole)
        print(f"micro-batches of {size}, {padding} tokens of padding more: {'the same bits' if same else 'OTHER BITS'}")
