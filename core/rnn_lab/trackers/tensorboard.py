"""TensorBoard scalars and hparams, in the run's own folder."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from rnn_lab.config import RunConfig

TAGS = {
    "loss": "train/loss_nats",
    "last100": "train/last100_nats",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/model_flops_utilisation",
    "memory_bytes": "speed/peak_memory_bytes",
    "val_loss": "val/loss_nats",
    "val_bpb": "val/bits_per_byte",
    "bpb": "train/bits_per_byte",
    "tokens": "train/tokens",
    "flops": "train/flops",
}
METRICS = ("last100", "bpb", "val_loss", "val_bpb", "tokens_per_s")


class TensorBoardTracker:
    """Writes `events.*` files beside metrics.jsonl; steps after `first_step` of an earlier session are purged."""

    def __init__(self, run_dir: Path, cfg: RunConfig, first_step: int) -> None:
        self.writer: Any = SummaryWriter(str(run_dir), purge_step=first_step)
        self.hparams = _flat(cfg)

    def log(self, step: int, line: dict[str, Any]) -> None:
        """One point per figure that the line has."""
        for key, tag in TAGS.items():
            if line.get(key) is not None:
                self.writer.add_scalar(tag, line[key], step)

    def close(self, result: dict[str, Any]) -> None:
        """The run's settings beside its final figures, in the HPARAMS tab."""
        final = {f"final/{key}": result[key] for key in METRICS if result.get(key) is not None}
        summaries: Any = hparams_summaries(self.hparams, final)  # type: ignore[no-untyped-call]
        # add_hparams would open a second writer in a sub-folder and show the run twice.
        file_writer = self.writer._get_file_writer()
        for summary in summaries:
            file_writer.add_summary(summary)
        for tag, value in final.items():
            self.writer.add_scalar(tag, value, result["steps"])
        self.writer.close()


def _flat(cfg: RunConfig) -> dict[str, Any]:
    """Settings as `section.key`, in the types that the tab can show."""
    flat: dict[str, Any] = {}
    for section, table in cfg.model_dump(mode="json", exclude_none=True).items():
        if section == "model":
            table = {**{k: v for k, v in table.items() if k != "fields"}, **table["fields"]}
        for key, value in table.items():
            flat[f"{section}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
