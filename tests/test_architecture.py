"""The rules of the house that a machine can hold: imports, file length, docstrings, parameters, no machine's paths."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
MODULES = sorted((SRC / "scenedistill").rglob("*.py"))
MAX_LINES = 350
MAX_PARAMETERS = 7
MANY_PARAMETERS = {
    "scenedistill.losses.spatial_structure.SpatialStructureLoss.__init__": "its options are the loss's settings",
}

#: The rooms from the ground up: each imports only from those before it.
ORDER = (
    "core", "data", "models", "losses", "fit_config", "config", "training", "metrics", "runs", "experiments",
    "inference", "export", "reporting", "serve", "commands", "cli",
)  # fmt: skip

# A folder of one person's or one machine's, at the start of a path; "../work" or "site.org/home" is none.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/:$}>-])(/(?:home|Users|root|work|mnt|media|scratch|var/folders)/\w|[A-Za-z]:\\Users\\)"
)


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Every name a module imports, anywhere in it, made absolute; `from a import b` gives a and a.b."""
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def forbidden(module: str, imported: set[str]) -> set[str]:
    """The imports from rooms above the module's own; the package itself offers names of all rooms."""
    room = module.split(".")[1] if "." in module else ""
    if not room:
        return set()
    above = {f"scenedistill.{name}" for name in ORDER[ORDER.index(room) + 1 :]}
    return {name for name in imported if ".".join(name.split(".")[:2]) in above}


def parameters(source: str) -> dict[str, int]:
    """Every function in a module, also in classes and functions, and its number of parameters without self and cls."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, name: str, in_class: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                given = child.args
                names = [each.arg for each in (*given.posonlyargs, *given.args)]
                names = names[1:] if in_class and names[:1] in (["self"], ["cls"]) else names
                names += [each.arg for each in (*given.kwonlyargs, given.vararg, given.kwarg) if each]
                found[f"{name}{child.name}"] = max(len(names), found.get(f"{name}{child.name}", 0))
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{name}{child.name}.", isinstance(child, ast.ClassDef))
            else:
                visit(child, name, in_class)

    visit(ast.parse(source), "", False)
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_each_package_imports_only_the_packages_it_may(path: Path) -> None:
    if path.name == "__main__.py":
        pytest.skip("__main__ is the one that starts the commands")
    module = module_name(path)
    broken = forbidden(module, imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"))
    assert not broken, f"{module} imports {sorted(broken)}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_short_and_have_a_docstring(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.count("\n")
    assert lines <= MAX_LINES, f"{module_name(path)} has {lines} lines; split it (at most {MAX_LINES})"
    if source.strip():  # an empty __init__.py has nothing to say
        assert ast.get_docstring(ast.parse(source)), f"{module_name(path)} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_function_has_many_parameters(path: Path) -> None:
    counts = {f"{module_name(path)}.{name}": count for name, count in parameters(path.read_text("utf-8")).items()}
    many = {name: count for name, count in counts.items() if count > MAX_PARAMETERS and name not in MANY_PARAMETERS}
    assert not many, f"more than {MAX_PARAMETERS} parameters: drop some, or pass an object that holds them: {many}"
    needless = [name for name in MANY_PARAMETERS if counts.get(name, MAX_PARAMETERS + 1) <= MAX_PARAMETERS]
    assert not needless, f"no exception any more: {needless}"


def test_every_module_is_imported_by_a_command_or_a_package() -> None:
    """What only measures, or fills our own documents, stands in benchmarks/ and is not shipped."""
    imported = {
        module_name(path): imports(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")
        for path in MODULES
    }
    waiting = ["scenedistill.cli", *(module_name(path) for path in MODULES if path.name == "__init__.py")]
    reached: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in imported and module not in reached:
            reached.add(module)
            waiting += imported[module]
    assert not set(imported) - reached


def test_no_file_holds_a_path_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the repository's files")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    assert "pyproject.toml" in names
    found = []
    for name in names:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture, or a file removed but not yet from the index
        found += [f"{name}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not found, found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scenedistill.losses.logits", "import scenedistill.training.student"),
        ("scenedistill.losses.logits", "from scenedistill import metrics"),
        ("scenedistill.data.module", "from ..experiments.results import Result"),
        ("scenedistill.models.create", "from .. import serve"),
        ("scenedistill.models.create", "def late():\n    from scenedistill.training import runs"),
        ("scenedistill.training.runs", "from scenedistill import cli"),
        ("scenedistill.training.student", "from scenedistill.metrics.accuracy import scene_metrics"),
        ("scenedistill.config", "from .cli import main"),
    ],
)
def test_the_import_check_finds_forbidden_imports(module: str, source: str) -> None:
    assert forbidden(module, imports(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scenedistill.losses.logits", "from scenedistill.models.output import SceneOutput"),
        ("scenedistill.models.freeze", "import torch.utils.data\nfrom . import output"),
        ("scenedistill.runs.curves", "from scenedistill.metrics.accuracy import scene_metrics"),
        ("scenedistill.training.runs", "import scenedistill.climate"),
    ],
)
def test_the_import_check_accepts_allowed_imports(module: str, source: str) -> None:
    assert not forbidden(module, imports(source, module))


def test_the_parameter_check_counts_all_but_self_and_cls() -> None:
    source = """
def plain(a, /, b, *rest, c, **more): ...
if True:
    async def later(self, a): ...
class Kind:
    def method(self, a, *, b=1):
        def inner(self, a): ...
    @classmethod
    def made(cls, a): ...
    @staticmethod
    def alone(a, b): ...
"""
    assert parameters(source) == {
        "plain": 5, "later": 2, "Kind.method": 2, "Kind.method.inner": 2, "Kind.made": 1, "Kind.alone": 2
    }  # fmt: skip


def test_the_path_check_finds_machine_paths_and_accepts_others() -> None:
    machine = ["/".join(["", "home", "anna", "AID"]), '"' + "/".join(["", "work", "x"]), "C:" + "\\Users\\anna"]
    general = ["../folder/x", "https://example.org/home/x", "src/data/home/x", "~/home/x", "$HOME/data", "/path/to/AID"]
    assert all(MACHINE_PATH.search(text) for text in machine)
    assert not any(MACHINE_PATH.search(text) for text in general)
