"""What a model file says about itself, read from its docstring without importing it.

A model file opens with its equation on the first line, then a summary and the mathematics, then sections that
start in the first column: `Parent`, `Parameters`, `Aliases`, `Source`. An alias line reads
`61b: form = additive` and names the fields that it sets.
"""

import ast
import inspect
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

from rnn_lab.errors import PluginError

_SECTION = re.compile(r"^(Parent|Parameters|Aliases|Source)\b[ \t]*(.*)$")


@dataclass(frozen=True)
class ModelDoc:
    """Docstring of a model file, split into its parts."""

    equation: str
    text: str
    parent: str = ""
    parameters: str = ""
    source: str = ""
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)


def read_model_doc(path: Path) -> ModelDoc:
    """Parse the module docstring of the file at `path`; what is wrong below it shows when the model loads.

    Raises:
        PluginError: the file cannot be read, or does not open with a docstring.

    """
    try:
        text = _docstring(path)
    except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        raise PluginError(f"{path}: not a readable model file: {error}") from error
    if not text:
        raise PluginError(f"{path}: a model file opens with a docstring whose first line is its equation")
    return parse_model_doc(text)


def _docstring(path: Path) -> str:
    """The docstring at the head of a file; the rest, most of the file, is not parsed for it."""
    strings: list[str] = []
    with path.open(encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.STRING:
                strings.append(token.string)
            elif token.type not in (tokenize.COMMENT, tokenize.NL):
                break
    text = ast.literal_eval(" ".join(strings)) if strings else ""
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def parse_model_doc(text: str) -> ModelDoc:
    """Split a model docstring (already dedented) into equation, text and sections."""
    lines = text.strip().splitlines()
    sections: dict[str, list[str]] = {}
    body: list[str] = []
    current: list[str] = body
    for line in lines[1:]:
        match = _SECTION.match(line)
        if match:
            current = sections.setdefault(match[1], [])
            line = match[2]
        elif current is not body and line[:1].strip():
            current = body
        current.append(line.strip() if current is not body else line)
    joined = {name: " ".join(part for part in parts if part) for name, parts in sections.items()}
    return ModelDoc(
        equation=lines[0].strip(),
        text="\n".join(body).strip(),
        parent=joined.get("Parent", ""),
        parameters=joined.get("Parameters", ""),
        source=joined.get("Source", ""),
        aliases=_aliases(sections.get("Aliases", [])),
    )


def _aliases(lines: list[str]) -> dict[str, dict[str, str]]:
    """`61b: form = additive, tanh = true` on each line -> {"61b": {"form": "additive", "tanh": "true"}}."""
    aliases: dict[str, dict[str, str]] = {}
    for line in filter(None, lines):
        names, _, settings = line.partition(":")
        fields = dict(part.split("=", 1) for part in settings.split(",") if "=" in part)
        for name in names.split(","):
            aliases[name.strip()] = {key.strip(): value.strip().strip('"') for key, value in fields.items()}
    return aliases
