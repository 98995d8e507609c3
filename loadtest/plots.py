"""Draws the comparison's plots as SVG: `plots.py RESULTS_JSON FOLDER`. Prints a line for each: its file, a tab, its title."""

import json
import os
import sys

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

COLOURS = {"ringway": "#0b7285", "nginx": "#74b816", "haproxy": "#4263eb", "pingora": "#e8590c", "caddy": "#868e96", "relay": "#ced4da"}
CPU = ["forward-64", "policy", "new-connection", "download-1k", "upload-1k", "events", "health-64"]


def bars(cases, names, figure, label, least=2):
    """Groups of bars: a group for each case, a bar for each peer; Caddy is an order of magnitude away and left to the tables."""
    names = [name for name in names if name in cases]
    peers = [peer for peer in COLOURS if peer != "caddy" and sum(peer in cases[name] for name in names) >= min(least, len(names))]
    plot, axes = pyplot.subplots(figsize=(1.5 + 1.5 * len(names), 4))
    width = 0.8 / len(peers)
    for at, peer in enumerate(peers):
        spots = [(index + at * width, cases[name][peer][figure]) for index, name in enumerate(names) if peer in cases[name]]
        drawn = axes.bar([x for x, _ in spots], [y for _, y in spots], width * 0.92, label=peer, color=COLOURS[peer])
        axes.bar_label(drawn, fmt="%.1f" if figure == "cpu_us" else "%.0f", fontsize=6, padding=1)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(names))], names)
    finish(axes, label)
    return plot


def lines(cases, figure, label):
    """By the number of connections."""
    names = sorted((name for name in cases if name.startswith("forward-")), key=lambda name: int(name.split("-")[1]))
    plot, axes = pyplot.subplots(figsize=(7, 4))
    for peer in COLOURS:
        points = [(int(name.split("-")[1]), cases[name][peer][figure]) for name in names if peer in cases[name]]
        if points and peer != "caddy":
            axes.plot(*zip(*points), marker="o", label=peer, color=COLOURS[peer])
    axes.set_xscale("log", base=4)
    axes.set_xticks([int(name.split("-")[1]) for name in names], [name.split("-")[1] for name in names])
    axes.set_xlabel("connections")
    finish(axes, label)
    return plot


def finish(axes, label):
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)


def main():
    source, folder = sys.argv[1:]
    matplotlib.rcParams["svg.hashsalt"] = "ringway"
    with open(source) as file:
        cases = json.load(file)["cases"]
    drawings = {
        "cpu.svg": ("CPU time for each request, by case", lambda: bars(cases, CPU, "cpu_us", "CPU µs a request")),
        "connections.svg": ("CPU time for each request, by the number of connections", lambda: lines(cases, "cpu_us", "CPU µs a request")),
        "large.svg": ("CPU time for each MiB", lambda: bars(cases, ["download-1m", "upload-1m"], "cpu_us", "CPU µs a request")),
        "tail.svg": ("p99.9 at a fixed rate", lambda: bars(cases, ["steady", "reloads"], "p999_us", "p99.9, µs", least=1)),
        "idle.svg": ("Memory of an idle connection", lambda: bars(cases, ["idle"], "bytes", "bytes")),
    }
    needs = {"cpu.svg": CPU, "connections.svg": ["forward-64"], "large.svg": ["download-1m", "upload-1m"], "tail.svg": ["steady", "reloads"],
             "idle.svg": ["idle"]}
    for file, (title, draw) in drawings.items():
        if any(name in cases for name in needs[file]):
            plot = draw()
            plot.axes[0].set_title(title, fontsize=10)
            plot.tight_layout()
            plot.savefig(os.path.join(folder, file), metadata={"Date": None})
            print(f"{file}\t{title}")


main()
