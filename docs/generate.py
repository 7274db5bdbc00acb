"""Write the pages that follow from the code: `python docs/generate.py`, or `--check` to see whether they are stale.

Whole pages: cli.md, models.md, config.md, hooks.md, presets.md. Blocks between `<!-- generated: NAME -->` and
`<!-- end -->` in written pages: the results of README.md, the tables of performance.md, protocols.md and
diagnostics.md, the models and seed rows of each family.

`--record RUN [NAME]` first keeps the figures of a finished run as docs/benchmarks/NAME.json; see results.py.
"""

import argparse
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
FAMILIES = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").is_file())

# The pages describe this tree, whatever else is installed or set on the machine that writes them.
os.environ["RNN_LAB_LOAD_PLUGINS"] = ",".join(FAMILIES)
os.environ.pop("RNN_LAB_PLUGINS_DIR", None)

import collider  # noqa: E402
import e3_page  # noqa: E402
import results  # noqa: E402
import seeds  # noqa: E402
import speed  # noqa: E402
from click import Group  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from rnn_lab import hookspecs  # noqa: E402
from rnn_lab.config import SECTIONS, parse_count  # noqa: E402
from rnn_lab.protocol import Entry, External, SeriesSection  # noqa: E402
from rnn_lab.registry import ModelRef, registry  # noqa: E402
from rnn_lab_cli.commands.protocol_list import protocol_row  # noqa: E402
from rnn_lab_cli.commands.show import type_name  # noqa: E402
from rnn_lab_cli.main import PROGRAM, cli  # noqa: E402
from rnn_lab_cli.plugin_commands import plugin_commands  # noqa: E402

NOTE = "<!-- Written by `make docs`; edit the code or docs/generate.py instead. -->\n"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(text: str, language: str = "text") -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def cli_page() -> str:
    """Help of the program and of every command."""
    page = ["# Commands\n", NOTE, "Exit codes and environment variables: see the README.\n"]
    for path in _commands(cli, ()):
        done = CliRunner().invoke(cli, [*path, "--help"], prog_name=PROGRAM, terminal_width=WIDTH)
        if done.exit_code != 0:
            raise SystemExit(f"{' '.join(path)} --help failed: {done.output}{done.exception!r}")
        page.append(f"## {' '.join([PROGRAM, *path])}\n\n{code(done.stdout)}")
    return "\n".join(page)


