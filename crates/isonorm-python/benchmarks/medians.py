"""What run.py measured, for those who show it."""

from cells import FLOOR, FRESH, OURS, PREALLOCATED


class Times:
    """The medians of one cell, in microseconds."""

    def __init__(self, cell):
        self.name, self.threads = cell["name"], cell["threads"]
        self.found = {(result["peer"], result["mode"]): result["median_us"] for result in cell["results"]}

    def has(self, peer, mode):
        return (peer, mode) in self.found

    def get(self, peer, mode):
        """The time of the peer; of fresh results where it has none that are preallocated; else None."""
        if mode == PREALLOCATED and not self.has(peer, mode):
            mode = FRESH
        return self.found.get((peer, mode))

    def peers(self, mode):
        """The other libraries' times."""
        names = {peer for peer, _ in self.found} - {*OURS, FLOOR}
        return {peer: time for peer in names if (time := self.get(peer, mode)) is not None}

    def fastest(self, mode):
        """The fastest peer, or None."""
        peers = self.peers(mode)
        return min(peers, key=peers.get, default=None)

    def ahead(self, ours, mode):
        """How many times as long the fastest peer takes; None where isonorm itself has no such results."""
        peers = self.peers(mode)
        return min(peers.values()) / self.get(ours, mode) if peers and self.has(ours, mode) else None


def parts(speed):
    """`(threads, mode, times of the cells)`, table by table."""
    for threads in sorted({cell["threads"] for cell in speed["cells"]}):
        cells = [Times(cell) for cell in speed["cells"] if cell["threads"] == threads]
        for mode in (FRESH, PREALLOCATED):
            yield threads, mode, cells


def counted(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"
