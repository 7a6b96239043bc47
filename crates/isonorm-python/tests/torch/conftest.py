"""All of these tests need torch; those that are marked slow need models too, or a compiler."""

import pytest

torch = pytest.importorskip("torch")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds, or needs models or a compiler")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
