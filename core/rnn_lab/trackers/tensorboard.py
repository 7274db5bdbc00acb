"""TensorBoard scalars, hparams and a layout of charts, in the run's own folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from rnn_lab.config import RunConfig
from rnn_lab.trackers.tags import TAGS, scalars

METRICS = ("last100", "bpb", "val_loss", "val_bpb", "val_accuracy", "tokens_per_s")
FLUSH_SECONDS = 10
LAYOUT = {
    "Quality": {"last100": ["last100"], "loss": ["loss"], "validation loss": ["val_loss"]},
    "Speed": {"bytes per second": ["tokens_per_s"], "share of peak FLOPs": ["mfu"], "peak memory": ["memory_bytes"]},
    "Optimization": {
        "gradient norm": ["grad_norm"],
        "learning rate": ["lr"],
        "clipped": ["clip_fraction"],
        "update": ["update_rms"],
    },
}
"""Charts of the CUSTOM SCALARS tab, by category and title; TensorBoard merges the equal layouts of all runs."""
_OF_ONE_RUN = ("train.seed",)


class TensorBoardTracker:
    """Writes `events.*` files beside metrics.jsonl; steps after `first_step` of an earlier session are purged."""

    def __init__(self, run_dir: Path, cfg: RunConfig, first_step: int) -> None:
        self.run_dir = run_dir
        self.writer: Any = SummaryWriter(str(run_dir), purge_step=first_step, flush_secs=FLUSH_SECONDS)
        self.hparams = _flat(cfg)
        charts = {
            title: {name: ["Multiline", [TAGS[key] for key in keys]] for name, keys in category.items()}
            for title, category in LAYOUT.items()
        }
        self.writer.add_custom_scalars(charts)

    def log(self, step: int, line: dict[str, Any]) -> None:
        """One point per figure that the line has, all in one event: an event for each costs ten times as much."""
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars(line).items()]
        self.writer._get_file_writer().add_summary(Summary(value=values), step)

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: a new file says so, as after a resume."""
        self.writer.close()
        self.writer = SummaryWriter(str(self.run_dir), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def close(self, result: dict[str, Any]) -> None:
        """The run's settings beside its final figures, in the HPARAMS tab; seeds are a group."""
        final = {f"final/{key}": result[key] for key in METRICS if result.get(key) is not None}
        shared = {key: value for key, value in self.hparams.items() if key not in _OF_ONE_RUN}
        experiment, start, end = hparams_summaries(shared, final)  # type: ignore[no-untyped-call]
        _set_group(start, group_name(self.hparams))
        # add_hparams would open a second writer in a sub-folder and show the run twice.
        file_writer = self.writer._get_file_writer()
        for summary in (experiment, start, end):
            file_writer.add_summary(summary)
        for tag, value in final.items():
            self.writer.add_scalar(tag, value, result["steps"])
        self.writer.close()


def group_name(hparams: dict[str, Any]) -> str:
    """Name that runs share which differ in nothing but their seed: the model, and a hash of the settings."""
    shared = {key: value for key, value in hparams.items() if key not in _OF_ONE_RUN}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    return f"{hparams.get('model.name', 'run')}-{digest[:8]}"


def _set_group(start: Any, name: str) -> None:
    """Name the session group in torch's summary of a session's start, which has no argument for it."""
    content = start.value[0].metadata.plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(content.content)
    data.session_start_info.group_name = name
    content.content = data.SerializeToString()


def _flat(cfg: RunConfig) -> dict[str, Any]:
    """Settings as `section.key`, in the types that the tab can show."""
    flat: dict[str, Any] = {}
    for section, table in cfg.model_dump(mode="json", exclude_none=True).items():
        if section == "model":
            table = {**{k: v for k, v in table.items() if k != "fields"}, **table["fields"]}
        for key, value in table.items():
            flat[f"{section}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
