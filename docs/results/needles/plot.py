#!/usr/bin/env python3
"""Draws facts.svg and prints the table: plot.py [RUNS], which first collects RUNS, as `run` leaves them, in facts.csv."""
import csv
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
# Drawn from the back to the front.
SERIES = {
    "rwkv7": ("RWKV-7", "#d55e00"),
    "untaught-32": ("RWKV-X, choice not taught", "#6baed6"),
    "rwkvx-32": ("RWKV-X, choice taught", "#08306b"),
}
NAMES = {
    "rwkv7": "RWKV-7",
    "rwkvx-32": "taught, 8 chunks of 32",
    "rwkvx-512": "taught, the same after 300 steps at 512",
    "rwkvx-4": "taught, 64 chunks of 4",
    "rwkvx-all": "taught, everything",
    "untaught-32": "not taught, 8 chunks of 32",
    "untaught-512": "not taught, the same after 300 steps at 512",
    "untaught-4": "not taught, 64 chunks of 4",
    "untaught-all": "not taught, everything",
}
WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM = 240, 190, 22, 52, 40, 66
FIELDS = ["model", "seed", "facts", "length", "correct", "asked"]


def collect(runs):
    rows = []
    grids = [grid for model in NAMES for grid in runs.glob(f"seed-*/{model}/grid.csv")]
    for grid in sorted(grids):
        counts = defaultdict(lambda: [0, 0])
        for row in csv.DictReader(grid.open()):
            cell = counts[int(row["task"].split()[0]), int(row["length"])]
            cell[0] += int(row["correct"])
            cell[1] += int(row["asked"])
        seed = grid.parents[1].name.removeprefix("seed-")
        rows += [[grid.parent.name, seed, *key, *cell] for key, cell in sorted(counts.items())]
    with (HERE / "facts.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([FIELDS, *rows])


def shares():
    """facts -> model -> length -> the share of right answers of every seed."""
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in csv.DictReader((HERE / "facts.csv").open()):
        found[int(row["facts"])][row["model"]][int(row["length"])].append(int(row["correct"]) / int(row["asked"]))
    return found


def short(length):
    return f"{length // 1024}K" if length >= 1024 else str(length)


def table(found):
    lengths = sorted(found[1]["rwkv7"])
    print("| facts | |", " | ".join(map(short, lengths)), "|\n|" + " --- |" * (2 + len(lengths)))
    for facts, models in found.items():
        for model, name in NAMES.items():
            if model in models:
                cells = [" ".join(f"{100 * share:.0f}" for share in models[model][length]) + "%" for length in lengths]
                print(f"| {facts} |" if model == "rwkv7" else "| |", name, "|", " | ".join(cells), "|")


def draw(found):
    full = LEFT + len(found) * (WIDTH + GAP), TOP + HEIGHT + BOTTOM
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full[0]} {full[1]}" font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{full[0]}" height="{full[1]}" fill="white"/>',
    ]
    for i, (facts, models) in enumerate(found.items()):
        x0, lengths = LEFT + i * (WIDTH + GAP), sorted(models["rwkv7"])
        height = lambda share: TOP + HEIGHT * (1 - share)
        svg.append(f'<text x="{x0 + WIDTH / 2}" y="{TOP - 12}" text-anchor="middle">{facts} fact{"s" * (facts != 1)}</text>')
        for percent in (0, 25, 50, 75, 100):
            y = height(percent / 100)
            svg.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
            if i == 0:
                svg.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end">{percent}%</text>')
        at = {length: x0 + 12 + (WIDTH - 24) * j / (len(lengths) - 1) for j, length in enumerate(lengths)}
        for length, x in at.items():
            svg.append(f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{short(length)}</text>')
        for model, (_, color) in SERIES.items():
            for seed in range(len(models[model][lengths[0]])):
                points = [(x, height(models[model][length][seed])) for length, x in at.items()]
                line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                svg.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
                svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
    svg.append(f'<text x="{full[0] / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">tokens</text>')
    x, y = LEFT + 140, TOP + HEIGHT + 56
    for name, color in SERIES.values():
        svg.append(f'<line x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2.5"/><text x="{x + 30}" y="{y}">{name}</text>')
        x += 60 + 7 * len(name)
    (HERE / "facts.svg").write_text("\n".join([*svg, "</svg>", ""]))


if len(sys.argv) > 2:
    sys.exit(__doc__)
if sys.argv[1:]:
    collect(Path(sys.argv[1]))
found = shares()
draw(found)
table(found)
