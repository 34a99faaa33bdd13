"""Draw docs/images/recall.svg, the picture of the README, from the tables of BENCHMARKS.md.

    .venv/bin/python docs/images/recall.py

Every point is a line of a table there, below the command that measured it. Needs matplotlib, from the extra
`bench`.
"""

import json
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_suffix(".svg")

Points = dict[str, list[tuple[float, float]]]
"""Name of a line -> its points: bytes per vector (with raw vectors where they are read), 10-recall@10."""

# Colors that differ for any color vision (Okabe and Ito), and markers for print.
LOOKS = {
    "rqmoe-store": {"color": "#D55E00", "marker": "o", "linewidth": 2.5},
    "LanceDB IVF_PQ": {"color": "#0072B2", "marker": "s"},
    "FAISS OPQ": {"color": "#009E73", "marker": "^"},
    "FAISS IVF+PQ": {"color": "#56B4E9", "marker": "v"},
    "plain RQ": {"color": "#7F7F7F", "marker": "D"},
    "binary and int8, Qdrant-style": {
        "color": "#CC79A7",
        "marker": "P",
        "markersize": 11,
        "linestyle": "none",
    },
    "LanceDB IVF_RQ": {"color": "#0072B2", "marker": "X", "linestyle": "none"},
    "LanceDB with raw vectors (refine 10)": {
        "color": "#0072B2",
        "marker": "o",
        "markerfacecolor": "white",
        "linestyle": "none",
    },
}


def rows_under(heading: str, document: str) -> list[dict[str, str]]:
    """The lines of the first table under a heading, by the names of its columns."""
    text = document.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [
        [cell.strip().strip("*") for cell in line.strip("| ").split("|")]
        for line in re.findall(r"^\|.*\|$", text.replace("| |\n", "| - |\n"), re.MULTILINE)
    ]
    columns = lines[0]
    rows = []
    for cells in lines[2:]:
        if len(cells) != len(columns):
            break  # the next table
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def points(document: str) -> Points:
    """What the picture shows."""
    found: Points = {name: [] for name in LOOKS}
    names = {"opq (FAISS)": "FAISS OPQ", "rq": "plain RQ"}
    for row in rows_under("Codecs: distortion and recall", document):
        if row["codec"] in names:
            found[names[row["codec"]]].append((float(row["bytes"]), float(row["10-R@10"])))
    for row in rows_under("A byte or a bit per component", document):
        found["binary and int8, Qdrant-style"].append((float(row["bytes"]), float(row["10-R@10"])))
    total = 0.0
    for row in rows_under("Searching", document):
        system, recall = row["system"], float(row["10-R@10"])
        kept = re.match(r"[\d,]+", row["total bytes per vector"])
        total = (
            float(kept[0].replace(",", "")) if kept else total
        )  # left out where it is that of the line above
        if system == "ours" and row["shortlist"] == "30":
            found["rqmoe-store"].append((float(row["bytes"]), recall))
        elif system.endswith("refine 10"):
            found["LanceDB with raw vectors (refine 10)"].append((total, recall))
        elif system in found and row["nprobes"] == "20":
            found[system].append((float(row["bytes"]), recall))
    return found


def draw(shown: Points) -> Figure:
    """10-recall@10 against bytes per vector, a line or a kind of marker for each system."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, line in shown.items():
        axes.plot(*zip(*line, strict=True), label=name, **LOOKS[name])
    sizes = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(
        xlabel="bytes per vector: codes, and raw vectors where they are read",
        ylabel="10-recall@10",
        ylim=(0.3, 1),
    )
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    """Write the picture, with the points that it shows as its description."""
    shown = points((ROOT / "BENCHMARKS.md").read_text())
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recall"}):
        draw(shown).savefig(PICTURE, metadata={"Date": None, "Description": json.dumps(shown)})


if __name__ == "__main__":
    main()
