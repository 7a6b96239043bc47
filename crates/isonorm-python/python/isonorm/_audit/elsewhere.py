"""Calls in processes of their own, which read at their start which instructions they may use."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from isonorm._audit.call import Call, Environment, Outcome
from isonorm._audit.subject import AuditError, make

_START = "import sys; sys.path[:] = sys.argv[1:]; from isonorm._audit.elsewhere import serve; serve()"
_LOCK = threading.RLock()
_running: dict[Environment, _Process] = {}
_users = 0


def environments() -> dict[str, Environment]:
    """What keeps isonorm, PyTorch and NumPy from the newer instructions of this machine, by what it leaves."""
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    wide = [name for name in found if name.startswith("AVX512") or name == "X86_V4"]
    sets = {"in plain code": _environment("scalar", "default", found)}
    if {"AVX2", "X86_V3"} & set(found):
        sets["with AVX2 at most"] = _environment("avx2", "avx2", wide)
    return sets


def _environment(isonorm: str, torch: str, numpy: list[str]) -> Environment:
    without = (("NPY_DISABLE_CPU_FEATURES", " ".join(numpy)),) if numpy else ()
    return (("ISONORM_LEVEL", isonorm), ("ATEN_CPU_CAPABILITY", torch), *without)


class Elsewhere:
    """A subject, made once more in other processes.

    Parameters
    ----------
    recipe
        The arguments of `make`. What cannot be pickled is an error here, and what cannot be imported one at the first
        call.
    """

    def __init__(self, *recipe: Any) -> None:
        self._recipe = pickle.dumps(recipe)
        self._fatal = False

    def run(self, call: Call) -> Outcome:
        """Make a call in the process of its environment."""
        if self._fatal:
            raise AuditError("an earlier call ended the process of its own")
        with _LOCK:
            process = _running.get(call.environment)
            if process is None:
                process = _running[call.environment] = _Process(call.environment)
            try:
                return process.run(self._recipe, replace(call, environment=()))
            except (OSError, EOFError) as error:
                self._fatal = True
                status = _running.pop(call.environment).close()
                raise AuditError(f"it ended the process of its own, with status {status}") from error


@contextmanager
def processes() -> Iterator[None]:
    """Keeps the processes that calls within start, to the end of the outermost of these blocks."""
    global _users
    with _LOCK:
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            while not _users and _running:
                _running.popitem()[1].close()


class _Process:
    def __init__(self, environment: Environment) -> None:
        command = [sys.executable, "-c", _START, *sys.path]
        variables = os.environ | dict(environment)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
        self._recipe = b""

    def run(self, recipe: bytes, call: Call) -> Outcome:
        if recipe != self._recipe:
            self._ask((sys.path, recipe))
            self._recipe = recipe
        outcome: Outcome = self._ask(call)
        return outcome

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump(question, self._process.stdin)
        self._process.stdin.flush()
        answer, failure = pickle.load(self._process.stdout)
        if failure:
            raise AuditError(failure)
        return answer

    def close(self) -> int:
        self._process.communicate()
        return self._process.returncode


def serve() -> None:
    """Answer questions from standard input until it ends: how to make a subject, and calls of it."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a norm prints is no answer, and what it reads no question
    questions = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    subject: Any = None
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        answer, failure = None, ""
        try:
            if isinstance(question, Call):
                answer = subject.run(question)
            else:
                sys.path[:], recipe = question
                subject = make(*pickle.loads(recipe))
        except Exception as error:
            failure = f"in a process of its own, {type(error).__name__}: {error}"
        pickle.dump((answer, failure), answers)
        answers.flush()
