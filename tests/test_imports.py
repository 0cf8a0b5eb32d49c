"""The arrows of the architecture: imports only point up the list."""

import ast
import pathlib

import pytest

import robustjax

ROOT = pathlib.Path(robustjax.__file__).parent
ORDER = (
    *(
        "types",
        "_interned",
        "_checks",
        "_digest",
        "_files",
        "_provenance",
        "_random",
        "threats",
        "objectives",
        "pairing",
        "_gradients",
    ),
    *("models",),
    *("interoperation", "attacks", "information", "interpolation", "influence"),
    *(
        "transforms",
        "defenses",
        "data",
        "training",
        "evaluation",
        "config",
        "build",
        "judging",
        "cli",
    ),
)
FILES = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: str(path.relative_to(ROOT))
)


def imported(path):
    """Names of the modules that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if is_module(name) else node.module)
    return found


def is_module(name):
    path = ROOT.parent / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def internal(path):
    return {name for name in imported(path) if name.split(".")[0] == "robustjax"}


@every_file
def test_imports_point_up_the_list(path):
    part = path.relative_to(ROOT).with_suffix("").parts[0]
    if part == "__init__":
        return  # the front page re-exports everything
    assert part in ORDER, f"{part} has no place in the list of CONTRIBUTING.md"
    for name in internal(path):
        other = name.split(".")[1]
        assert ORDER.index(other) <= ORDER.index(part), f"{part} imports {name}"


@every_file
def test_flax_stays_in_models(path):
    if "models" not in path.relative_to(ROOT).parts:
        assert not any(name.split(".")[0] == "flax" for name in imported(path))


@every_file
def test_few_imports_from_other_parts(path):
    if path.parent == ROOT / "config" or path.name in ("build.py", "__init__.py"):
        return
    # Neighbours in the same package are free: the training loop has six.
    part = path.relative_to(ROOT).parts[0]
    assert len([name for name in internal(path) if name.split(".")[1] != part]) <= 5


@every_file
def test_only_build_has_tables_of_names(path):
    if path == ROOT / "config" / "names.py":
        return
    for statement in ast.parse(path.read_text()).body:
        table = getattr(statement, "value", None)
        if isinstance(table, ast.Dict) and len(table.keys) > 1:
            code = all(isinstance(v, (ast.Name, ast.Attribute)) for v in table.values)
            keys = {getattr(key, "value", None) for key in table.keys}
            by_norm = keys <= {"linf", "l2", "l1"}  # a formula per norm is no registry
            assert by_norm or not code, (
                f"{path}:{statement.lineno} looks like a table of names"
            )


def test_contributing_has_the_same_list():
    guide = ROOT.parent / "CONTRIBUTING.md"
    if not guide.exists():
        pytest.skip("not a checkout")
    text = " ".join(guide.read_text().replace("\\", "").split())
    assert ", ".join(ORDER) in text