def _commands(group: Group, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    context = group.make_context(PROGRAM, [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


def models() -> list[ModelRef]:
    """Every model of the tree by family and name."""
    return sorted(registry().models.values(), key=lambda ref: (ref.family, _natural(ref.name)))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def models_page() -> str:
    """The table of models, then each one's mathematics and fields."""
    intro = (
        "Each text is the docstring of the model's own file. A model's fields are options of `fit` and `size` "
        "(`--n-state 32`) and keys of `[model]`; an alias is a model with some fields set. "
        "`rnn-lab show MODEL` adds sizes, state and the kernels usable on this machine.\n"
    )
    rows = [
        (f"[{ref.name}](#{ref.name})", ref.family, f"`{ref.doc.equation}`", ref.doc.parent.partition(":")[0])
        for ref in models()
    ]
    page = ["# Models\n", NOTE, intro, table(("model", "family", "equation", "parent"), rows)]
    for ref in models():
        page.append(_model_section(ref))
    return "\n".join(page)


def _model_section(ref: ModelRef) -> str:
    doc = ref.doc
    facts = [("Parent", doc.parent), ("Parameters", f"`{doc.parameters}`"), ("Source", doc.source)]
    aliases = [(f"`{alias}`", _settings(fields)) for alias, fields in doc.aliases.items()]
    parts = [
        f"## {ref.name}\n",
        code(f"{doc.equation}\n\n{doc.text}"),
        "\n".join(f"- {name}: {text}" for name, text in facts if text.strip("`")) + "\n",
    ]
    if aliases:
        parts.append(table(("alias", "sets"), aliases))
    parts.append(table(("field", "type", "default", "range", "meaning"), _field_rows(ref.load().Config)))
    return "\n".join(parts)


def _settings(fields: dict[str, str]) -> str:
    return ", ".join(f"`{key} = {value}`" for key, value in fields.items()) or "nothing"


def _field_rows(schema: Any, prefix: str = "") -> Iterator[tuple[object, ...]]:
    for name, info in schema.model_fields.items():
        value = "required" if info.is_required() else f"`{_toml(info.get_default(call_default_factory=True))}`"
        bounds = ", ".join(_bounds(info.metadata))
        kind = "count" if parse_count in _validators(info.metadata) else _kind(info.annotation)
        yield (f"`{prefix}{name}`", f"`{kind}`", value, bounds, info.description or "")


def _kind(annotation: Any) -> str:
    """Type of a field; an `Annotated` part of a union is a count."""
    parts = [part for part in get_args(annotation) if get_origin(part) is Annotated]
    if not parts:
        return type_name(annotation)
    assert all(parse_count in _validators(part.__metadata__) for part in parts), annotation
    return " | ".join("count" if part in parts else type_name(part) for part in get_args(annotation))


def _validators(metadata: Iterable[Any]) -> list[object]:
    return [getattr(item, "func", None) for item in metadata]


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "multiple of"}
    for item in metadata:
        for name, sign in signs.items():
            if (limit := getattr(item, name, None)) is not None:
                yield f"{sign} {limit}"


def _toml(value: object) -> str:
    """A default as it would stand in a configuration file."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def config_page() -> str:
    """Every section and key of the configuration."""
    intro = (
        "A run is described by layers, weakest first: defaults, `--protocol NAME`, `--preset NAME`, "
        "`--config FILE.toml`, options, `-o SECTION.KEY=VALUE`. A later layer wins key by key. Unknown keys are errors "
        "that name the nearest key. `fit --dry-run` prints every value and the layer that set it; `config.toml` of a "
        "run holds the same. A count is an integer that may be written `250k`, `50M` or `1.5B`.\n\n"
        "On the CPU a layer called `default on cpu` stands between the defaults and everything else: it sets "
        f"{_cpu_defaults()}, so that a first run learns something in a minute.\n"
    )
    page = ["# Configuration\n", NOTE, intro]
    headers = ("key", "type", "default", "range", "meaning")
    for name, schema in SECTIONS.items():
        if name == "model":
            rows = [row for row in _field_rows(schema, "model.") if row[0] != "`model.fields`"]
        else:
            rows = list(_field_rows(schema, f"{name}."))
        doc = inspect.getdoc(schema) or ""
        page.append(f"## [{name}]\n\n{doc.partition(': ')[2]}\n\n{table(headers, rows)}")
    page.append("Fields of the models themselves, which are further keys of `[model]`: [models.md](models.md).\n")
    return "\n".join(page)


def _cpu_defaults() -> str:
    from rnn_lab.train.run import CPU_DEFAULTS

    pairs = [(f"{s}.{k}", v) for s, keys in CPU_DEFAULTS.values.items() for k, v in keys.items()]
    return ", ".join(f"`{key} = {value}`" for key, value in pairs)


def diagnostics_block() -> str:
    """The registered rules."""
    rows = []
    for name in registry().diagnostics:
        rule = registry().load("diagnostics", name)
        severity = rule.severity if rule.for_muon is None else f"{rule.severity}; Muon: {rule.for_muon}"
        rows.append((f"`{name}`", severity, ", ".join(rule.at), rule.condition))
    return table(("id", "severity", "asked at", "condition"), rows)


def protocols_block() -> str:
    """The shipped protocols, from their files."""
    rows = []
    for name in registry().protocols:
        row = protocol_row(name, registry())
        rows.append((f"`{name}`", *(row[key] for key in ("target", "bytes per step", "budget", "runs", "description"))))
    return table(("protocol", "target", "bytes per step", "budget", "runs", "what"), rows)


def protocol_fields_block() -> str:
    """Keys of a protocol file besides the sections of the configuration."""
    headers = ("key", "type", "default", "range", "meaning")
    parts = [("[series]", SeriesSection), ("[[run]]", Entry), ("[[external]]", External)]
    return "\n".join(f"### {name}\n\n{table(headers, _field_rows(schema))}" for name, schema in parts)


HOOKS_INTRO = """\
A plugin is an importable module that an entry point of the group `rnn_lab` names. It implements any of the hooks
below; pluggy calls them. Nothing has to be registered elsewhere:

```toml
[project.entry-points.rnn_lab]
my_lab = "my_lab"
```

```python
from rnn_lab.hookspecs import hookimpl
from rnn_lab.registry import models_in


@hookimpl
def register_models(register):
    register(models_in(__name__))
```

Rules:

- Hooks hand over references, names and `module:attribute` strings, never the objects. Loading a plugin must not
  import torch; what a reference names is imported when somebody uses it.
- A plugin that raises, exits, hangs for longer than `RNN_LAB_PLUGIN_TIMEOUT` seconds or takes a name that is
  already taken becomes a row with a reason in `rnn-lab plugins`; everything else keeps working.
- `PLUGIN_API = N` in the module says which version of this page it needs; a newer one than rnn-lab has is refused
  by name. This page is version {api}.
- `RNN_LAB_LOAD_PLUGINS=a,b` loads only these; `RNN_LAB_STRICT_PLUGINS=1` re-raises what a plugin raises.

A tutorial: [add-a-model.md](add-a-model.md).
"""


def hooks_page() -> str:
    """The extension API: every hook with its arguments, contract and users."""
    plugin_commands()
    used: dict[str, list[str]] = {}
    for info in registry().plugins:
        for hook in info.hooks:
            used.setdefault(hook, []).append(f"`{info.distribution}` ({info.name})")
    page = ["# Hooks\n", NOTE, HOOKS_INTRO.replace("{api}", str(hookspecs.PLUGIN_API))]
    for name, hook in hooks().items():
        signature = f"def {name}{inspect.signature(hook)}"
        users = ", ".join(used.get(name, [])) or "nobody"
        text = inspect.getdoc(hook) or ""
        page.append(f"## {name}\n\n{code(_plain(signature), 'python')}\n{text}\n\nUsed by: {users}.\n")
    return "\n".join(page)


def hooks() -> dict[str, Callable[..., object]]:
    """Hooks of the extension API, in the order of the file."""
    attribute = f"{hookspecs.PROJECT}_spec"
    return {name: value for name, value in vars(hookspecs).items() if hasattr(value, attribute)}


def _plain(signature: str) -> str:
    """Annotations without the modules that they come from."""
    return re.sub(r"\b(?:collections\.abc|typing)\.", "", signature)


def family_table(family: str) -> str:
    """Equation, parent and parameters of a family's models, from their docstrings."""
    rows = [
        (f"`{r.name}`", f"`{r.doc.equation}`", r.doc.parent, f"`{r.doc.parameters}`")
        for r in models()
        if r.family == family
    ]
    return table(("model", "equation", "parent and what changed", "parameters"), rows)


def with_block(text: str, name: str, body: str) -> str:
    """`text` with the block `name` replaced; the markers have to be there."""
    pattern = re.compile(rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    new, count = pattern.subn(lambda match: f"{match[1]}\n{body}\n{match[2]}", text)
    if count != 1:
        raise SystemExit(f"expected one block `<!-- generated: {name} -->` … `<!-- end -->`, found {count}")
    return new


def pages() -> dict[Path, str]:
    """Every file that this program keeps, as it should be."""
    docs = ROOT / "docs"
    found = {
        docs / "cli.md": cli_page(),
        docs / "models.md": models_page(),
        docs / "config.md": config_page(),
        docs / "hooks.md": hooks_page(),
        docs / "presets.md": "\n".join(["# Presets\n", NOTE, seeds.page(table)]),
    }
    blocks = [(ROOT / "README.md", "results", results.runs_block(docs / "benchmarks", table))]
    measured = {
        "bench": results.bench_block,
        "floors": speed.floors_block,
        "bench-kernels": speed.kernels_block,
        "bench-train": speed.train_block,
        "bench-decode": speed.decode_block,
        "bench-filtered": collider.products_block,
    }
    blocks += [(docs / "performance.md", name, make(docs / "benchmarks", table)) for name, make in measured.items()]
    blocks += [
        (docs / "diagnostics.md", "diagnostics", diagnostics_block()),
        (docs / "protocols.md", "protocols", protocols_block()),
        (docs / "protocols.md", "protocol-fields", protocol_fields_block()),
        (docs / "e3.md", "e3-files", e3_page.files_block(table)),
        (docs / "e3.md", "e3-state", e3_page.state_block(table)),
        (docs / "e3.md", "e3-report", e3_page.report_block(docs / "benchmarks/e3-50m-1-minute/e3.json", table)),
        (docs / "e3.md", "bench-backward", collider.backward_block(docs / "benchmarks", table)),
        (docs / "e3.md", "e3-keys", e3_page.keys_block(table, _field_rows)),
    ]
    for family in FAMILIES:
        readme = ROOT / "plugins" / family / "README.md"
        blocks += [(readme, "models", family_table(family)), (readme, "seeds", seeds.family_block(family, table))]
    for path, name, body in blocks:
        found[path] = with_block(found.get(path) or path.read_text(encoding="utf-8"), name, body)
    return found


def main() -> int:
    """Write or check; 1 when something is stale."""
    parser = argparse.ArgumentParser(description="Write the pages that follow from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    parser.add_argument("--record", nargs="+", metavar=("RUN", "NAME"), help="keep the figures of a run")
    options = parser.parse_args()
    if options.record:
        results.record(Path(options.record[0]), options.record[1:], ROOT / "docs" / "benchmarks")
    stale = 0
    for path, text in pages().items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == text:
            continue
        stale += 1
        name = path.relative_to(ROOT).as_posix()
        if options.check:
            diff = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "as generated", "", "", 1, "")
            sys.stdout.write("\n".join(list(diff)[:20]) + "\n")
        else:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {name}\n")
    if options.check and stale:
        sys.stdout.write(f"{stale} pages are out of date: run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
