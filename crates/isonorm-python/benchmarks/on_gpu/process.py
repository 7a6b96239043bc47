"""A part of gpu.py in a process of its own: an error that leaves the GPU's context lost, or a hang, ends that alone."""

import atexit
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

from on_gpu.progress import STARTED, read

SCRIPT = pathlib.Path(__file__).parents[1] / "gpu.py"
GRACE = 20  # seconds that the last step may take beyond the time
RESTARTS = 6


class Child:
    """Runs a part until its time is up; where it ends before, it is started again and goes on behind that step."""

    def __init__(self, folder, name, device, until, more=(), within=(), environment=(), restarts=RESTARTS):
        self.path, self.log = folder / f"{name}.progress", folder / f"{name}.log"
        self.until, self.restarts, self.done = until, restarts, 0
        self.environment = os.environ | dict(environment)
        same = ["--progress", str(self.path), "--until", str(until), "--device", device]
        self.command = [*within, sys.executable, str(SCRIPT), *more, *same]
        self._start()
        atexit.register(self.stop)

    def _start(self):
        with open(self.log, "ab") as log:
            same = {"stdout": log, "stderr": log, "process_group": 0}
            self.process = subprocess.Popen(self.command, env=self.environment, **same)

    def is_running(self):
        """Looks after the process."""
        code, late = self.process.poll(), time.time() - self.until
        if code is None and late < GRACE:
            return True
        if code is None:
            self.stop()
        elif code != 0 and late < 0 and self._got_on():
            self._start()
            return True
        return False

    def _got_on(self):
        """Whether it did a step since it was started, and may be started again."""
        before, self.done, self.restarts = self.done, len(read(self.path)), self.restarts - 1
        return self.done > before and self.restarts >= 0

    def stop(self):
        """Ends it and the processes that it started, compilers above all."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def found(self):
        """What it found, step by step; what the end of the time broke off is as if it had not begun."""
        broken_off = self.process.returncode is not None and self.process.returncode < 0 and time.time() > self.until
        found = read(self.path)
        return {name: result for name, result in found.items() if not broken_off or result != STARTED}

    def tail(self, lines=15):
        return self.log.read_text(errors="replace").splitlines()[-lines:]


def wait(children):
    while [child for child in children if child.is_running()]:
        time.sleep(0.05)
