"""All of these tests need torch; those that are marked slow need models too, or a compiler."""

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
