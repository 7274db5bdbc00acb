"""The seeds' rows in the documentation: a page of all presets, and a block in each family's README."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from rnn_lab.errors import RnnLabError
from rnn_lab.presets import Document, Preset, Printed, all_presets
from rnn_lab.registry import registry

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]

HEADERS = ("preset", "row", "model", "parameters", "parameters, as printed", "loss, as printed", "tok/s, as printed")
PAGE_INTRO = """\
A preset is a named configuration with what is known of it. Every row of the seeds' tables is one:

```console
rnn-lab presets --seed seed004              # all of a document; --family e61_e68, --json
rnn-lab presets seed004/e74_n32             # one: how it was really run, every printed figure, notes
rnn-lab size --preset seed003/e4_2x         # its size, proven by counting
rnn-lab fit --preset seed004/e74_n32 --data my.txt --minutes 10
```

`fit --preset NAME` puts a layer between `--protocol` and `--config`: the row's model, whose shape stands in for any
target, and its recipe, which is our clean protocol nearest to what was run; a `--protocol` of yours stands in for the
recipe. The origin of its values is `preset NAME`.

Losses and speeds on this page are external: printed by the seeds' own runs, not reproduced here. Parameters are ours,
by closed form; a printed count matches when it is less than one unit of its last printed digit away. Where no
configuration can be known, the row says why.

A plugin ships presets as TOML files beside its models and hands their paths to the hook `register_presets`
([hooks.md](hooks.md)); `core/rnn_lab/presets.py` says what a file holds.
"""
BLOCK_INTRO = """\
External, as printed by the seeds' own runs; not reproduced here. Parameters are ours:
`rnn-lab size --preset NAME` proves them, `rnn-lab fit --preset NAME` trains the row's model. How the rows were
really run, and what their documents leave out: [presets](../../docs/presets.md).
"""


def page(table: Table) -> str:
    """Every document with its recipe, histories, rows and notes."""
    parts = [PAGE_INTRO]
    presets = sorted(all_presets(registry()).values(), key=lambda p: (not p.seed.startswith("seed"), p.seed))
    for seed in dict.fromkeys(preset.seed for preset in presets):
        rows = [preset for preset in presets if preset.seed == seed]
        parts.append(f"## {seed}\n\n" + "\n".join(_about(rows[0].document)))
        parts.append(table(HEADERS, _rows(rows)))
        parts.append(_notes(rows))
    return "\n".join(part for part in parts if part)


def family_block(family: str, table: Table) -> str:
    """Rows of the models of one plugin, and the notes on them."""
    rows = [preset for preset in all_presets(registry()).values() if preset.plugin == family]
    parts = [BLOCK_INTRO, table(HEADERS, _rows(rows)), _notes(rows)]
    return "\n".join(part for part in parts if part)


def _about(document: Document) -> Iterator[str]:
    yield f"{document.title} (`{document.document}`).\n"
    if document.recipe.protocol:
        yield f"- Recipe: protocol `{document.recipe.protocol}`."
    for name, text in document.history.items():
        yield f"- Really run (`{name}`): {' '.join(text.split())}"
    yield from (f"- {note}" for note in document.notes)
    yield ""


def _rows(presets: Iterable[Preset]) -> Iterator[tuple[object, ...]]:
    for preset in presets:
        for printed in preset.row.printed or (Printed(table="", row=""),):
            yield (
                f"`{preset.name}`",
                printed.row or "in no table",
                _model(preset),
                _count(preset),
                *(text or "not printed" for text in (printed.params, printed.loss, printed.tok_s)),
            )


def _model(preset: Preset) -> str:
    if preset.row.config is None:
        name = f"`{preset.row.model}`; no configuration" if preset.row.model else "no configuration"
        return f"{name}: {preset.row.reason}"
    fields = ", ".join(f"{key} = {_value(value)}" for key, value in preset.row.config.items() if key != "name")
    return f"`{preset.model}`: {fields}"


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count(preset: Preset) -> str:
    try:
        count = preset.count(registry())
    except RnnLabError as error:
        raise SystemExit(f"{preset.name}: {error}") from error
    if preset.matches(count) is False:
        raise SystemExit(f"{preset.name} has {count:,} parameters, printed are {preset.printed_params}")
    return "open" if count is None else f"{count:,}"


def _notes(presets: Iterable[Preset]) -> str:
    """Notes on single rows, each once with the rows that it is about."""
    about: dict[str, list[str]] = {}
    for preset in presets:
        for note in preset.row.notes:
            about.setdefault(note, []).append(f"`{preset.name}`")
    lines = [f"- {', '.join(names)}: {note}" for note, names in about.items()]
    return "\n".join(lines) + "\n" if lines else ""
