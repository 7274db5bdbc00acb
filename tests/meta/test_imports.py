"""Imports go one way, in no circles, and cost nothing until work starts."""

import ast
import subprocess
import sys

import pytest

from .source import PACKAGES, modules, shown, tree

PLUGIN_MAY_IMPORT = {"rnn_lab", "torch", "pydantic"}
LIGHT = ("rnn_lab", "rnn_lab.hookspecs", "rnn_lab.discovery.modeldoc", "rnn_lab.registry", "rnn_lab.errors")


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported(module, path, *, at_load):
    """Dotted names that a module imports, with their lines; `at_load` leaves out functions and type checking."""
    pending = list(tree(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in modules() else base, node.lineno)
        elif at_load and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)):
            continue
        else:
            pending += ast.iter_child_nodes(node)


def of_package(package):
    return {name: path for name, path in modules().items() if name.split(".")[0] == package}


def test_core_names_no_other_member():
    others = set(PACKAGES) - {"rnn_lab"}
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for module, path in of_package("rnn_lab").items()
        for name, line in imported(module, path, at_load=False)
        if name.split(".")[0] in others
    ]
    assert not wrong, wrong


def test_the_command_line_names_no_plugin():
    plugins = set(PACKAGES) - {"rnn_lab", "rnn_lab_cli"}
    for module, path in of_package("rnn_lab_cli").items():
        names = {name.split(".")[0] for name, _ in imported(module, path, at_load=False)}
        assert names.isdisjoint(plugins), shown(path)


def test_plugins_import_little():
    wrong = []
    for package in set(PACKAGES) - {"rnn_lab", "rnn_lab_cli"}:
        allowed = PLUGIN_MAY_IMPORT | {package} | sys.stdlib_module_names
        for module, path in of_package(package).items():
            wrong += [
                f"{shown(path)}:{line} imports {name}"
                for name, line in imported(module, path, at_load=False)
                if name.split(".")[0] not in allowed
            ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", ["rnn_lab", "rnn_lab_cli"])
def test_no_module_imports_itself_in_a_circle(package):
    graph = {
        module: {name for name, _ in imported(module, path, at_load=True) if name in of_package(package)} - {module}
        for module, path in of_package(package).items()
    }
    done, trail = set(), []

    def visit(module):
        if module in trail:
            circle = " -> ".join([*trail[trail.index(module) :], module])
            raise AssertionError(f"circular import: {circle}")
        if module in done:
            return
        trail.append(module)
        for name in sorted(graph[module]):
            visit(name)
        trail.pop()
        done.add(module)

    for module in graph:
        visit(module)


@pytest.mark.parametrize("statement", [*(f"import {name}" for name in LIGHT), "REGISTRY", "import rnn_lab_cli.main"])
def test_discovery_imports_neither_torch_nor_numpy(statement):
    if statement == "REGISTRY":
        statement = "from rnn_lab.registry import build_registry; assert build_registry().models"
    program = f"import sys\n{statement}\nprint(*sorted({{'torch', 'numpy', 'click'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy = set(done.stdout.split()) - ({"click"} if "cli" in statement else set())
    assert not heavy
