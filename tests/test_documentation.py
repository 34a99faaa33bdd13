"""The README and the documentation: their code runs, their commands exist, and nothing public is missing."""

import ast
import dataclasses
import html
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
import typer
from small_buckets import bucket_server, empty_bucket
from typer.testing import CliRunner

import rqmoe_store as rqs
from rqmoe_store import distributed
from rqmoe_store.cli import app

ROOT = Path(__file__).parent.parent
QUICK_START = ROOT / "docs" / "quick-start.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_COMMANDS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("integrations/*/README.md")), *PAGES]

# The only changes to what a reader would paste: less data, smaller codecs, no training.
LESS_WORK = (
    (r"\b5000\b", "1000"),
    (r"max_minutes=[\d.]+", "epochs=0"),
    # Transform codes have codebooks of one size, and take no time to train.
    (
        r'CodecConfig\((?!kind="(pq|saq|turboquant)")',
        "CodecConfig(codebook_size=16, num_experts=2, hidden_dim=8, ",
    ),
    (r"--(minutes|preset) \S+", "--epochs 0"),
    (r"--bytes \d+", "--bytes 2"),
)
NOT_RUN = {"bench", "demo", "advise"}
"""Commands that take long; their options are checked like those of all others."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Code on a page."""

    line: int
    language: str
    """As the fence says; "shell" for indented lines, which are commands."""
    title: str | None
    """The name of the file that the page says it is."""
    code: str


def blocks_of(path: Path) -> list[Block]:
    """The code on a page, in its order."""
    text = path.read_text()
    fenced = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    blocks = [
        Block(text.count("\n", 0, match.start(3)), match[1], match[2], match[3])
        for match in fenced.finditer(text)
    ]
    # Fences become blank lines, so that what is indented in them is not taken for commands.
    prose = fenced.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in re.finditer(r"(?:^ {4}\S.*\n(?: {8}.*\n)*)+", prose, re.MULTILINE):
        commands = re.sub(r"\\\n\s+", "", match[0])
        blocks.append(Block(prose.count("\n", 0, match.start()), "shell", None, commands))
    return sorted(blocks, key=lambda block: block.line)


def commands_of(code: str) -> list[list[str]]:
    """The arguments of all `rqmoe` commands in some lines of shell."""
    lines = [shlex.split(line) for line in code.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "rqmoe"]


def launched_commands_of(code: str) -> list[list[str]]:
    """The same of those that another program starts by `-m rqmoe_store`."""
    lines = [shlex.split(line) for line in code.splitlines()]
    return [words[words.index("rqmoe_store") + 1 :] for words in lines if "rqmoe_store" in words]


def with_less_work(code: str) -> str:
    for pattern, replacement in LESS_WORK:
        code = re.sub(pattern, replacement, code)
    return code


def run_page(path: Path, names: dict[str, Any]) -> None:
    """Run the Python and the commands of a page, in its order, in the current folder."""
    for block in blocks_of(path):
        code = with_less_work(block.code)
        if block.language == "python" and block.title is None:
            # Blank lines before it, so that tracebacks have the lines of the page.
            exec(compile("\n" * block.line + code, str(path), "exec"), names)
        elif block.language == "shell":
            for arguments in commands_of(code):
                run_command(arguments)


def run_command(arguments: list[str]) -> None:
    if NOT_RUN & set(arguments) or any(word.startswith("s3://") for word in arguments):
        return
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{shlex.join(arguments)}: {done.output}"


@pytest.fixture(scope="module")
def after_quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody has followed the quick start and kept what other pages use."""
    folder = tmp_path_factory.mktemp("quick-start")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page(QUICK_START, names)
        names["codec"].save("codec/")
        for name, array in (("vectors", names["vectors"]), ("queries", names["topics"])):
            np.save(f"{name}.npy", array)
    assert "a new row" in names["store"].search().to_pandas()["text"].to_list()
    return folder


@pytest.fixture
def names(
    after_quick_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What the quick start leaves, in a folder of the test's own, which is the current one."""
    folder = tmp_path / "folder"
    shutil.copytree(after_quick_start, folder)
    monkeypatch.chdir(folder)
    db = lancedb.connect("./data")
    store = rqs.open_table(db, "docs_compressed")
    arrays = {"vectors": np.load("vectors.npy"), "topics": np.load("queries.npy")}
    tables = {"db": db, "docs": db.open_table("docs"), "store": store, "codec": store.codec}
    yield {"__name__": "__main__", "lancedb": lancedb, "np": np, "rqs": rqs, **arrays, **tables}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty bucket `s3://bucket`, which the environment leads to."""
    with bucket_server() as endpoint:
        options = empty_bucket(endpoint)
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_endpoint"):
            monkeypatch.setenv(name.upper(), options[name])
        yield


@pytest.mark.filterwarnings("ignore")  # pages show what warns, too
@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if path != QUICK_START],
    ids=lambda path: path.relative_to(ROOT / "docs").as_posix(),
)
def test_code_of_a_page_runs(path: Path, names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if path.stem == "object-stores":
        request.getfixturevalue("bucket")
    run_page(path, names)


def scripts() -> list[tuple[Path, Block]]:
    """Code that a page wants to have in a file of its own."""
    return [(path, block) for path in PAGES for block in blocks_of(path) if block.title is not None]


@pytest.mark.slow  # each of their processes loads torch
@pytest.mark.parametrize("script", scripts(), ids=lambda script: script[1].title)
def test_script_of_a_page_runs(script: tuple[Path, Block], names: dict[str, Any]) -> None:
    title = str(script[1].title)
    Path(title).write_text(script[1].code)
    done = subprocess.run([sys.executable, title], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_code_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run_page(ROOT / "README.md", names)
    assert len(names["hits"]) == 5
    assert "_distance" in capsys.readouterr().out


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_have_the_options_they_are_given(path: Path) -> None:
    for block in blocks_of(path):
        if block.language == "shell":
            for arguments in commands_of(block.code) + launched_commands_of(block.code):
                parse_command(arguments)


def parse_command(arguments: list[str]) -> None:
    """Raises typer's error where the command line would."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments[0] in command.commands:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if "--help" not in arguments:
        command.make_context(command.name, list(arguments))


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse_command(["stats", "./data", "docs", "--no-such-option"])


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_replacements_parse_and_import_what_there_is(path: Path) -> None:
    """The added lines of diffs: those of integrations cannot run here."""
    for block in blocks_of(path):
        if block.language != "diff":
            continue
        added = [line[1:] for line in block.code.splitlines() if line.startswith("+")]
        for node in ast.walk(ast.parse("\n".join(added))):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert is_exported(f"{node.module}", alias.name), f"{path.name}: {alias.name}"


def is_exported(module: str, name: str) -> bool:
    """Whether a module of an integration has a name, as its source says."""
    relative = module.replace(".", "/")
    sources = [*ROOT.glob(f"integrations/*/{relative}*"), *ROOT.glob(f"integrations/*/src/{relative}*")]
    files = [source / "__init__.py" if source.is_dir() else source for source in sources]
    return any(re.search(rf"\b{name}\b", file.read_text()) for file in files)


def test_every_public_name_is_in_the_reference() -> None:
    documented = {
        name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    }
    public = {f"rqmoe_store.{name}" for name in rqs.__all__ if name != "__version__"}
    assert public - documented == set(), "add them to docs/reference/python.md"
    for_clusters = {f"rqmoe_store.distributed.{name}" for name in distributed.__all__}
    assert documented - public - for_clusters == set(), "these are not public"


def test_every_name_for_clusters_is_in_the_guide() -> None:
    page = (ROOT / "docs" / "guides" / "processes-and-clusters.md").read_text()
    assert [name for name in distributed.__all__ if f"`{name}`" not in page] == []


def command_names(command: Any, path: str = "rqmoe") -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield path
        return
    for name, inner in command.commands.items():
        yield from command_names(inner, f"{path} {name}")


def test_every_command_is_on_a_page_that_somebody_wrote() -> None:
    text = "\n".join(path.read_text() for path in PAGES)
    missing = [
        name
        for name in command_names(typer.main.get_command(app))
        if f"{name} " not in text.replace("`", " ").replace("\n", " ")
    ]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}
    assert pages <= set(re.findall(r"\S+\.md", navigation))


def test_the_readme_leads_to_every_guide() -> None:
    readme = (ROOT / "README.md").read_text()
    guides = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "guides").glob("*.md")}
    assert guides <= set(re.findall(r"\]\(([^)]+)\)", readme))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_picture_of_the_readme_shows_what_the_benchmarks_say() -> None:
    script = ROOT / "docs" / "images" / "recall.py"
    points = runpy.run_path(str(script))["points"]()
    assert len(points) == 10 and all(points.values())
    description = re.search(r"<dc:description>(.*?)</dc:description>", script.with_suffix(".svg").read_text())
    assert description is not None
    assert json.loads(html.unescape(description[1])) == json.loads(json.dumps(points)), f"run {script}"
