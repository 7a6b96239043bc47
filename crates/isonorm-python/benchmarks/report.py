"""Writes the numbers and the plot of docs/python-speed.md from results/*.json: `python report.py`."""

import json
import pathlib

from cells import FLOOR, FRESH, OURS, PREALLOCATED
from goals import GOALS
from medians import Times, counted, parts
from plot import plot

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "python-speed.md"


def main():
    speed = json.loads((HERE / "results" / "speed.json").read_text())
    kept = json.loads((HERE / "results" / "kept.json").read_text())
    model = json.loads((HERE / "results" / "smollm2.json").read_text())
    text = PAGE.read_text()
    for name, lines in (
        ("machine", machine(speed)),
        ("goals", goals(speed)),
        ("behind", behind(speed)),
        ("faults", faults(speed)),
        ("tables", tables(speed)),
        ("memory", memory(speed, kept)),
        ("smollm2", smollm2(model)),
    ):
        text = replaced(text, name, "\n".join(lines))
    PAGE.write_text(text)
    plot(speed, PAGE.with_suffix(".svg"))


def replaced(text, name, part):
    """`text` with another part between the two markers of that name."""
    begin, end = f"<!-- {name}, by report.py -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{PAGE.name} needs the lines {begin} and {end}, once each")
    return text[: text.index(begin)] + f"{begin}\n\n{part}\n\n" + text[text.index(end) :]


def table(heading, rows):
    yield f"| {' | '.join(heading)} |"
    yield "|---" * len(heading) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def machine(speed):
    found = speed["machine"]
    packages = ("isonorm_torch", "pytorch", "onednn", "onnxruntime", "jax")
    peers = (speed["peers"][package] for package in packages if package in speed["peers"])
    versions = ", ".join(f"{peer['name']} {peer['version']}" for peer in peers)
    yield (
        f"{found['date']}, commit {found['commit']}; {found['cpu']}, {found['cores']} cores, "
        f"{', '.join(found['caches'])}; {found['system']}, transparent huge pages: {found['transparent_huge_pages']}; "
        f"Python {found['python']}, {versions}."
    )
    least = min(result["rounds"] for cell in speed["cells"] for result in cell["results"])
    yield f"Medians of {speed['rounds']} rounds, of cells that take long of {least} at least."


def goals(speed):
    threads = sorted({cell["threads"] for cell in speed["cells"]})
    times = {(cell["name"], cell["threads"]): Times(cell) for cell in speed["cells"]}

    def reached(goal, count):
        ours, theirs = times.get((goal.cell.name, count)), times.get((goal.theirs.name, count))
        if ours is None or theirs is None:
            return ""
        ratio = theirs.get("pytorch", goal.mode) / ours.get("isonorm_torch", goal.mode)
        return f"{ratio:.2f} x" if ratio >= goal.at_least else f"**{ratio:.2f} x**"

    def row(goal):
        theirs = "itself" if goal.theirs == goal.cell else goal.theirs.norm
        return [goal.cell.name, goal.mode, theirs, f"{goal.at_least:.2f} x", *(reached(goal, n) for n in threads)]

    return table(["work", "results", "PyTorch's", "to reach", *map(counted, threads)], map(row, GOALS))


def behind(speed):
    names = {module: peer["name"] for module, peer in speed["peers"].items()}
    found = []
    for threads, mode, cells in parts(speed):
        for cell in cells:
            for ours in OURS:
                ahead = cell.ahead(ours, mode)
                if ahead is not None and ahead < 1:
                    faster = names[cell.fastest(mode)]
                    found.append([cell.name, counted(threads), mode, names[ours], f"{ahead:.2f} x", faster])
    if not found:
        return ["In this run nowhere."]
    return table(["work", "threads", "results", "behind", "ahead", "the fastest"], found)


def faults(speed):
    found = {
        (cell["name"], speed["peers"][wrong["peer"]]["name"]): wrong["fault"]
        for cell in speed["cells"]
        for wrong in cell["wrong"]
    }
    if not found:
        return ["In this run none."]
    return table(["work", "library", "its result"], ([*pair, fault] for pair, fault in found.items()))


def tables(speed):
    for threads, mode, cells in parts(speed):
        columns = [name for name in speed["peers"] if name not in (*OURS, FLOOR)] + [FLOOR]
        columns = [name for name in columns if any(cell.get(name, mode) for cell in cells)]
        heading = ["work", "isonorm", "ahead", "isonorm.numpy", "ahead"]
        heading += [speed["peers"][name]["name"] for name in columns]
        yield f"{counted(threads).capitalize()}, {mode} results, microseconds:"
        yield ""
        yield from table(heading, (times(cell, mode, columns) for cell in cells))
        yield ""


def microseconds(value):
    if value is None:
        return ""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def times(cell, mode, columns):
    """One row: a time that is of fresh results in the table of preallocated ones has a dagger."""

    def time(name):
        value = cell.get(name, mode)
        return microseconds(value) + ("" if value is None or cell.has(name, mode) else "†")

    def ahead(name):
        value = cell.ahead(name, mode)
        return "" if value is None else f"{value:.2f} x" if value >= 1 else f"**{value:.2f} x**"

    return [cell.name, *(entry for name in OURS for entry in (time(name), ahead(name))), *map(time, columns)]


def memory(speed, kept):
    """What fresh results take where the allocator keeps their memory."""
    as_it_comes = {(cell["name"], cell["threads"]): Times(cell) for cell in speed["cells"]}

    def rows():
        for cell in map(Times, kept["cells"]):
            before = as_it_comes[cell.name, cell.threads]
            for peer in (*OURS, *(peer for peer in speed["peers"] if peer not in OURS)):
                found = [before.get(peer, FRESH), cell.get(peer, FRESH), cell.found.get((peer, PREALLOCATED))]
                if cell.has(peer, FRESH):
                    name = speed["peers"][peer]["name"]
                    yield [cell.name, counted(cell.threads), name, *map(microseconds, found)]

    return table(["work", "threads", "library", "fresh, us", "fresh, kept", "preallocated"], rows())


def smollm2(model):
    found, threads = model["machine"], counted(model["cells"][0]["threads"])
    versions = ", ".join(f"{name} {version}" for name, version in model["versions"].items())
    yield f"{found['date']}, {found['cpu']}, {threads}; {versions}; medians of {model['rounds']} rounds."
    yield ""

    def milliseconds(times):
        least, median, most = (times[name] / 1e3 for name in ("min_us", "median_us", "max_us"))
        return f"{median:.0f} ({least:.0f} to {most:.0f})"

    def row(cell):
        states = before, after = cell["results"]
        shares = (f"{times['share_of_norms']:.1%}" for times in states)
        return [cell["name"], *map(milliseconds, states), f"{before['median_us'] / after['median_us']:.3f} x", *shares]

    heading = ["work", "before, ms (least to most)", "after, ms", "speed", "norms' share before", "after"]
    yield from table(heading, map(row, model["cells"]))


if __name__ == "__main__":
    main()
