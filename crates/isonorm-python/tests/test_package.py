"""The package as it is installed, and as README shows it."""

import re
from importlib import metadata
from pathlib import Path

import isonorm

README = Path(__file__).parents[3] / "README.md"


def test_the_version_is_the_distributions():
    assert isonorm.__version__ == metadata.version("isonorm")


def test_the_first_blocks_of_readme_run():
    section = README.read_text().split("\n## Python\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) >= 2
    exec("".join(blocks[:2]), {})  # those of NumPy
