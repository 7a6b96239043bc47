"""All of these tests need torch; those that are marked slow need models too, or a compiler."""

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["*"]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds, or needs models or a compiler")


@pytest.fixture(autouse=True)
def seed():
    import torch

    torch.manual_seed(0)
