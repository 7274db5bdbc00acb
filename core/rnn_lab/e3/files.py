"""Files that `--config` names: of ordinary sections, or of the suite; the suite's own go by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnn_lab.config import Layer, read_toml
from rnn_lab.e3.schema import E3File, is_e3, parse
from rnn_lab.e3.translate import Translated, translate

FOLDER = Path(__file__).parent / "configs"


def shipped() -> dict[str, Path]:
    """Files that come with rnn-lab, by the name `e3/STEM`."""
    return {f"e3/{path.stem}": path for path in sorted(FOLDER.glob("*.toml"))}


def path_of(text: str) -> Path:
    """The file that `text` names: a path, or one of the suite's by `e3/full`, `e3_full` or `e3_full.toml`.

    A file that is there goes before a shipped one.
    """
    path = Path(text)
    if path.exists():
        return path
    stem = text.removesuffix(".toml").replace("e3_", "e3/", 1).replace("e3-", "e3/", 1)
    return shipped().get(stem, path)


def read_layers(text: str, later: Mapping[str, Any] | None = None) -> Translated:
    """Layers of the file that `text` names; see `translate` for `later`.

    Raises:
        ConfigError: it cannot be read, or one of the suite says something unknown or unfit.

    """
    tables = read_toml(path_of(text))
    if not is_e3(tables):
        return Translated((Layer(text, tables),), ())
    return translate(parse(tables, text), text, later)


def read_file(text: str) -> E3File:
    """The file of the suite that `text` names.

    Raises:
        ConfigError: it cannot be read, or says something unknown or unfit.

    """
    return parse(read_toml(path_of(text)), text)


def tables_of(layers: "tuple[Layer, ...] | list[Layer]") -> dict[str, dict[str, Any]]:
    """Values of all layers in one nested table, later ones winning; unchecked."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, table in layer.values.items():
            if isinstance(table, Mapping):
                found.setdefault(section, {}).update(table)
    return found
