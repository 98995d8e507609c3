"""The comparison's tables, in Markdown, and its report: loadtest/results/README.md, its plots and the figures as JSON."""

import json
import os
import statistics
import subprocess

from cases import CASES, OPEN_LOOP_ROUNDS
from harness import ROOT

RESULTS = os.path.join(ROOT, "loadtest", "results")
COLUMNS = {"cpu_us": ("CPU µs", "{:.2f}"), "rps": ("a second", "{:,.0f}"), "p50_us": ("p50 µs", "{:,.0f}"), "p99_us": ("p99 µs", "{:,.0f}"),
           "p999_us": ("p99.9 µs", "{:,.0f}"), "bytes": ("bytes each", "{:,.0f}"), "failed": ("failed", "{:,.0f}"), "load_busy": ("load busy", "{:.0%}")}
ALONE = "failed", "load_busy"  # figures that are not compared


def grid(head, rows):
    """A Markdown table whose columns line up as plain text, too."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]

    def line(cells):
        return "| " + " | ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(cells, widths))) + " |"

    rule = "|" + "|".join(("-" * (width + 2)) if at == 0 else "-" * (width + 1) + ":" for at, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def ratio(ours, theirs, figure):
    """What one takes as a share of what the other does: the quartiles of the ratios within the rounds, the median second. What
    the machine does meanwhile is nearer the same for both within a round."""
    if "rounds" not in ours:
        return [ours[figure] / theirs[figure]] * 3
    ratios = [a / b for a, b in zip(ours["rounds"][figure], theirs["rounds"][figure])]
    return statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3


def spread(ours, theirs, figure):
    """The first and third quartiles of the ratio, as text."""
    low, _, high = ratio(ours, theirs, figure)
    return f"{low:.2f} to {high:.2f}" if low < high else ""


def cell(figure, row, ours):
    """A peer's figure, and what ringway's is as a share of it."""
    text = COLUMNS[figure][1].format(row[figure])
    if row is ours or figure in ALONE:
        return text
    return f"{text} ({ratio(ours, row, figure)[1]:.2f})"


def table(name, case, rows):
    """A case's figures."""
    figures = [figure for figure in COLUMNS if any(figure in row for row in rows.values())]
    ours = rows["ringway"]
    head = ["", *(COLUMNS[figure][0] for figure in figures), "quartiles"]
    body = [[peer, *(cell(figure, row, ours) for figure in figures), "" if row is ours else spread(ours, row, figures[0])]
            for peer, row in rows.items()]
    return f"### {case.title} (`{name}`)\n\n{grid(head, body)}\n"


def targets(cases):
    """What was aimed at, and what came of it, as far as it was measured. Whose requests failed misses."""
    body = []
    for name, rows in cases.items():
        for target in CASES[name].targets:
            if target.who in rows and target.versus in rows:
                who, versus = rows[target.who], rows[target.versus]
                measured = ratio(who, versus, target.figure)[1]
                what = f"{CASES[name].title}: {COLUMNS[target.figure][0]} of {target.who} beside {target.versus}"
                body.append([what, f"≤ {target.most:.2f}", f"{measured:.2f}", spread(who, versus, target.figure),
                             "met" if measured <= target.most and not who.get("failed") else "missed"])
        if name == "idle":
            size = rows["ringway"]["bytes"]
            body.append([f"{CASES[name].title}: bytes each", "≤ 1,200", f"{size:,.0f}", "", "met" if size <= 1200 else "missed"])
    return f"### Targets\n\n{grid(['', 'target', 'measured', 'quartiles', ''], body)}\n" if body else ""


def write(results):
    """The report. The plots are drawn by matplotlib, in an environment of its own."""
    os.makedirs(RESULTS, exist_ok=True)
    data = os.path.join(RESULTS, "results.json")
    with open(data, "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    here = os.path.join(ROOT, "loadtest")
    python = os.path.join(ROOT, "target", "plots", "bin", "python")
    if not os.path.exists(python):
        subprocess.run(["python3", "-m", "venv", os.path.join(ROOT, "target", "plots")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement",
                    os.path.join(here, "requirements.txt")], check=True)
    drawn = subprocess.run([python, os.path.join(here, "plots.py"), data, RESULTS], check=True, stdout=subprocess.PIPE, text=True)
    around = results["surroundings"]
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    parts = [
        "# Results of `loadtest/compare`",
        "Written by `loadtest/compare --write`; not edited by hand.",
        f"{around['date']}; {around['processor']}, {around['cores']} cores, Linux {around['kernel']}; {versions}. Medians of "
        f"{around['rounds']} interleaved rounds of {around['seconds']} s, of {OPEN_LOOP_ROUNDS * around['rounds']} in an open loop with a target; what failed is the sum of all; the memory of idle "
        "connections is measured once. The proxy has core 0 and one thread; load and backend share core 1, which is the bottleneck wherever a proxy "
        "takes less CPU time than they do: compare CPU time first. So it is in an open loop: where it was busy nearly all the time (`load busy`), the percentiles "
        "are of the wait for it, whichever proxy is asked. In parentheses is ringway's figure divided by the peer's: the median of the ratios "
        "within the rounds, whose quartiles stand beside a target, and for the first column in the last one.",
        targets(results["cases"]),
        *(f"![{title}]({file})" for file, title in (line.split("\t") for line in drawn.stdout.splitlines())),
        *(table(name, CASES[name], rows) for name, rows in results["cases"].items()),
    ]
    with open(os.path.join(RESULTS, "README.md"), "w") as file:
        file.write("\n\n".join(part.strip() for part in parts if part) + "\n")
