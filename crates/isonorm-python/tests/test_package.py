"""The package as it is installed."""

from importlib import metadata

import isonorm


def test_the_version_is_the_distributions():
    assert isonorm.__version__ == metadata.version("isonorm")
