"""The plot of docs/python-speed.md: how many times as long each peer takes, cell by cell."""

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator

from cells import FLOOR, OURS
from medians import counted, parts

# The same numbers give the same file.
plt.rcParams |= {"svg.hashsalt": "isonorm", "svg.fonttype": "none", "font.size": 8}
_TICKS = (0.5, 1, 2, 4, 8, 16, 32, 64)


def plot(speed, path):
    shown = list(parts(speed))
    height = 1 + len(shown) // 2 * 0.19 * len(shown[0][2])
    figure, axes = plt.subplots(len(shown) // 2, 2, figsize=(11, height), sharey=True, sharex=True, squeeze=False)
    peers = {name: peer["name"] for name, peer in speed["peers"].items() if name not in (*OURS, FLOOR)}
    for panel, (threads, mode, cells) in zip(axes.flat, shown, strict=True):
        _panel(panel, cells, mode, peers)
        panel.set_title(f"{counted(threads)}, {mode} results")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    title = "How many times as long as isonorm's (hollow: isonorm.numpy's, where PyTorch's half has no such results)"
    figure.suptitle(title, y=1 - 0.1 / height)
    below = (0.5, 1 - 0.3 / height)
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), bbox_to_anchor=below, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / height))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(panel, cells, mode, peers):
    for marker, (peer, label) in zip("osD^vP", peers.items(), strict=False):
        color = f"C{list(peers).index(peer)}"
        for ours, fill in zip(OURS, (color, "none"), strict=True):
            first = [cell.has(ours, mode) and (ours == OURS[0] or not cell.has(OURS[0], mode)) for cell in cells]
            times = [(cell.get(peer, mode), cell.get(ours, mode), at) for at, cell in enumerate(cells) if first[at]]
            points = [(theirs / time, at) for theirs, time, at in times if theirs is not None]
            if points:
                x, y = zip(*points, strict=True)
                panel.scatter(x, y, s=22, marker=marker, facecolors=fill, edgecolors=color, label=label, zorder=3)
                label = None
    panel.axvline(1, color="black", linewidth=1)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(_TICKS))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    panel.set_yticks(range(len(cells)), [cell.name for cell in cells])
    panel.set_ylim(len(cells) - 0.5, -0.5)
    panel.grid(color="0.9", zorder=0)
