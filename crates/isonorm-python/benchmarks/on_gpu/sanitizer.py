"""A small part of the cases under NVIDIA's compute-sanitizer."""

import pathlib
import re
import shutil
import time

from on_gpu.process import Child, wait

TOOLS = ("memcheck", "racecheck", "initcheck")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_CANNOT = re.compile(r"=+ .*(not supported|failed to initialize|unable to).*", re.IGNORECASE)


def program():
    """Where it is, or None."""
    folders = [str(folder) for folder in sorted(pathlib.Path("/usr/local").glob("cuda*/bin"), reverse=True)]
    found = (shutil.which("compute-sanitizer", path=path) for path in (None, *folders))
    return next(filter(None, found), None)


def run(folder, device, until):
    """A verdict for each tool."""
    path = program() if device == "cuda" else None
    if path is None:
        why = "compute-sanitizer not found" if device == "cuda" else "needs a GPU"
        return {tool: {"verdict": "skipped", "why": why} for tool in TOOLS}
    found = {}
    for done, tool in enumerate(TOOLS):
        begin = time.time()
        share = max(0.0, until - begin) / (len(TOOLS) - done)
        within = [path, "--tool", tool, "--report-api-errors", "no", "--print-limit", "5"]
        # Each tensor is memory of its own, beside which nothing may be read or written.
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        child = Child(folder, tool, device, begin + share, ("--child", "few"), within, apart, restarts=0)
        wait([child])
        found[tool] = verdict(child) | {"seconds": round(time.time() - begin, 1)}
    return found


def verdict(child):
    """`clean` or `complains` if it came to a summary; not where the program cannot use the GPU, and each case fails."""
    log = child.log.read_text(errors="replace")
    counts = [int(count) for count in _SUMMARY.findall(log)]
    cases = [case for case in child.found().values() if {"same", "difference", "error"} & set(case)]
    wrong = [case for case in cases if "same" not in case]
    if counts and len(wrong) < len(cases):
        found = {"verdict": "complains" if sum(counts) else "clean", "errors": sum(counts)}
        return found | {"cases": len(cases), "wrong": wrong, "log": child.tail(60)}
    cannot = _CANNOT.search(log)
    why = cannot.group(0) if cannot else "came to no end" if len(wrong) < len(cases) else "did not start"
    return {"verdict": "failed", "why": why, "wrong": wrong, "log": child.tail(30)}
