"""The house rules that a machine can check, read from the source without importing it."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rqmoe_store"
FILES = sorted(PACKAGE.rglob("*.py"))
ADAPTERS = sorted(
    path
    for path in (ROOT / "integrations").rglob("*.py")
    if not {".venv", "build", "tests"} & set(path.relative_to(ROOT).parts)
)

MAX_FILE_LINES = 600
MAX_TABLE_LINES = 1_200
MAX_FUNCTION_LINES = 40
GENERATED = {"async_table.py"}
"""As long as what they are generated from makes them."""

# Room -> rooms of the package it may import from. Itself is always allowed.
GROUND = {"errors", "arguments", "storage_errors", "config", "progress", "startup"}
"""What every room above may use."""
MAY_IMPORT = {
    "errors": set(),
    "startup": set(),
    "arguments": {"errors"},
    "storage_errors": {"errors", "arguments"},
    "config": {"errors"},
    "presets": {"errors", "config"},
    "codecs": GROUND - {"progress"},
    "multivector": {*(GROUND - {"progress"}), "codecs"},
    "pages": {"errors", "codecs"},
    "progress": {"codecs"},
    "training": {*GROUND, "codecs"},
    "store": {*GROUND, "codecs", "multivector", "pages"},
    # These four take an open table's handle, and know nothing of each other.
    "search": {*GROUND, "codecs", "multivector", "store", "training"},
    "ingestion": {*GROUND, "codecs", "store", "training"},
    "verification": {*GROUND, "codecs", "store"},
    "exports": {*GROUND, "codecs", "store"},
    "lifecycle": {*GROUND, "codecs", "training", "store"},
    # The public table, and what is made with it.
    "table": {
        *(*GROUND, "codecs", "pages", "training", "store", "search", "verification", "exports", "lifecycle"),
    },
    "threads": set(),
    "async_table": {
        *(*GROUND, "codecs", "training", "store", "search", "verification", "exports", "lifecycle"),
        *("table", "threads"),
    },
    "tables": {
        *(*GROUND, "codecs", "training", "store", "search", "lifecycle", "table", "async_table", "threads"),
    },
    "distributed": {"codecs", "store", "search", "ingestion"},
    "managed_table": {*GROUND, "store", "lifecycle", "table", "tables", "threads"},
    "evaluation": {
        *GROUND,
        "codecs",
        "multivector",
        "training",
        "store",
        "search",
        "ingestion",
        "table",
        "tables",
    },
    "advice": {*GROUND, "codecs", "pages", "training", "store", "search", "evaluation"},
    "demo": {*GROUND, "codecs", "training", "store", "search", "table", "tables", "evaluation"},
    # The command line, which imports what a command needs when it runs.
    "terminal": {"errors", "codecs", "store"},
    "cli_advise": {"errors", "config", "pages", "advice", "terminal"},
    "cli_bench": {"errors", "config", "evaluation", "terminal"},
    "cli_bench_codecs": {"errors", "config", "evaluation", "terminal", "cli_bench"},
    "cli_bench_data": {"errors", "config", "evaluation", "demo", "terminal", "cli_bench"},
    "cli_bench_tables": {
        *("errors", "config", "codecs", "training", "evaluation", "terminal", "cli_bench"),
    },
    "cli": {
        *("errors", "config", "presets", "codecs", "training", "store", "ingestion", "verification"),
        *("lifecycle", "tables", "evaluation", "demo", "terminal", "cli_advise", "cli_bench"),
        *("cli_bench_codecs", "cli_bench_data", "cli_bench_tables"),
    },
    "__main__": {"cli"},
    "__init__": {
        *("errors", "config", "presets", "codecs", "training", "store", "search", "ingestion"),
        *("table", "tables", "async_table", "managed_table", "startup", "advice"),
        "multivector",
    },
}
# Rooms that may know the table class with its methods. All others take its handle.
MAY_KNOW_THE_TABLE = {"tables", "async_table", "managed_table", "evaluation", "demo", "__init__"}
# Classes that classes of other modules derive from. Any other class has all its methods in one file.
MAY_BE_EXTENDED = {
    "codecs.codes.Codes",
    "codecs.quantizer.ResidualQuantizer",
    "ingestion.pieces.Piece",
    "search.query.TableQuery",
    "search.query.SearchQuery",
    "search.query.VectorSearchQuery",
    "store.columns.KeptVectors",
}
# Rooms that compute on arrays and tensors only, and their exceptions.
WITHOUT_STORAGE = {"errors", "arguments", "storage_errors", "config", "codecs", "multivector", "training"}
STORAGE_LIBRARIES = {"lancedb", "lance", "pyarrow", "pandas", "polars"}
MAY_READ_TABLES = {"training/sampler.py", "training/positives.py"}

# Everything a reader of the repository's front page finds. Dotfiles are free.
TOP_LEVEL = {
    "BENCHMARKS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "docs",
    "examples",
    "integrations",
    "mkdocs.yml",
    "pyproject.toml",
    "rqmoe_store",
    "tests",
}
# Made by running things and ignored by git.
IGNORED = {"build", "codec", "data", "dist", "rqmoe-demo", "rqmoe_store.egg-info", "site"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imported modules, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def public_homes() -> dict[str, str]:
    """Name -> room of what `rqmoe_store/__init__.py` re-exports."""
    tree = tree_of(PACKAGE / "__init__.py")
    return {
        alias.name: (node.module or "").split(".")[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rqmoe_store.")
        for alias in node.names
    }


def imported_rooms(tree: ast.AST) -> set[str]:
    """Rooms of the package that a file imports from."""
    rooms = set()
    for module in imports(tree):
        parts = module.split(".")
        if parts[0] == "rqmoe_store" and len(parts) > 1:
            rooms.add(public_homes().get(parts[1], parts[1]))
    return rooms - {"__version__"}


@pytest.fixture(params=FILES, ids=name_of)
def path(request) -> Path:
    return request.param


@pytest.fixture(params=[*FILES, *ADAPTERS], ids=lambda path: str(path.relative_to(ROOT)))
def any_path(request) -> Path:
    """Files of the package and of integrations."""
    return request.param


def test_dependencies_point_one_way(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room!r} is new: say here what it may import"
    breaches = imported_rooms(tree_of(path)) - MAY_IMPORT[room] - {room}
    assert not breaches, f"{name_of(path)} may not import from {sorted(breaches)}"


def test_only_what_is_built_on_the_table_imports_it():
    assert {room for room, imported in MAY_IMPORT.items() if "table" in imported} == MAY_KNOW_THE_TABLE


@functools.cache
def public_methods() -> dict[str, set[str]]:
    """Names of public methods by class, which is named like `search.query.TableQuery`."""
    return {
        f"{module_of(path)}.{node.name}": {
            each.name
            for each in node.body
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_")
        }
        for path in FILES
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef)
    }


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").replace("/", ".")


def test_the_methods_of_a_class_are_in_one_file(path):
    tree, methods = tree_of(path), public_methods()
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}".removeprefix("rqmoe_store.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        for base in node.bases if isinstance(node, ast.ClassDef) else []:
            origin = origins.get(ast.unparse(base).partition("[")[0], "")
            assert not methods.get(origin) or origin in MAY_BE_EXTENDED, f"{node.name} derives from {origin}"


def test_math_knows_no_storage(path):
    if room_of(path) not in WITHOUT_STORAGE or name_of(path) in MAY_READ_TABLES:
        return
    libraries = {module.split(".")[0] for module in imports(tree_of(path))}
    assert not libraries & STORAGE_LIBRARIES


def files_of(module: str) -> set[Path]:
    """Files of the repository that are loaded to import from a dotted name."""
    parts = module.split(".")
    root = ROOT if parts[0] == "rqmoe_store" else ROOT / "tests"
    steps = [root.joinpath(*parts[: end + 1]) for end in range(len(parts))]
    return {
        file for step in steps for file in (step.with_suffix(".py"), step / "__init__.py") if file.is_file()
    }


def test_gpu_tests_and_benchmark_load_no_lancedb():
    """Machines with a GPU need not have it: `make test-gpu`, `rqmoe_store.evaluation.gpu_benchmark`."""
    measured = ("gpu_benchmark", "gpu_measurement", "gpu_scan_measurement", "gpu_workbench")
    starts = {*(ROOT / "tests/gpu").glob("*.py"), *(PACKAGE / f"evaluation/{name}.py" for name in measured)}
    seen, left = set(starts), list(starts)
    while left:
        file = left.pop()
        tree = tree_of(file)
        if file not in starts:  # what functions import is loaded when they are called
            named = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            tree = ast.Module(named, [])
        for module in imports(tree):
            assert module.split(".")[0] not in ("lancedb", "lance"), f"{file} loads {module}"
            more = files_of(module) - seen
            seen |= more
            left += more
    assert PACKAGE / "search/tensor_refine.py" in seen


def test_nothing_is_pickled(any_path):
    tree = tree_of(any_path)
    libraries = {module.split(".")[0] for module in imports(tree)}
    assert not libraries & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        # torch writes pickles, and numpy reads them if asked to.
        assert called not in {"torch.save", "torch.load"}, f"line {node.lineno}"
        allowed = [word.value for word in node.keywords if word.arg == "allow_pickle"]
        assert all(isinstance(value, ast.Constant) and value.value is False for value in allowed)
        if called == "np.load":
            assert allowed, f"line {node.lineno}: say allow_pickle=False"


def test_file_is_short(any_path):
    if any_path.parent == PACKAGE and any_path.name in GENERATED:
        return
    most = MAX_TABLE_LINES if any_path == PACKAGE / "table.py" else MAX_FILE_LINES
    assert len(any_path.read_text().splitlines()) <= most


def test_functions_are_short(any_path):
    """Code counts; signature, docstring and blank lines do not."""
    tree = tree_of(any_path)
    lines = any_path.read_text().splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body or node.end_lineno is None:
            continue
        code = [line for line in lines[body[0].lineno - 1 : node.end_lineno] if line.strip()]
        assert len(code) <= MAX_FUNCTION_LINES, f"{node.name}, line {node.lineno}: {len(code)} lines"


def test_no_file_named_for_nothing(any_path):
    assert any_path.stem not in {"utils", "util", "helpers", "misc", "common"}


def test_adapters_use_public_names_alone():
    """Their examples and benchmarks may also take texts of the demo and rows of the benchmarks."""
    import rqmoe_store
    from rqmoe_store import distributed

    public = {"rqmoe_store", "rqmoe_store.config", *(f"rqmoe_store.{name}" for name in rqmoe_store.__all__)}
    public |= {f"rqmoe_store.distributed.{name}" for name in distributed.__all__}
    for path in ADAPTERS:
        known = ["rqmoe_store.config."]
        if {"examples", "benchmarks"} & set(path.relative_to(ROOT).parts):
            known += ["rqmoe_store.demo.", "rqmoe_store.evaluation."]
        inner = {name for name in imports(tree_of(path)) if name.startswith("rqmoe_store")}
        assert all(name in public or name.startswith(tuple(known)) for name in inner), path


def test_top_level_has_only_what_it_should():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert names - TOP_LEVEL - IGNORED == set()


def test_every_public_name_is_imported_lazily_from_where_it_lives():
    import rqmoe_store

    for name in rqmoe_store.__all__:
        value = getattr(rqmoe_store, name)
        if name != "__version__":
            assert value.__module__.startswith("rqmoe_store."), name
            assert value.__module__.split(".")[1] == public_homes()[name], name
