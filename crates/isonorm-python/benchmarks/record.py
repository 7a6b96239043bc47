"""Results as a file, with the machine they hold for."""

import datetime
import json
import os
import pathlib
import platform
import subprocess


def save(path, found):
    """A line for each cell, so that a new run reads well as a difference."""
    head = json.dumps({name: value for name, value in found.items() if name != "cells"}, indent=1).removesuffix("\n}")
    cells = ",\n".join("  " + json.dumps(cell) for cell in found["cells"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{head},\n "cells": [\n{cells}\n ]\n}}\n')


def machine():
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "transparent_huge_pages": _huge_pages(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _read(path):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""


def _cpu():
    """The model's name, and the numbers that say which generation a hypervisor's name stands for."""
    pairs = (line.split(":", 1) for line in _read("/proc/cpuinfo").split("\n\n")[0].splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in pairs}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"


def _caches():
    """The first core's: `L1 Data 48K` and so on."""
    folders = sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return [f"L{_read(f / 'level')} {_read(f / 'type')} {_read(f / 'size')}" for f in folders]


def _huge_pages():
    return _read("/sys/kernel/mm/transparent_hugepage/enabled").partition("[")[2].partition("]")[0] or "unknown"


def _commit():
    """The commit measured, `+` where files differ from it."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
