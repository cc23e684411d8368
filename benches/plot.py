"""Draws what bench.py measured: python benches/plot.py figures.json out.svg

One group of bars a model: how many times as long as fused_mlp each contender
takes, logarithmic; the line is fused_mlp itself.
"""

import json
import math
import sys
from html import escape

COLOURS = {
    "eager": "#8da0cb",
    "act": "#66c2a5",
    "single": "#a6d854",
    "ops": "#999999",
    "compile": "#fc8d62",
    "autotune": "#e78ac3",
    "jax": "#e5c494",
    "frozen": "#e31a1c",
    "jit": "#6a3d9a",
    "onednn": "#b15928",
}
BAR, GAP, HEIGHT, LEFT, TOP = 9, 14, 110, 110, 48
LOW, HIGH = 0.5, 10.0


def place(ratio):
    """Height over the bottom of a panel."""
    span = math.log(HIGH / LOW)
    return HEIGHT * math.log(min(max(ratio, LOW), HIGH) / LOW) / span


def panel(rows, kind, y, out):
    x = LEFT
    base = y + HEIGHT
    for tick in (0.5, 1, 2, 5, 10):
        height = base - place(tick)
        stroke = "#000" if tick == 1 else "#ddd"
        out.append(f'<line x1="{LEFT - 4}" x2="WIDTH" y1="{height:.1f}" y2="{height:.1f}" stroke="{stroke}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick:g}×</text>')
    for row in rows:
        start = x
        for name, ratio in row[kind]["over_mlp"].items():
            height = place(ratio)
            title = f"{row['model']} {row['mode']} {name}: {row[kind]['us'][name]:.1f} µs, {ratio:.2f}×"
            out.append(
                f'<rect x="{x}" y="{base - height:.1f}" width="{BAR - 1}" height="{height:.1f}" '
                f'fill="{COLOURS.get(name, "#999")}"><title>{escape(title)}</title></rect>'
            )
            x += BAR
        out.append(f'<text x="{(start + x) / 2}" y="{base + 14}" text-anchor="middle">{row["model"]}</text>')
        x += max(GAP, 70 - (x - start))
    return x


def draw(figures):
    out, y, width, used = [], TOP, 0, set()
    rows = [row for row in figures["rows"] if row["part"] in ("inference", "training")]
    for part in ("inference", "training"):
        for kind in ("captured", "wall"):
            for mode in dict.fromkeys(row["mode"] for row in rows):
                mine = [r for r in rows if r["part"] == part and r["mode"] == mode and kind in r]
                if not mine:
                    continue
                used.update(name for row in mine for name in row[kind]["over_mlp"])
                out.append(f'<text x="8" y="{y + 12}">{part}</text><text x="8" y="{y + 28}">{mode}, {kind}</text>')
                width = max(width, panel(mine, kind, y, out))
                y += HEIGHT + 34
    legend = "".join(
        f'<rect x="{LEFT + 90 * n}" y="24" width="10" height="10" fill="{COLOURS.get(name, "#999")}"/>'
        f'<text x="{LEFT + 14 + 90 * n}" y="33">{name}</text>'
        for n, name in enumerate(name for name in COLOURS if name in used)
    )
    head = f'<text x="8" y="16">times as long as hypatia::fused_mlp; {escape(figures["device"])}</text>'
    body = "\n".join(out).replace("WIDTH", str(width))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 20}" height="{y}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>\n'
        f"{head}{legend}\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("expected two arguments, the JSON of bench.py and the SVG to write")
    with open(sys.argv[1], encoding="utf-8") as file:
        svg = draw(json.load(file))
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(svg)
