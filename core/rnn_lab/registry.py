"""What is installed: models, presets, optimizers, protocols, trackers and commands, found through entry points.

Every plugin loads in isolation: one that raises, exits, hangs or needs a newer API becomes a row with a reason
in `rnn-lab plugins` and never takes the tool down. Nothing here imports torch or a model file: models are
references whose docstrings are read as text.

    RNN_LAB_LOAD_PLUGINS=a,b     load only these entry points (empty: none)
    RNN_LAB_STRICT_PLUGINS=1     re-raise what a plugin raises
    RNN_LAB_PLUGIN_TIMEOUT=60    seconds that loading one plugin may take
"""

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from rnn_lab import hookspecs
from rnn_lab.discovery.distributions import is_own
from rnn_lab.discovery.isolation import confined
from rnn_lab.discovery.modeldoc import ModelDoc, read_model_doc
from rnn_lab.errors import ConfigError, PluginError, did_you_mean
from rnn_lab.typed import Typed

if TYPE_CHECKING:
    from rnn_lab.layer import Layer
    from rnn_lab.presets import Preset

BUILTIN = "rnn_lab.discovery.builtin"


@dataclass(frozen=True)
class ModelRef:
    """A model that is known but not imported."""

    name: str
    family: str
    module: str
    path: Path
    doc: ModelDoc
    plugin: str = ""

    def load(self) -> "type[Layer]":
        """Import the model file and return its `Model` class.

        Raises:
            PluginError: the file does not import, or defines no `Model` with a `Config`.

        """
        try:
            with redirect_stdout(sys.stderr), confined(load_limit()):
                module = _import_file(self.module, self.path)
            model: type[Layer] = module.Model
            if not isinstance(model.Config, type):
                raise TypeError(f"Config is {model.Config!r}, not a class")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if _strict():
                raise
            raise PluginError(
                f"model {self.name!r} ({self.path}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        return model


@dataclass
class PluginInfo:
    """One entry point: what it is, what it brought, and what went wrong."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    seconds: float = 0.0
    models: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """`ok` or `error`."""
        return "error" if self.problems else "ok"


@dataclass
class Registry:
    """Everything that plugins contributed, by name."""

    models: dict[str, ModelRef] = field(default_factory=dict)
    aliases: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    optimizers: dict[str, str] = field(default_factory=dict)
    protocols: dict[str, Path] = field(default_factory=dict)
    trackers: dict[str, str] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)
    executors: dict[str, str] = field(default_factory=dict)
    preset_files: list[tuple[PluginInfo, Path]] = field(default_factory=list)
    presets: "dict[str, Preset] | None" = None
    """Read from their files by `rnn_lab.presets.all_presets`, once somebody asks."""
    plugins: list[PluginInfo] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(hookspecs.PROJECT))

    def find_model(self, name: str) -> tuple[ModelRef, dict[str, str]]:
        """The model called `name` (any case) and the fields that it sets when it is an alias.

        Raises:
            ConfigError: no such model; names the nearest ones.

        """
        key = name if name in self.models or name in self.aliases else name.lower()
        if key in self.models:
            return self.models[key], {}
        if key in self.aliases:
            model, fields = self.aliases[key]
            return self.models[model], {key: Typed(text) for key, text in fields.items()}
        known = [*self.models, *self.aliases]
        raise ConfigError(
            f"unknown model {name!r}.{did_you_mean(key, known)} See `rnn-lab list-models`."
            + (" A single-file model needs its --plugins-dir." if self.models else " No plugin is loaded.")
        )

    def load(self, kind: str, name: str) -> Any:
        """Object registered as `name` under `kind` (`optimizers`, `trackers`, ...), imported now.

        Raises:
            ConfigError: no such name.
            PluginError: its module does not import.

        """
        table: dict[str, str] = getattr(self, kind)
        if name not in table:
            raise ConfigError(
                f"unknown {kind[:-1]} {name!r}.{did_you_mean(name, list(table))} Known: {', '.join(table)}."
            )
        module, _, attribute = table[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{kind[:-1]} {name!r} ({table[name]}) cannot be loaded: {error}") from error


def models_in(package: str) -> list[ModelRef | PluginError]:
    """Every model file of an imported package: `*.py` not starting with an underscore.

    A file that cannot be read as a model stands as its error, so that it does not hide its neighbours.
    """
    return _refs(Path(str(sys.modules[package].__file__)).parent, package.removeprefix("rnn_lab_"), f"{package}.")


def _refs(folder: Path, family: str, prefix: str) -> list[ModelRef | PluginError]:
    refs: list[ModelRef | PluginError] = []
    for path in _model_files(folder):
        try:
            refs.append(ModelRef(path.stem, family, prefix + path.stem, path, read_model_doc(path)))
        except PluginError as error:
            refs.append(error)
    return refs


def presets_in(package: str) -> list[Path]:
    """Every preset file of an imported package: `presets/*.toml`."""
    return sorted((Path(str(sys.modules[package].__file__)).parent / "presets").glob("*.toml"))


@cache
def registry() -> Registry:
    """The registry of this process; built once."""
    folder = os.environ.get("RNN_LAB_PLUGINS_DIR")
    return build_registry(Path(folder) if folder else None)


def build_registry(plugins_dir: Path | None = None) -> Registry:
    """Load every selected entry point, then the single-file models of `plugins_dir`."""
    found = Registry()
    found.manager.add_hookspecs(hookspecs)
    _load_plugin(found, PluginInfo("builtin", BUILTIN, "rnn-lab-core"), lambda: importlib.import_module(BUILTIN))
    for info, load in sorted(_entry_points(), key=lambda entry: _precedence(entry[0])):
        _load_plugin(found, info, load)
    if plugins_dir is not None:
        _load_folder(found, plugins_dir)
    return found


def _entry_points() -> Iterator[tuple[PluginInfo, Callable[[], ModuleType]]]:
    """The row of every selected entry point, and what loads it."""
    selected = os.environ.get("RNN_LAB_LOAD_PLUGINS")
    for point in metadata.entry_points(group=hookspecs.PROJECT):
        if selected is None or point.name in selected.split(","):
            # Once: each look at it reads and parses the distribution's METADATA again.
            about = point.dist.metadata if point.dist else {"Name": "", "Version": ""}
            yield PluginInfo(point.name, point.value, about["Name"], about["Version"]), point.load


def _precedence(info: PluginInfo) -> tuple[bool, str]:
    """The lab's own plugins first: where two register one name, it stays with the first."""
    return not is_own(info.distribution), info.name


def _load_folder(found: Registry, folder: Path) -> None:
    """Add the single-file models of a plain folder; a file that is not one does not hide the others."""
    if not folder.is_dir():
        raise ConfigError(f"--plugins-dir {folder}: no such folder")
    info = PluginInfo(str(folder), "(folder)")
    with isolated(info):
        _add_models(found, info, _refs(folder, folder.name, "rnn_lab_folder_"))
    found.plugins.append(info)


def _load_plugin(found: Registry, info: PluginInfo, load: Callable[[], ModuleType]) -> None:
    began = time.perf_counter()
    found.plugins.append(info)
    limit = load_limit()
    with isolated(info), confined(limit), redirect_stdout(sys.stderr):
        module = load()
        needs = getattr(module, "PLUGIN_API", hookspecs.PLUGIN_API)
        if not isinstance(needs, int):
            raise PluginError(f"plugin {info.name!r}: PLUGIN_API is {needs!r}, not a number")
        if needs > hookspecs.PLUGIN_API:
            raise PluginError(
                f"plugin {info.name!r} needs plugin API {needs}, this rnn-lab has {hookspecs.PLUGIN_API}: "
                "upgrade rnn-lab, or install an older version of the plugin"
            )
        found.manager.register(module, name=info.name)
        _collect(found, info, module)
    info.seconds = time.perf_counter() - began


def _collect(found: Registry, info: PluginInfo, module: ModuleType) -> None:
    """Call the hooks of one plugin; what it registers is kept only if the whole hook succeeds."""
    others = [plugin for plugin in found.manager.get_plugins() if plugin is not module]
    info.hooks = [caller.name for caller in found.manager.get_hookcallers(module) or []]
    tables: dict[str, dict[str, Any]] = {
        "register_optimizers": found.optimizers,
        "register_protocols": found.protocols,
        "register_trackers": found.trackers,
        "register_diagnostics": found.diagnostics,
        "register_executors": found.executors,
    }
    for hook in info.hooks:
        caller = found.manager.subset_hook_caller(hook, others)
        if hook == "register_models":
            models: list[ModelRef | PluginError] = []
            caller(register=lambda new, into=models: into.extend(new if isinstance(new, list | tuple) else [new]))
            _add_models(found, info, models)
        elif hook == "register_presets":
            files: list[Path] = []
            caller(register=lambda new, into=files: into.extend([new] if isinstance(new, Path) else new))
            found.preset_files += [(info, path) for path in files]
        elif hook in tables:
            entries: dict[str, Any] = {}
            caller(register=entries.__setitem__)
            _add_entries(tables[hook], entries, info, hook)


def _add_models(found: Registry, info: PluginInfo, models: Iterable[ModelRef | PluginError]) -> None:
    for model in models:
        if isinstance(model, PluginError):
            if _strict():
                raise model
            info.problems.append(str(model))
            continue
        if not _is_ref(model):
            info.problems.append(f"register_models: {model!r:.80} is not what models_in(__name__) gives")
            continue
        taken = {
            **{key: ref.plugin for key, ref in found.models.items()},
            **{key: f"an alias of {m}" for key, (m, _) in found.aliases.items()},
        }
        if model.name in taken:
            info.problems.append(
                f"model {model.name!r} is already registered by {taken[model.name]}: rename one of them"
            )
            continue
        found.models[model.name] = ModelRef(model.name, model.family, model.module, model.path, model.doc, info.name)
        info.models.append(model.name)
        for alias, fields in model.doc.aliases.items():
            if alias in found.models or alias in found.aliases:
                info.problems.append(f"alias {alias!r} of {model.name!r} is already taken")
            else:
                found.aliases[alias] = (model.name, fields)


def _add_entries(table: dict[str, Any], entries: dict[str, Any], info: PluginInfo, hook: str) -> None:
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, str | Path):
            info.problems.append(f"{hook}: {name!r} = {value!r:.60}: expected a name and 'module:attribute' or a path")
        elif name in table:
            info.problems.append(f"{hook}: {name!r} is already registered")
        else:
            table[name] = value


@contextmanager
def isolated(info: PluginInfo) -> Iterator[None]:
    """Turn whatever a plugin raises into a problem of its row, unless strict mode asks to see it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if _strict():
            raise
        info.problems.append(str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}")


def _is_ref(model: object) -> bool:
    return (
        isinstance(model, ModelRef)
        and all(isinstance(text, str) for text in (model.name, model.family, model.module))
        and isinstance(model.path, Path)
        and isinstance(model.doc, ModelDoc)
    )


def load_limit() -> float:
    """Seconds that loading foreign code may take: by default what a cold import of torch takes on a slow disk.

    Raises:
        ConfigError: RNN_LAB_PLUGIN_TIMEOUT is no number.
    """
    text = os.environ.get("RNN_LAB_PLUGIN_TIMEOUT", "60")
    try:
        return max(0.1, float(text))
    except ValueError as error:
        raise ConfigError(f"RNN_LAB_PLUGIN_TIMEOUT={text!r}: expected seconds") from error


def _strict() -> bool:
    return os.environ.get("RNN_LAB_STRICT_PLUGINS", "") not in ("", "0")


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def _import_file(name: str, path: Path) -> ModuleType:
    if not name.startswith("rnn_lab_folder_"):
        return importlib.import_module(name)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
