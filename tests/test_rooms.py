"""The packages import each other in one direction only, without circles, and stay small enough to take in."""

import ast

import pytest
from conftest import ROOT

# Each may import those before it.
ORDER = [
    "errors",
    "files",
    "outputs",
    "processes",
    "cli",
    "runinfo",
    "articles",
    "language",
    "page",
    "models",
    "statistics",
    "scoring",
    "splits",
    "training",
]
ORDER += ["evaluation", "benchmark"]
SCRIPTS = [*ROOT.glob("*.py")]
MODULES = sorted((ROOT / "prefilter_common").rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {name_of(path) for path in MODULES}


def imports(path, top_level_only=False):
    """The modules that a file imports; of this project's own, each by the module that holds what is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & KNOWN
            found |= inside or {node.module}
    return found


def room_of(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) != "prefilter_common"], ids=name_of)
def test_imports_go_down_only(path):
    own = room_of(name_of(path))
    for module in imports(path) & KNOWN - {"prefilter_common"}:
        assert ORDER.index(room_of(module)) <= ORDER.index(own), f"{name_of(path)} imports {module}"


def test_no_circle():
    graph = {name_of(path): imports(path) & KNOWN - {name_of(path)} for path in MODULES}
    # A package's __init__ is run before each of its modules, but waits for none of those that it does not import.
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


def test_no_script_is_imported():
    for path in MODULES:
        assert not imports(path) & {script.stem for script in SCRIPTS}, path


@pytest.mark.parametrize("room", ["scoring", "statistics"])
def test_neither_torch_nor_transformers_at_the_top(room):
    for path in (ROOT / "prefilter_common" / room).rglob("*.py"):
        if path.name == "pytorch.py":  # an engine, which is imported only when it is opened
            continue
        tops = {module.split(".")[0] for module in imports(path, top_level_only=True)}
        assert not tops & {"torch", "transformers", "peft"}, path


def test_rooms_and_modules_stay_small():
    rooms = {path.parent for path in MODULES if path.parent != ROOT / "prefilter_common"}
    for room in rooms:
        modules = [path for path in room.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
        assert len(modules) < 10, room
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert all(words in " ".join(docstring.split()) for words in ("In: ", "Out: ", "not belong here:")), room
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path


def test_functions_fit_on_a_screen():
    for path in MODULES + SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_no_name_means_two_things():
    """Public functions and constants; each command has its own ``main`` and ``parse_args``."""
    defined = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") else []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
                names = [name for name in found if name.isupper()]
            for name in names:
                defined.setdefault(name, []).append(name_of(path))
    twice = {name: modules for name, modules in defined.items() if len(modules) > 1}
    assert twice.keys() <= {"main", "parse_args"}, twice
