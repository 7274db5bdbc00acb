"""The generated blocks of e3.md: the suite's files, their keys, its optimizers' state, and a recorded report."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rnn_lab.config import Layer, resolve
from rnn_lab.e3.files import read_file, read_layers
from rnn_lab.e3.schema import ALIASES, WITHOUT_EFFECT, HardwareKeys, ModelKeys, TrainingKeys
from rnn_lab.e3.suite import ABLATIONS, CONFIGS
from rnn_lab.modelspec import model_spec
from rnn_lab.optim.memory_model import memory_table
from rnn_lab.registry import registry

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]
SIZES = ("50M", "100M", "500M")


def files_block(table: Table) -> str:
    """Every shipped file: what it is called in reports, and what it turns on."""
    rows = []
    for stem, label in {**CONFIGS, **ABLATIONS}.items():
        t = read_file(f"e3/{stem}").training
        collider = f"s = {t.collider_sparsity}, by {t.collider_scorer}" if t.use_collider else "-"
        rows.append((
            f"`e3/{stem}`", label, f"n = {t.mtp_n_tokens}, w = {t.mtp_weight}" if t.use_mtp else "-", collider,
            f"{t.num_workers} / {t.prefetch_batches}" if t.use_async_loader else "-", t.optimizer_type,
            "yes" if t.use_8bit_optim else "-",
            f"r = {t.galore_rank}, every {t.galore_update_freq}" if t.use_galore else "-",
            "yes" if t.gradient_checkpointing else "-",
        ))  # fmt: skip
    headers = ("file", "in reports", "MTP", "Collider", "async", "optimizer", "8 bits", "GaLore", "checkpointing")
    return table(headers, rows)


def keys_block(table: Table, fields: Callable[..., Iterable[Sequence[object]]]) -> str:
    """Keys of the three sections, with their other names."""
    parts = []
    for name, schema in (("model", ModelKeys), ("training", TrainingKeys), ("hardware", HardwareKeys)):
        known = [row for row in fields(schema) if str(row[0]).strip("`") not in WITHOUT_EFFECT]
        parts.append(f"### [{name}]\n\n{table(('key', 'type', 'default', 'range', 'meaning'), known)}")
    other = ", ".join(f"`{alias}` for `{key}`" for names in ALIASES.values() for alias, key in names.items())
    idle = ", ".join(f"`{key}`" for key in WITHOUT_EFFECT)
    return "\n".join([*parts, f"Other names: {other}. Read and without effect: {idle}.\n"])


def state_block(table: Table) -> str:
    """Reductions of optimizer state of e61 at three sizes, counted on the meta device."""
    rows = []
    for target in SIZES:
        for stem in ("muon_8bit", "galore2", "full"):
            own = {"model": {"target": target}}
            layers = [*read_layers(f"e3/{stem}", own).layers, Layer("docs", own)]
            cfg = resolve(layers).config
            spec = model_spec(cfg.model, registry())
            with torch.device("meta"):
                page = memory_table(spec.build(), cfg.optimizer)
            state = page["configured"]["state"]
            shares = (f"{state['vs_muon']:.1%}", f"{state['vs_adamw']:.1%}")
            rows.append((target, spec.layer_cfg.dim, spec.lm_cfg.depth, CONFIGS[stem], f"{state['bytes']:,}", *shares))
    headers = (
        "target",
        "dim",
        "depth",
        "configuration",
        "state, bytes",
        "less than Muon, fp32",
        "less than AdamW, fp32",
    )
    return table(headers, rows)


def report_block(page: Path, table: Table) -> str:
    """Verdicts, then losses, speed and memory, from the e3.json of a report."""
    found = json.loads(page.read_text())
    claims = [[claim[key] for key in ("id", "claim", "baseline", "measured", "verdict")] for claim in found["claims"]]
    rows = []
    for row in found["rows"]:
        delta, state = row["delta"], row["state"]
        reduction = (f"{1 - state['bytes'] / state['reference_bytes'][name]:.1%}" for name in ("muon", "adamw"))
        rows.append((
            row["label"], f"{row['steps']['value']:,.0f}", f"{row['last']['value']:.4f} ± {row['last']['sd']:.4f}",
            f"{row['val']['value']:.4f}", f"{delta['value']:+.4f}" if delta else "–", f"{row['speed']['value']:,.0f}",
            f"{row['busy']['value']:.0f}%", f"{state['bytes']:,}", *reduction, f"{row['peak']['value'] / 1e9:.2f} GB",
        ))  # fmt: skip
    headers = (
        "configuration", "steps", "last100, nats", "validation", "Δ at equal steps", "bytes/s", "GPU busy",
        "state, bytes", "less than Muon, fp32", "less than AdamW, fp32", "peak",
    )  # fmt: skip
    verdicts = table(("id", "claim", "against", "measured", "verdict"), claims)
    where = f"{found['about']['begun']}, {found['environment']['gpu']}, torch {found['environment']['torch']}"
    return f"{where}; {found['about']['protocol']}; {found['about']['data']}.\n\n{verdicts}\n\n{table(headers, rows)}"
