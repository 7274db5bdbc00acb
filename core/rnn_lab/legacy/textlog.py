"""Text logs of two trainers: `ladder` (several runs under `=== name ===`) and `train` (one run per file).

    Step   1000 | Loss 1.6347 | PPL 5.1 | LR 3.00e-04 | Grad 2.20 | Tok/s 45,305 | Mem 765MB | Elapsed 361.6s
    step     10 | loss 5.7059 | lr 2.70e-06 | grad 17.62 | tok/s 24084

Neither says over how many steps a printed loss was averaged.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rnn_lab.legacy.found import FoundRun, Point, Source, log_error, number, whole

_X = r"([-+]?(?:[0-9][0-9,]*\.?[0-9]*(?:e[-+]?[0-9]+)?|nan|inf))"
_N = r"([0-9][0-9,]*)"


@dataclass(frozen=True)
class Kind:
    """A kind of line: `start` recognises it, `whole` reads it; without `whole` it holds no figure."""

    name: str
    start: str
    whole: str | None = None
    keys: tuple[str, ...] = ()


_SHARED = (
    Kind("blank", r"\s*$"),
    Kind("saved checkpoint", r"\s*>>> [Ss]aved"),
    Kind("traceback", r"Traceback \(most recent call last\)"),
    Kind("error", r"[\w.]*(?:Error|Exception)\b", r"([\w.]*(?:Error|Exception)\b.*)", ("error",)),
)
FORMATS: dict[str, tuple[Kind, ...]] = {
    "ladder": (
        Kind("section", r"=== ", r"=== (.+?) ===", ("label",)),
        Kind("step", r"Step\s", rf"Step\s+{_N} \| Loss {_X} \| PPL {_X} \| LR {_X} \| Grad {_X} \| Tok/s {_X} "
             rf"\| Mem {_X}MB \| Elapsed {_X}s",
             ("step", "loss", "", "lr", "grad_norm", "tokens_per_s", "memory_mb", "seconds")),
        Kind("model", r"Created ", rf"Created (?:Level )?(\S+) model: dim={_N}, depth={_N}(?:, expand={_X})?, "
             rf"params={_N}", ("model", "dim", "depth", "expansion", "params")),
        Kind("parameters", r"(?:Model )?Parameters:", rf"(?:Model )?Parameters: {_N} \(.*\)", ("params",)),
        Kind("final loss", r"Final loss:", rf"Final loss: {_X}", ("final_loss",)),
        Kind("total tokens", r"Total tokens:", rf"Total tokens: {_N}", ("tokens",)),
        Kind("total time", r"Total time:", rf"Total time: {_X}s", ("total_seconds",)),
        Kind("settings", r"Steps:", rf"Steps: {_N}, Batch: {_N}, Chunk: {_N}",
             ("planned_steps", "batch_size", "seq_len")),
        Kind("date", r"Date:", r"Date: (.+)", ("date",)),
        Kind("device", r"Device:", r"Device: (\S+), dtype: (?:torch\.)?(\w+), world_size: ([0-9]+)",
             ("device", "dtype", "world_size")),
        Kind("optimizer", r"Using \w+ optimizer", r"Using (\w+) optimizer", ("optimizer",)),
        Kind("data", r"Loading data from ", r"Loading data from (.+?)\.\.\.", ("data",)),
        Kind("end", r"Training Complete!", r"Training Complete!"),
        Kind("list of models", r"  Level \S+: "),
        Kind("title", r"Elman Ablation Ladder|E4 Benchmark Results"),
        Kind("tokenizer", r"Tokenizer: "),
        Kind("breakdown", r"  (?:Embedding|Layers|Layer 0): "),
        Kind("rule", r"[=-]{3,}\s*$"),
        *_SHARED,
    ),
    "train": (
        Kind("step", r"step\s", rf"step\s+{_N} \| loss {_X} \| lr {_X} \| grad {_X} \| tok/s {_X}",
             ("step", "loss", "lr", "grad_norm", "tokens_per_s")),
        Kind("model", r"Model: ", rf"Model: (?:Level )?(\S+), {_N} parameters", ("model", "params")),
        Kind("settings", r"Batch size:", rf"Batch size: {_N}, Chunk size: {_N}", ("batch_size", "seq_len")),
        Kind("accumulation", r"Gradient accumulation:", rf"Gradient accumulation: {_N}, Effective batch: {_N}",
             ("grad_accum", "effective_batch")),
        Kind("minutes", r"Time-based training:", rf"Time-based training: {_X} minutes", ("minutes",)),
        Kind("device", r"Using device:", r"Using device: (\S+)", ("device",)),
        Kind("validation", r"\s*>>> validation loss", rf"\s*>>> validation loss: {_X}", ("validation_loss",)),
        Kind("end", r"Training complete!", rf"Training complete! Final step: {_N}", ("steps",)),
        Kind("final loss", r"FINAL_LOSS_LAST100:", rf"FINAL_LOSS_LAST100: {_X}", ("FINAL_LOSS_LAST100",)),
        Kind("peak memory", r"PEAK_MEMORY_MB:", rf"PEAK_MEMORY_MB: {_X}", ("memory_mb",)),
        Kind("output folder", r"Output directory: "),
        Kind("recurrence mode", r"Auto r_h_mode: "),
        Kind("start", r"Starting training from step "),
        *_SHARED,
    ),
}  # fmt: skip
_FIGURES = ("final_loss", "validation_loss", "FINAL_LOSS_LAST100")
_WHOLE = ("step", "dim", "depth", "params", "tokens", "steps", "planned_steps", "batch_size", "seq_len", "grad_accum",
          "effective_batch", "world_size")  # fmt: skip
_TEXT = ("label", "model", "date", "device", "dtype", "optimizer", "data", "error")
_OF_STEP = ("lr", "grad_norm", "tokens_per_s", "seconds")


def recognise(lines: list[str]) -> str | None:
    """Name of the format whose step lines `lines` hold; None for neither."""
    for name, kinds in FORMATS.items():
        step = next(kind for kind in kinds if kind.name == "step")
        if any(re.match(step.start + r"*[0-9]", line) for line in lines):
            return name
    return None


def read_log(path: Path, lines: list[str], name: str) -> Source:
    """Every run of a text log in the format `name`.

    What stands before the first section belongs to all runs.

    Raises:
        LogError: a line begins like one of the format's and is something else, steps go backwards, or two lines of
            one run disagree.
    """
    source = Source(path, name)
    shared: dict[str, object] = {}
    run: FoundRun | None = None if name == "ladder" else FoundRun(path.stem, 1, max(1, len(lines)))
    if run is not None:
        source.runs.append(run)
    for at, line in enumerate(lines, 1):
        kind = next((kind for kind in FORMATS[name] if re.match(kind.start, line)), None)
        if kind is None or kind.whole is None:
            source.ignore("unknown" if kind is None else kind.name, at)
            continue
        match = re.fullmatch(kind.whole, line.rstrip())
        if match is None:
            raise log_error(
                path, at, f"begins like a line of kind `{kind.name}` and does not read like one: {line!r:.90}"
            )
        values = _values(path, at, kind, match)
        if kind.name == "section":
            run = FoundRun(str(values["label"]), at, at, stated=dict(shared))
            source.runs.append(run)
        elif run is None:
            shared.update(values)
        else:
            run.last = max(run.last, at)
            _take(path, at, run, kind.name, values)
    return source


def _values(path: Path, at: int, kind: Kind, match: "re.Match[str]") -> dict[str, object]:
    """Groups of a line by key, as numbers where they are numbers."""
    values: dict[str, object] = {}
    for key, text in zip(kind.keys, match.groups(), strict=True):
        if not key or text is None:
            continue
        try:
            values[key] = text if key in _TEXT else whole(text) if key in _WHOLE else number(text)
        except ValueError as error:
            raise log_error(path, at, f"{key} = {text!r} is no number") from error
    if "memory_mb" in values:
        values["peak_memory_bytes"] = round(float(str(values.pop("memory_mb"))) * 2**20)
    return values


def _take(path: Path, at: int, run: FoundRun, kind: str, values: dict[str, object]) -> None:
    """Add a line's values to its run."""
    if kind == "end":
        run.complete = True
    if kind == "step":
        step, loss = int(str(values.pop("step"))), float(str(values.pop("loss")))
        if run.points and step <= run.points[-1].step:
            raise log_error(path, at, f"step {step} after step {run.points[-1].step} (line {run.points[-1].line})")
        of_step = {key: float(str(values[key])) for key in _OF_STEP if key in values}
        run.points.append(Point(step, loss, at, of_step))
        run.stated.update({key: values[key] for key in ("peak_memory_bytes", "tokens_per_s") if key in values})
        run.stated["tokens_per_s_is"] = f"as printed with the loss in line {at}"
        return
    for key, value in values.items():
        if key in _FIGURES:
            run.figures[key] = (float(str(value)), at)
        elif key == "error":
            run.error = str(value)
        elif key in ("params", "dim", "depth", "tokens") and run.stated.get(key, value) != value:
            raise log_error(path, at, f"{key} = {value}, but an earlier line of {run.label} says {run.stated[key]}")
        else:
            run.stated[key] = value
