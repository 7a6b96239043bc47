"""What a part has found, step by step, in a file: a part runs in a process of its own, and a GPU's error can end it."""

import contextlib
import faulthandler
import json
import time

PATIENCE = 120  # seconds, after which a step is thought to hang
STARTED = {"error": "ended the process, or hung"}  # what a step leaves that has no other result


class Progress:
    """Steps that are done one after another until the time is up.

    Each is on disk before and after, so a process that is started again goes on behind the step that ended the last.
    """

    def __init__(self, path, until):
        self.path, self.until = path, until
        self.found = read(path)

    def left(self):
        """Seconds until the time is up."""
        return self.until - time.time()

    def steps(self, names):
        for name in names:
            if name in self.found:
                continue
            if self.left() <= 0:
                break
            self.record(name, STARTED)
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            yield name
        faulthandler.cancel_dump_traceback_later()

    def record(self, name, result):
        self.found[name] = result
        with open(self.path, "a") as file:
            file.write("\n" + json.dumps({"name": name, "result": result}))


def read(path):
    """The last result of each step."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a process may have ended within its last line
            step = json.loads(line)
            found[step["name"]] = step["result"]
    return found
