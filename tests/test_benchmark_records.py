"""BENCHMARKS.md, made of a template and the records of runs."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.records import machine_line, markdown_table, run_record

ROOT = Path(__file__).parent.parent
RENDER = runpy.run_path(str(ROOT / "docs/benchmarks/render.py"))
JOIN = runpy.run_path(str(ROOT / "docs/benchmarks/join_bytes.py"))

RUN: dict[str, Any] = {
    "command": "rqmoe bench rows --rows 10000",
    "machine": "a laptop",
    "date": "2026-11-27",
    "columns": ["codec", "recall"],
    "rows": [["rq", 0.12345], ["pq", None]],
}


def test_the_page_is_what_template_and_records_give() -> None:
    template = RENDER["TEMPLATE"].read_text()
    given = RENDER["document"](template, RENDER["records"](RENDER["TEMPLATE"].parent))
    assert RENDER["DOCUMENT"].read_text() == given, "run: make benchmarks"


def test_guides_and_readme_say_what_the_record_of_the_passages_does() -> None:
    record = json.loads((ROOT / "docs/benchmarks/codec-16.json").read_text())
    found = {each["code_bytes"]: each["recall"]["ten_recall_10"] for each in record["results"]}
    said = re.compile(r"(\d+)(?: bytes| in all| of RQ-MoE)* find (\d?\.\d+)")
    for name, least in (
        ("docs/guides/refine-codes.md", 6),
        ("docs/guides/choosing-bytes.md", 3),
        ("README.md", 4),
    ):
        figures = said.findall((ROOT / name).read_text().replace("\n", " "))
        assert len(figures) >= least, name
        for size, figure in figures:
            recall = found[int(size)] if figure.startswith(".") else 10 * found[int(size)]
            assert f"{recall:.{len(figure.partition('.')[2])}f}".lstrip("0") == figure, (name, size)


def test_the_guide_to_many_rows_says_what_the_record_does() -> None:
    guide = (ROOT / "docs/guides/a-billion-rows.md").read_text()
    said = [line.split(" | ")[1] for line in guide.splitlines() if line.startswith("| ") and " | " in line]
    record = json.loads((ROOT / "docs/benchmarks/many-rows.json").read_text())
    rows = {
        each["cache"]: each for each in record["synthetic"] if (each["rows"], each["nprobes"]) == (10**8, 20)
    }
    memory, disk = rows["memory"], rows["disk"]
    measured = [
        f"{memory['table_bytes'] / 10:.1f} GB",
        f"{memory['memory_growth_bytes'] / 1e9:.1f} GB",
        f"{memory['load_growth_bytes'] / 1e9:.1f} GB",
        f"{memory['first_query_ms'] / 1e3:.0f} s",
        f"{memory['p50_ms']:.0f} ms",
        f"{disk['p50_ms']:.0f} ms",
        f"{disk['memory_growth_bytes'] / 1e9:.1f} GB",
    ]
    assert said[1:] == measured


def test_every_record_was_written_by_a_run() -> None:
    for name, record in RENDER["records"](RENDER["TEMPLATE"].parent).items():
        assert record["command"] and "transcribed" not in record, name


def test_no_table_is_typed_into_the_template() -> None:
    assert [line for line in RENDER["TEMPLATE"].read_text().splitlines() if line.startswith("|")] == []


def test_a_table_is_shown_with_command_date_and_machine() -> None:
    page = RENDER["document"]("# A\n\n<!-- command: run -->\n\n<!-- table: run -->\n", {"run": RUN})
    assert page == (
        "# A\n\n    rqmoe bench rows --rows 10000\n\n"
        "| codec | recall |\n|---|---|\n| rq | 0.123 |\n| pq | - |\n\n*2026-11-27; a laptop.*\n"
    )


def test_a_record_may_have_several_commands_and_tables() -> None:
    tables = {name: {"columns": [name], "rows": [[1_000]]} for name in ("one", "two")}
    long = "rqmoe bench codec " + " ".join(f"--option-{place} value" for place in range(10))
    run = {"command": ["rqmoe bench rows", long], "machine": "a laptop", "date": "now", "tables": tables}
    page = RENDER["document"]("<!-- command: run -->\n<!-- table: run/two -->", {"run": run})
    assert "| two |\n|---|\n| 1,000 |" in page and "| one |" not in page
    lines = page.partition("|")[0].splitlines()
    assert lines[0] == "    rqmoe bench rows" and max(map(len, lines)) <= 114
    pasted = "\n".join(lines[1:]).replace("\\\n", "")
    assert pasted.split() == long.split()


@pytest.mark.parametrize(
    ("template", "change", "message"),
    [
        ("<!-- table: run -->", {}, "expected the lines <!-- command: run -->"),
        ("<!-- command: run -->", {}, "expected the lines <!-- table: run -->"),
        ("<!-- command: run -->\n<!-- table: other -->\n<!-- table: run -->", {}, "names no record"),
        ("<!-- command: run -->\n<!-- table: run/best -->", {}, "Got the table 'best'"),
        ("<!-- command: run -->\n<!-- table: run -->", {"tables": {"a": {}, "b": {}}}, "one of 'a', 'b'"),
        ("<!-- command: run -->\n<!-- table: run -->", {"machine": ...}, "run.json has no machine"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(template: str, change: dict[str, Any], message: str) -> None:
    run = {name: value for name, value in {**RUN, **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        RENDER["document"](template, {"run": run})


def test_rows_fit_their_columns() -> None:
    with pytest.raises(InvalidInputError, match="a cell for each"):
        markdown_table(["codec", "recall"], [["rq"]])


def test_a_run_is_recorded_with_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/rqmoe", "bench", "rows", "--json", "my file.json"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    table = Table("codec", "encode\n64", title="Cost: time per vector")
    table.add_row(r"\[mine]", "[bold]1.5[/bold]")
    record = run_record({"machine": "a laptop", "found": 3}, [table])
    assert record["command"] == "OMP_NUM_THREADS=1 rqmoe bench rows --json 'my file.json'"
    assert record["tables"] == {"cost": {"columns": ["codec", "encode 64"], "rows": [["[mine]", "1.5"]]}}
    assert record["found"] == 3 and len(record["date"]) == len("2026-11-27")
    page = RENDER["document"]("<!-- command: run -->\n<!-- table: run -->", {"run": record})
    assert "| [mine] | 1.5 |" in page


def test_scripts_and_modules_are_recorded_as_they_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys, "argv", ["docs/measure.py", "--fast"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert run_record({}, [])["command"] == "python docs/measure.py --fast"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", json.__spec__)
    assert run_record({}, [])["command"] == "python -m json --fast"


def test_machines_are_named_by_what_runs_the_work() -> None:
    machine = {"gpu": None, "threads": 2, "cpu": "a processor", "versions": {"torch": "2.13"}}
    assert machine_line(machine) == "2 threads on a processor"
    assert machine_line({**machine, "gpu": "a GPU"}) == "a GPU, 2 threads on a processor"
    assert machine_line({**machine, "load_average": 1.26}) == "2 threads on a processor, load 1.3"


def test_the_page_names_the_libraries_of_all_records() -> None:
    versions = {"torch": "2.13", "faiss": "1.15"}
    runs = {"one": {**RUN, "machine": {"gpu": None, "threads": 1, "cpu": "a", "versions": versions}}}
    runs["two"] = {**RUN, "machine": {**runs["one"]["machine"], "versions": {"torch": "2.12"}}}
    shown = "".join(f"<!-- command: {name} -->\n<!-- table: {name} -->\n" for name in (*runs, "run"))
    page = RENDER["document"](f"{shown}<!-- versions -->", {**runs, "run": RUN})
    assert page.endswith("Libraries: faiss 1.15, torch 2.12 and 2.13.")


def codec_run(command: str, total_bytes: list[int], recall: dict[tuple[str, int], float]) -> dict[str, Any]:
    """A record of `bench codec`, of codecs at sizes with so much recall."""
    results = [
        {
            "codec": codec,
            "code_bytes": size,
            **{name: {"ten_recall_10": found} for name in ("recall", "unseen_recall")},
        }
        for (codec, size), found in recall.items()
    ]
    return {
        "command": command,
        "date": "2026-11-27",
        "machine": {"cpu": "a laptop", "versions": {command: "1"}},
        "data": {"rows": 300},
        "settings": {"total_bytes": total_bytes},
        "results": results,
    }


def test_runs_are_joined_to_the_best_at_each_size() -> None:
    ours = codec_run("ours", [8, 16], {("rqmoe", 8): 0.5, ("rq", 8): 0.4, ("rqmoe", 16): 0.6})
    others = codec_run("others", [16, 32], {("opq", 16): 0.7, ("opq", 32): 0.8, ("rqmoe", 16): 0.9})
    record = JOIN["joined"]([ours, others])
    assert record["command"] == ["ours", "others"] and set(record["machine"]["versions"]) == {
        "ours",
        "others",
    }
    rows = record["tables"]["best-by-bytes"]["rows"]
    assert [row[:3] for row in rows] == [
        ["8", "rqmoe", "0.500"],
        ["16", "rqmoe", "0.600"],
        ["32", "rqmoe", "0.600"],
    ]
    assert rows[0][-1].startswith("yes") and rows[1][-1].startswith("NO: opq +0.100")
    assert len(record["found"]) == 5
    best_alone = {name: value for name, value in others.items() if name != "results"}
    assert JOIN["joined"]([ours, {**best_alone, "best": record["best"]}])["best"] == record["best"]


def test_a_row_has_what_all_forms_of_a_codec_find() -> None:
    found = {
        ("rqmoe", 8): 0.5,
        ("faiss-eden-1", 12): 0.4,
        ("faiss-eden-2", 16): 0.6,
        ("faiss-eden-3", 40): 0.8,
    }
    table = JOIN["joined"]([codec_run("all", [8, 16, 32], {**found, ("opq", 32): 0.7})])["tables"]["by-codec"]
    assert table["columns"] == ["codec", "8", "16", "32", "beyond 32"]
    assert table["rows"] == [
        ["rqmoe", "0.500", "", "", ""],
        ["faiss-eden", "", "0.600", "", "0.800"],
        ["opq", "", "", "0.700", ""],
    ]
    smaller = {each: found[each] for each in found if each[1] != 16}
    row = JOIN["joined"]([codec_run("all", [8, 16, 32], smaller)])["tables"]["by-codec"]["rows"][1]
    assert row == ["faiss-eden", "", "0.400 (12)", "", "0.800"]


def test_a_table_may_be_shown_in_part() -> None:
    run = {**RUN, "rows": [["rq", 0.1], ["rq-16", 0.2], ["rq", 0.3]]}
    page = RENDER["document"]("<!-- command: run -->\n<!-- table: run of rq -->", {"run": run})
    assert "| rq | 0.100 |\n| rq | 0.300 |\n" in page and "rq-16" not in page
    with pytest.raises(ValueError, match="no row of 'opq'"):
        RENDER["document"]("<!-- command: run -->\n<!-- table: run of opq -->", {"run": run})


def test_runs_on_other_vectors_are_not_joined() -> None:
    run = codec_run("ours", [8], {("rqmoe", 8): 0.5})
    with pytest.raises(ValueError, match="expected the same vectors"):
        JOIN["joined"]([run, {**run, "data": {"rows": 301}}])
