"""What is printed last: a table of at most thirty lines. The JSON has everything."""

OURS, FLOOR = "isonorm_torch", "copy"  # as in cells.py, which loads torch
MARK = "!"  # behind what is not reached
SHOWN = 3  # differences, at most
HEADING = ("us", "GB/s", "of copy", "to reach")


def lines(found):
    about, machine = found["device"], found["machine"]
    versions = f"PyTorch {about.get('torch')}, commit {machine['commit']}, {machine['date']}"
    yield f"isonorm {about.get('isonorm')} on {about.get('name')}, {versions}"
    seconds = ", ".join(f"{part} {took:.0f}" for part, took in about.get("seconds", {}).items())
    yield f"seconds: {seconds}"
    yield from (f"{part} failed: {why}"[:160] for part, why in found.get("failed", {}).items())
    if "bits" in found:
        yield from _bits(found["bits"])
    if "sanitizer" in found:
        yield "sanitizer: " + ", ".join(f"{tool} {_verdict(one)}" for tool, one in found["sanitizer"].items())
    if "peers" in found:
        yield from _speed(found)


def is_wrong(found):
    """Whether bits differ, isonorm failed or a sanitizer complains."""
    cases = found.get("bits", {"cases": {}})["cases"]
    wrong = [case for case in cases.values() if "difference" in case or "error" in case]
    tools = found.get("sanitizer", {}).values()
    wrong += [tool for tool in tools if tool.get("errors") or (tool["verdict"] == "clean" and tool["wrong"])]
    wrong += [cell for cell in found["cells"] if cell.get("difference") or "error" in cell or _own_fault(cell)]
    nothing = "bits" in found and not any("same" in case for case in cases.values())
    return bool(wrong or nothing or found.get("failed"))


def _bits(found):
    cases = found["cases"]
    kinds = ("same", "difference", "error", "skipped")
    count = {kind: sum(kind in case for case in cases.values()) for kind in kinds}
    yield (
        f"bits: {count['same']} cases the same as on the CPU, {count['difference']} differ, {count['error']} failed, "
        f"{count['skipped']} skipped, {len(found['not_reached'])} not reached"
    )
    wrong = [(name, case) for name, case in cases.items() if "difference" in case or "error" in case]
    for name, case in wrong[:SHOWN]:
        yield f"  {name}: {_difference(case['difference']) if 'difference' in case else case['error']}"[:160]
    if not cases:
        yield from _tail(*found["logs"][:1])


def _tail(log=()):
    return (f"  {line}"[:160] for line in log[-SHOWN:])


def _difference(found):
    if "index" not in found:
        return f"{found}"
    where = f"result {found['result']} at {found['index']}"
    return f"{where}: {found['found']}, expected {found['expected']}; {found['differ']} of {found['of']} differ"


def _verdict(tool):
    if tool["verdict"] == "clean":
        return f"clean ({tool['cases']} cases)"
    if tool["verdict"] == "complains":
        return f"COMPLAINS ({tool['errors']} errors)"
    return f"{tool['verdict']} ({tool['why']})"


def _speed(found):
    peers = found["peers"].get("found", {})
    host = {one["peer"]: one["median_us"] for one in found["host"].get("results", [])}
    yield "a call of 1x64 f32 on the host, us: " + ", ".join(f"{name} {time:.2f}" for name, time in host.items())
    others = [module for module in peers if module != OURS]
    short = (module.rpartition(".")[2] for module in others)
    yield _spread("(peers: how many times as long as isonorm)", [*HEADING, *short])
    for cell in found["cells"]:
        yield _spread(cell["name"], _row(cell, others))
    reached = [cell for cell in found["cells"] if is_reached(cell)]
    missing = ", ".join(f"{module} ({why})"[:60] for module, why in found["peers"].get("missing", {}).items())
    yield f"reached: {len(reached)} of {len(found['cells'])} rows ({MARK}: what is not); not there: {missing or 'none'}"
    yield from _tail(found["speed_log"])


def times(cell):
    return {one["peer"]: one["median_us"] for one in cell.get("results", [])}


def of_copy(cell):
    """The share of the copy's speed, or None."""
    time = times(cell)
    return time[FLOOR] / time[OURS] if FLOOR in time and OURS in time else None


def is_reached(cell):
    """Whether isonorm is as fast as the row asks for and no peer is faster."""
    time, share = times(cell), of_copy(cell)
    if OURS not in time or cell.get("difference"):
        return False
    fastest = min(other for peer, other in time.items() if peer != FLOOR)
    return time[OURS] <= fastest and (cell["of_copy"] is None or (share or 0) >= cell["of_copy"])


def _spread(name, words):
    return f"{name:49}" + "".join(f"{word:>10}" for word in words)


def _own_fault(cell):
    """Why there is no time of isonorm's, or None."""
    return next((one["fault"] for one in cell.get("wrong", ()) if one["peer"] == OURS), None)


def _row(cell, others):
    if cell.get("not_reached"):
        return [f"not reached{MARK}"]
    time, share, least = times(cell), of_copy(cell), cell["of_copy"]
    ours = time.get(OURS)
    if ours is None:
        return [f"failed{MARK}: {cell.get('error') or _own_fault(cell)}"[:100]]
    words = [f"{ours:.2f}", f"{cell['bytes'] / ours / 1e3:.0f}" if cell["bytes"] else ""]
    words += ["" if share is None else _marked(share, least or 0), "" if least is None else f"{least:.2f}"]
    words += [_marked(time[module] / ours, 1.0) if module in time else "" for module in others]
    return [*words, *([f"bits differ{MARK}"] if cell.get("difference") else [])]


def _marked(value, least):
    return f"{value:.3f}" + (MARK if value < least else " ")
