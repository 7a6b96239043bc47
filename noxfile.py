"""The Python package under several versions of Python and PyTorch: `nox` (or `nox -s "package(torch='2.11.0', python='3.11')"`).

Not a part of ./test, which takes one of each: an environment is 6 GB. The wheel is built once and serves all.
"""

import glob

import nox

nox.options.reuse_existing_virtualenvs = True


@nox.session
def wheel(session):
    """Builds the wheel that the other sessions install."""
    session.install("maturin>=1.9,<2")
    session.run("maturin", "build", "--release", "--out", "target/nox-wheels")


@nox.session(requires=["wheel"])
@nox.parametrize(
    "torch, python", [("2.14.1", "3.10"), ("2.15.0", "3.12"), ("2.15.0", "3.13"), ("2.11.0", "3.11"), ("2.10.0", "3.11")]
)
def package(session, torch):
    """All tests of the package, but the slow ones."""
    tests = ("pytest", "hypothesis", "ml_dtypes", "expecttest", "mypy", "transformers", "gguf", "accelerate")
    session.install(f"torch=={torch}", "numpy>=1.25", *tests)
    session.install("--no-deps", "--force-reinstall", *glob.glob("target/nox-wheels/*.whl"))
    session.run("pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *session.posargs)
