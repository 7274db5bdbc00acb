"""Files and functions stay short; everything public has a docstring and types."""

import ast
from statistics import median

from .source import ROOT, modules, shown, tree

MAX_FILE, MEDIAN_FILE, MAX_FUNCTION, MAX_KERNEL = 400, 150, 80, 150
Function = ast.FunctionDef | ast.AsyncFunctionDef


def lengths():
    return {path: len(path.read_text().splitlines()) for path in modules().values()}


def functions(node):
    return [child for child in ast.walk(node) if isinstance(child, Function)]


def public_definitions(body, prefix=""):
    """Public functions, classes and methods, not those within functions."""
    for node in body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield f"{prefix}{node.name}", node, bool(prefix)
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body, f"{prefix}{node.name}.")


def untyped(function, method):
    """Parameters without annotation, and `return`."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    if method and not static:
        named = named[1:]
    every = [*named, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    missing = [argument.arg for argument in every if argument.annotation is None]
    return missing + (["return"] if function.returns is None else [])


def test_files_are_short():
    scripts = [*(ROOT / "docs").glob("*.py"), *(ROOT / "bench").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    sizes = lengths()
    every = {**sizes, **{path: len(path.read_text().splitlines()) for path in scripts}}
    too_long = {shown(path): size for path, size in every.items() if size > MAX_FILE}
    assert not too_long, f"over {MAX_FILE} lines: {too_long}"
    assert median(sizes.values()) <= MEDIAN_FILE


def test_benchmark_files_are_shorter():
    assert max(len(path.read_text().splitlines()) for path in (ROOT / "bench").glob("*.py")) <= 200


def is_kernel(function):
    """Whether Triton compiles it: it reads annotations as its own, and unrolls what Python would call."""
    return any(ast.unparse(decorator).partition("(")[0] == "triton.jit" for decorator in function.decorator_list)


def test_functions_are_short():
    too_long = {}
    for path in modules().values():
        for function in functions(tree(path)):
            size = function.end_lineno - function.lineno + 1
            if size > (MAX_KERNEL if is_kernel(function) else MAX_FUNCTION):
                too_long[f"{shown(path)}:{function.lineno} {function.name}"] = size
    assert not too_long, f"over {MAX_FUNCTION} lines: {too_long}"


def test_everything_public_has_a_docstring():
    bare = [shown(path) for path in modules().values() if tree(path).body and not ast.get_docstring(tree(path))]
    for path in modules().values():
        for name, node, _ in public_definitions(tree(path).body):
            if not (ast.get_docstring(node) or "").strip():
                bare.append(f"{shown(path)}:{node.lineno} {name}")
    assert not bare, "no docstring:\n" + "\n".join(bare)


def test_everything_public_has_types():
    found = []
    for path in modules().values():
        for name, node, method in public_definitions(tree(path).body):
            if isinstance(node, Function) and not is_kernel(node) and (missing := untyped(node, method)):
                found.append(f"{shown(path)}:{node.lineno} {name}: {', '.join(missing)}")
    assert not found, "no annotation:\n" + "\n".join(found)


def test_the_measures_measure():
    body = ast.parse("class A:\n def f(self, x, *, y: int): pass\n @staticmethod\n def g(z) -> int: pass").body
    found = {name: (node, method) for name, node, method in public_definitions(body)}
    assert list(found) == ["A", "A.f", "A.g"]
    assert untyped(*found["A.f"]) == ["x", "return"]
    assert untyped(*found["A.g"]) == ["z"]
