"""Rules of the code base, as tests: the seam, sizes, docstrings, import cycles and cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "vfiokit"
MODULES = sorted(PACKAGE.rglob("*.py"))

SEAM = PACKAGE / "kernel" / "linux.py"
RESERVED_MODULES = {"fcntl", "mmap"}
RESERVED_OS_NAMES = {
    "open",
    "eventfd",
    "eventfd_read",
    "eventfd_write",
    "pread",
    "pwrite",
    "preadv",
    "pwritev",
    "memfd_create",
}

MODULE_LINES = 600
FUNCTION_LINES = 60


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_the_seam_talks_to_the_kernel(path: Path) -> None:
    if path == SEAM:
        pytest.skip("this is the seam")
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert not names & RESERVED_MODULES, f"line {node.lineno} imports {names}"
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in RESERVED_MODULES
            if node.module == "os":
                assert not {alias.name for alias in node.names} & RESERVED_OS_NAMES
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ):
            assert node.attr not in RESERVED_OS_NAMES, f"line {node.lineno} uses os.{node.attr}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_and_functions_stay_small(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MODULE_LINES, f"{lines} lines: a concept is missing"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


def _undocumented(node: ast.AST, prefix: str = "") -> list[str]:
    missing: list[str] = []
    for child in getattr(node, "body", []):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in child.decorator_list]
        if any(text.endswith((".setter", "overload")) for text in decorators):
            continue
        if ast.get_docstring(child) is None:
            missing.append(prefix + child.name)
        if isinstance(child, ast.ClassDef):
            missing += _undocumented(child, f"{child.name}.")
    return missing


def _overrides_only(names: list[str], tree: ast.Module) -> list[str]:
    """Methods of a subclass inherit their documentation; only first definitions must carry it."""
    derived = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases
    }
    return [name for name in names if name.split(".")[0] not in derived or "." not in name]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_names_are_documented(path: Path) -> None:
    tree = _tree(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    missing = _overrides_only(_undocumented(tree), tree)
    assert not missing, missing


def _dotted(path: Path) -> str:
    parts = ["vfiokit", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {_dotted(path): path for path in MODULES}


def _imports(path: Path) -> set[str]:
    """Modules of the package imported at the top level of a module (not inside functions).

    ``from package import module`` depends on the module; that its package is initialised first
    is no cycle.
    """
    found: set[str] = set()
    pending: list[ast.stmt] = list(_tree(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try):
            pending += node.body
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in KNOWN else node.module)
    return found & KNOWN.keys()


def test_no_two_test_modules_share_a_name() -> None:
    # pytest imports them by their base name, so that the second would be an error.
    folders: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name not in ("__init__.py", "conftest.py") and "conformance" not in path.parts:
            folders.setdefault(path.name, []).append(str(path.parent.relative_to(ROOT)))
    assert {name: found for name, found in folders.items() if len(found) > 1} == {}


def test_there_is_no_import_cycle() -> None:
    graph = {name: _imports(path) - {name} for name, path in KNOWN.items()}
    done: set[str] = set()
    trail: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        trail.append(name)
        for other in sorted(graph[name]):
            visit(other)
        trail.pop()
        done.add(name)

    for name in graph:
        visit(name)


HEAVY = (
    "asyncio",
    "ctypes",
    "dataclasses",
    "inspect",
    "json",
    "logging",
    "numpy",
    "pathlib",
    "rich",
    "tarfile",
    "typing_extensions",
    "zstandard",
)


def test_the_groups_path_imports_nothing_heavy() -> None:
    """What ``vfiokit groups`` loads decides how it feels; heavy modules are loaded when needed."""
    code = (
        "import sys, vfiokit.host.source, vfiokit.host.sysfs, vfiokit.host.umockdev,"
        " vfiokit.isolation.group\n"
        "print('\\n'.join(sys.modules))"
    )
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    extra = set(loaded.stdout.split()) - set(bare.stdout.split())
    assert not extra & set(HEAVY)


def test_version_is_quick_and_standard_library_only() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vfiokit", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("vfiokit ")
    assert "rich" not in result.stderr
    assert "vfiokit.machine" not in result.stderr


FORBIDDEN_WORDS = ("/work/", "claude", "openai", "registry.", "the issue", "helper session")


def test_text_speaks_of_the_project_alone() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *MODULES]:
        text = path.read_text(encoding="utf-8").lower()
        for word in FORBIDDEN_WORDS:
            assert word not in text, f"{path.relative_to(ROOT)} says {word!r}"
