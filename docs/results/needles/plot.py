#!/usr/bin/env python3
"""Draws needles.svg and prints the tables: plot.py [RUNS], which first collects RUNS, as `run` leaves them, in results.csv."""
import csv
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
FIELDS = ["model", "asked", "seed", "task", "length", "correct", "questions"]
# Drawn from the back to the front.
SERIES = {
    "rwkv7": ("RWKV-7", "#f0a868"),
    "rwkv7-longer": ("RWKV-7, trained longer", "#d55e00"),
    "untaught": ("RWKV-X, choice not taught", "#6baed6"),
    "rwkvx": ("RWKV-X", "#08306b"),
}
VARIANTS = {
    "rwkvx": "as above",
    "untaught": "the choice of chunks not taught",
    "sparse-1": "1 sparse block, not 2",
    "sparse-4": "4 sparse blocks",
    "zero": 'expansion "zero"',
    "copy": 'expansion "copy"',
    "key-conv-0": "no convolution over keys",
    "longce": "LongCE",
    "numbers": "no UUIDs in training",
}
FACTS, NEEDLES = ["1 facts", "4 facts", "16 facts"], ["passkey", "number", "uuid"]
TITLES = {"1 facts": "1 fact", "uuid": "S-NIAH UUID", "number": "S-NIAH number", "passkey": "S-NIAH passkey"}
WIDTH, HEIGHT, GAP, LEFT, TOP, ROW = 240, 170, 22, 52, 40, 250


def collect(runs):
    """What was asked: facts, or single needles, with 8 chunks of 32; the same of everything; chunks of other sizes."""
    rows = defaultdict(lambda: [0, 0])
    for grid in runs.glob("seed-*/answers/*/*/grid.csv"):
        seed, _, model, asked, _ = grid.relative_to(runs).parts
        seed, asked = int(seed.removeprefix("seed-")), asked.removesuffix("-64K")
        for row in csv.DictReader(grid.open()):
            cell = rows[model, asked, seed, row["task"], int(row["length"])]
            cell[0] += int(row["correct"])
            cell[1] += int(row["asked"])
    with (HERE / "results.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([FIELDS, *([*key, *cell] for key, cell in sorted(rows.items()))])


def shares():
    """(model, asked, task) -> length -> the share of right answers of every seed."""
    found = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader((HERE / "results.csv").open()):
        cell = found[row["model"], row["asked"], row["task"]][int(row["length"])]
        cell.append(int(row["correct"]) / int(row["questions"]))
    return found


def lines(found, model, task):
    return found.get((model, task if task in NEEDLES else "facts", task), {})


def short(length):
    return f"{length // 1024}K" if length >= 1024 else str(length)


def print_table(head, rows):
    """Rows of what stands first, and shares by length."""
    lengths = sorted({length for _, cells in rows for length in cells})
    print("|", " | ".join([*head, *map(short, lengths)]), "|\n|" + " --- |" * (len(head) + len(lengths)))
    for first, cells in rows:
        shares = [" ".join(f"{100 * share:.0f}" for share in cells[length]) + "%" if length in cells else "" for length in lengths]
        print("|", " | ".join([*first, *shares]), "|")
    print()


def tables(found):
    for tasks in (FACTS, NEEDLES):
        rows = [([TITLES.get(task, task), SERIES[model][0]], lines(found, model, task)) for task in tasks for model in reversed(SERIES)]
        print_table(["", ""], [row for row in rows if row[1]])
    rows = [([f"{256 // size} chunks of {size}"], found[("rwkvx", asked, "16 facts")])
            for size, asked in [(4, "chunks-4"), (16, "chunks-16"), (32, "facts"), (64, "chunks-64"), (128, "chunks-128")]]
    rows = [(first, {length: cells[length] for length in (1024, 4096) if length in cells}) for first, cells in rows]
    print_table(["16 facts"], rows)
    rows = [([name, task, what], found[(model, asked, task)])
            for model, name in VARIANTS.items() for task in ("4 facts", "16 facts") for what, asked in [("8 chunks of 32", "facts"), ("everything", "all")]]
    print_table(["", "", "attending to"], [row for row in rows if row[1]])


def draw_panel(svg, found, task, x0, y0, first):
    height = lambda share: y0 + HEIGHT * (1 - share)
    svg.append(f'<text x="{x0 + WIDTH / 2}" y="{y0 - 12}" text-anchor="middle">{TITLES.get(task, task)}</text>')
    for percent in (0, 25, 50, 75, 100):
        y = height(percent / 100)
        svg.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        if first:
            svg.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end">{percent}%</text>')
    lengths = sorted({length for model in SERIES for length in lines(found, model, task)})
    at = {length: x0 + 12 + (WIDTH - 24) * j / (len(lengths) - 1) for j, length in enumerate(lengths)}
    for length, x in at.items():
        svg.append(f'<text x="{x}" y="{y0 + HEIGHT + 18}" text-anchor="middle" font-size="11">{short(length)}</text>')
    for model, (_, color) in SERIES.items():
        cells = lines(found, model, task)
        for seed in range(max(map(len, cells.values()), default=0)):
            points = [(at[length], height(cells[length][seed])) for length in sorted(cells) if seed < len(cells[length])]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            svg.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
            svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]


def draw(found):
    full = LEFT + 3 * (WIDTH + GAP), TOP + 2 * ROW + 20
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full[0]} {full[1]}" font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{full[0]}" height="{full[1]}" fill="white"/>',
    ]
    for row, tasks in enumerate((FACTS, NEEDLES)):
        for column, task in enumerate(tasks):
            draw_panel(svg, found, task, LEFT + column * (WIDTH + GAP), TOP + row * ROW, column == 0)
        svg.append(f'<text x="{full[0] / 2}" y="{TOP + row * ROW + HEIGHT + 36}" text-anchor="middle">tokens</text>')
    x, y = LEFT + 40, full[1] - 22
    for name, color in SERIES.values():
        svg.append(f'<line x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2.5"/><text x="{x + 30}" y="{y}">{name}</text>')
        x += 60 + 7 * len(name)
    (HERE / "needles.svg").write_text("\n".join([*svg, "</svg>", ""]))


if len(sys.argv) > 2:
    sys.exit(__doc__)
if sys.argv[1:]:
    collect(Path(sys.argv[1]))
found = shares()
draw(found)
tables(found)
