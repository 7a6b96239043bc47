"""Training in micro-batches: the norms' gradients have the same bits however a batch is cut.

    python examples/accumulate_gradients.py

The matrices between norms are torch's; their gradients are added up by torch, so their last bits do depend on the cut.
"""

import isonorm.torch
import torch
from torch import nn


class Block(nn.Module):
    """The end of a language model: a residual add, a norm, scores."""

    def __init__(self, hidden, classes):
        super().__init__()
        self.norm = isonorm.torch.AddRMSNorm(hidden, eps=1e-6)
        self.scores = nn.Linear(hidden, classes, bias=False)

    def forward(self, x, residual):
        y, _ = self.norm(x, residual)
        # Row by row, so that a row's scores do not depend on its neighbours.
        return torch.cat([self.scores(row[None]) for row in y])


def train(sizes, steps=3):
    """The norm's weight after some steps on batches of 32, cut into micro-batches of these sizes."""
    torch.manual_seed(0)
    model = Block(64, 10)
    optimizer = torch.optim.SGD([model.norm.weight], lr=0.5)
    for _ in range(steps):
        x, residual, target = torch.randn(32, 64), torch.randn(32, 64), torch.randint(10, (32,))
        optimizer.zero_grad()
        with isonorm.torch.accumulate(model):
            for micro_x, micro_residual, micro_target in zip(
                x.split(sizes), residual.split(sizes), target.split(sizes), strict=True
            ):
                loss = nn.functional.cross_entropy(model(micro_x, micro_residual), micro_target, reduction="sum")
                (loss / 32).backward()  # the mean over the batch, not over the micro-batch
        optimizer.step()
    return model.norm.weight.detach()


if __name__ == "__main__":
    whole = train([32])
    for sizes in ([16, 16], [5, 20, 7], [1] * 32):
        same = torch.equal(train(sizes), whole)
        print(f"micro-batches of {sizes if len(sizes) < 9 else '1'}: {'the same bits' if same else 'OTHER BITS'}")
