#!/usr/bin/env python3
"""Draws right answers by length, a panel per number of facts: plot.py DIRECTORY OUT.svg, with MODEL.csv or, as `run` leaves it,
MODEL/grid.csv in it."""
import csv
import sys
from collections import defaultdict
from pathlib import Path

MODELS = {"rwkvx": ("RWKV-X", "#0072b2"), "rwkv7": ("RWKV-7", "#d55e00")}
WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM = 150, 150, 22, 52, 46, 62

directory, out = map(Path, sys.argv[1:])


def table(model):
    flat = directory / f"{model}.csv"
    return flat if flat.exists() else directory / model / "grid.csv"


shares = {}  # model -> task -> length -> share
for model in MODELS:
    counts = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for row in csv.DictReader(table(model).open()):
        cell = counts[row["task"]][int(row["length"])]
        cell[0] += int(row["correct"])
        cell[1] += int(row["asked"])
    shares[model] = {task: {length: right / asked for length, (right, asked) in cells.items()} for task, cells in counts.items()}

tasks = list(shares["rwkvx"])
full = LEFT + len(tasks) * (WIDTH + GAP), TOP + HEIGHT + BOTTOM
svg = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full[0]} {full[1]}" font-family="sans-serif" font-size="12" fill="#333">',
    f'<rect width="{full[0]}" height="{full[1]}" fill="white"/>',
]
for i, task in enumerate(tasks):
    x0, lengths = LEFT + i * (WIDTH + GAP), sorted(shares["rwkvx"][task])
    number = task.split()[0]
    svg.append(f'<text x="{x0 + WIDTH / 2}" y="{TOP - 12}" text-anchor="middle">{number} fact{"s" * (number != "1")}</text>')
    for percent in (0, 25, 50, 75, 100):
        y = TOP + HEIGHT * (1 - percent / 100)
        svg.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        if i == 0:
            svg.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end">{percent}%</text>')
    at = {length: x0 + 10 + (WIDTH - 20) * j / (len(lengths) - 1) for j, length in enumerate(lengths)}
    for length, x in at.items():
        name = f"{length // 1024}K" if length >= 1024 else length
        svg.append(f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{name}</text>')
    for model, (_, color) in MODELS.items():
        points = [(at[length], TOP + HEIGHT * (1 - shares[model][task][length])) for length in lengths]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        svg.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
svg.append(f'<text x="{full[0] / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">tokens</text>')
for i, (name, color) in enumerate(MODELS.values()):
    x, y = full[0] / 2 - 90 + 100 * i, TOP + HEIGHT + 52
    svg.append(f'<line x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2.5"/><text x="{x + 30}" y="{y}">{name}</text>')
out.write_text("\n".join([*svg, "</svg>", ""]))
