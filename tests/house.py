"""Imports and sizes of the package, read from its syntax without running it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The method itself: the modules to read to understand it, including the parts they were split into.
CORE = (
    "records prompts model.policy model.adapters model.scoring model.sampling model.head "
    "model.losses steps.rollouts steps.extraction steps.distillation steps.teacher "
    "steps.training steps.checkpoint steps.evaluation"
)


@cache
def modules():
    """Map each module of the package to (path, source, syntax tree)."""
    found = {}
    for path in sorted((ROOT / "oelkit").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        source = path.read_text("utf-8")
        found[name] = path, source, ast.parse(source)
    return found


def part(module):
    return module.split(".")[1] if "." in module else ""


def imports(name):
    """Yield a module's imports as (absolute module name, name imported from it or None, line)."""
    path, _, tree = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (
                    (whole, None, node.lineno)
                    if whole in modules()
                    else (base, alias.name, node.lineno)
                )


def arrows():
    """Yield (importing module, imported module, line) within the package."""
    for name in modules():
        for target, _, line in imports(name):
            if target in modules() and target not in (name, "oelkit"):
                yield name, target, line


def functions(name):
    def below(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            yield from below(child)

    return below(modules()[name][2])


def excused(name, function):
    """Return whether a comment `# why: ...` at the def, or right above it, gives a reason."""
    lines = modules()[name][1].splitlines()
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return any("# why: " in line for line in lines[first : function.body[0].lineno])


def lines(name):
    return modules()[name][1].count("\n")


def sizes():
    """Return (all lines, lines of the core path, the longest files)."""
    core = ["oelkit." + name for name in CORE.split()]
    longest = sorted(modules(), key=lines, reverse=True)[:3]
    return sum(map(lines, modules())), sum(map(lines, core)), longest


def parameters(function):
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [a.arg for a in (given.vararg, given.kwarg) if a]
    return len([name for name in names if name not in ("self", "cls")])
