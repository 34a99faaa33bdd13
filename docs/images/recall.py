"""Draw docs/images/recall.svg, the picture of the README, from the records that BENCHMARKS.md is made of.

    .venv/bin/python docs/images/recall.py

Every point is a row of a table, whose record has the command that measured it. Needs matplotlib, from the
extra `bench`.
"""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from rqmoe_store.evaluation.peer_names import family_of

RECORDS = Path(__file__).parents[1] / "benchmarks"
PICTURE = Path(__file__).with_suffix(".svg")

Points = dict[str, list[tuple[float, float]]]
"""Name of a line -> its points: bytes per vector (with raw vectors where they are read), 10-recall@10."""

OURS, REFINED = "rqmoe-store", "LanceDB with raw vectors (refine 10)"

FAMILIES = {
    "faiss-rq": "FAISS RQ",
    "turbovec": "turbovec",
    "faiss-rabitq": "FAISS RaBitQ",
    "faiss-eden": "FAISS EDEN",
    "faiss-turboquant": "FAISS TurboQuant",
    "faiss-sq": "FAISS SQ",
    "binary": "binary and int8, Qdrant-style",
    "int8": "binary and int8, Qdrant-style",
    "lancedb-ivf-rq": "LanceDB IVF_RQ",
}
"""Names of codecs without their forms -> the lines that they are on."""

# Colors that differ for any color vision (Okabe and Ito), and markers for print.
LOOKS = {
    OURS: {"color": "#D55E00", "marker": "o", "linewidth": 2.5},
    "FAISS RQ": {"color": "#F0E442", "marker": "s", "markeredgecolor": "#7F7F7F"},
    "turbovec": {"color": "#009E73", "marker": "^"},
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
    REFINED: {
        "color": "#0072B2",
        "marker": "o",
        "markerfacecolor": "white",
        "linestyle": "none",
    },
}


def points() -> Points:
    """What the picture shows: exhaustive searches by code size, and LanceDB's searches of raw vectors."""
    best, searches = (json.loads((RECORDS / f"{name}.json").read_text()) for name in ("bytes", "searches"))
    found: Points = {name: [] for name in LOOKS}
    found[OURS] = [(row["total_bytes"], round(row["ours"]["recall"], 3)) for row in best["best"]]
    for each in best["found"]:
        name = FAMILIES.get(family_of(each["codec"]))
        if name is not None:
            found[name].append((each["code_bytes"], round(each["recall"], 3)))
    total_bytes = {each["system"]: each["total_bytes"] for each in searches["indexes"]}
    found[REFINED] = [
        (round(total_bytes[each["system"]]), round(each["recall"], 3))
        for each in searches["results"]
        if each["setting"]["refine_factor"] is not None
    ]
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
