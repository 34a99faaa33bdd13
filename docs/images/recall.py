"""Draw docs/images/recall.svg, the picture of the README, from the records that BENCHMARKS.md is made of.

    .venv/bin/python docs/images/recall.py

Every point is a row of a table, whose record has the command that measured it. Needs matplotlib, from the
extra `bench`.
"""

import json
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

RECORDS = Path(__file__).parents[1] / "benchmarks"
PICTURE = Path(__file__).with_suffix(".svg")

Points = dict[str, list[tuple[float, float]]]
"""Name of a line -> its points: bytes per vector (with raw vectors where they are read), 10-recall@10."""

# Colors that differ for any color vision (Okabe and Ito), and markers for print.
LOOKS = {
    "rqmoe-store": {"color": "#D55E00", "marker": "o", "linewidth": 2.5},
    "FAISS RQ": {"color": "#F0E442", "marker": "s", "markeredgecolor": "#7F7F7F"},
    "FAISS OPQ": {"color": "#009E73", "marker": "^"},
    "FAISS RaBitQ": {"color": "#56B4E9", "marker": "v"},
    "FAISS EDEN": {"color": "#E69F00", "marker": "<"},
    "FAISS TurboQuant": {"color": "#7F7F7F", "marker": "D"},
    "FAISS SQ": {"color": "#000000", "marker": ">"},
    "binary and int8, Qdrant-style": {
        "color": "#CC79A7",
        "marker": "P",
        "markersize": 11,
        "linestyle": "none",
    },
    "LanceDB IVF_RQ": {"color": "#0072B2", "marker": "X"},
    "LanceDB with raw vectors (refine 10)": {
        "color": "#0072B2",
        "marker": "o",
        "markerfacecolor": "white",
        "linestyle": "none",
    },
}


def rows_of(name: str, table: str | None = None) -> list[dict[str, str]]:
    """The rows of a record's table, by the names of its columns, without what makes figures bold."""
    record = json.loads((RECORDS / f"{name}.json").read_text())
    found = record if table is None else record["tables"][table]
    return [
        dict(zip(found["columns"], (f"{cell}".strip("*") for cell in row), strict=True))
        for row in found["rows"]
    ]


def points() -> Points:
    """What the picture shows. Vectors have unit length, so that l2 and cosine find the same."""
    found: Points = {name: [] for name in LOOKS}
    record = json.loads((RECORDS / "bytes.json").read_text())
    found["rqmoe-store"] = [(row["total_bytes"], round(row["ours"]["recall"], 3)) for row in record["best"]]
    faiss_rq = [each for each in record["found"] if each["codec"] == "faiss-rq"]
    found["FAISS RQ"] = [(each["code_bytes"], round(each["recall"], 3)) for each in faiss_rq]
    for row in rows_of("libraries"):
        name, _, library = row["codec"].partition(" (")
        name = f"{library.rstrip(')')} {name}" if library else "binary and int8, Qdrant-style"
        if row["bytes, MiniLM"] != "-":
            found[name].append((float(row["bytes, MiniLM"]), float(row["10-R@10"])))
    total = 0.0
    for row in rows_of("searches", "searches"):
        kept = re.match(r"[\d,]+", row["total bytes per vector"])
        # Left out where it is that of the line above.
        total = float(kept[0].replace(",", "")) if kept else total
        if row["system"].endswith("refine 10"):
            found["LanceDB with raw vectors (refine 10)"].append((total, float(row["10-R@10"])))
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
        ylim=(0.45, 1),
    )
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    """Write the picture, with the points that it shows as its description."""
    shown = points()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recall"}):
        draw(shown).savefig(PICTURE, metadata={"Date": None, "Description": json.dumps(shown)})


if __name__ == "__main__":
    main()
