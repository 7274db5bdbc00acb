"""`[objective]`, `[schedule]`, `[loader]`, `[parallel]` and `[diagnostics]`.

What is back-propagated, the rate over the run, who reads batches, how several processes share a run, and what a run is
looked at for. At their defaults they change nothing. docs/objectives.md has the formulas and what to expect of them,
docs/scale.md the processes, docs/diagnostics.md the rules.
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rnn_lab.strict import StrictModel

MAX_HORIZON = 16
"""Bytes behind a window that every sampler keeps free: data.corpus.HORIZON."""
SMALLEST_GAIN = 1024
"""Width below which gathering rows was measured to cost more than the products that it saves, on a CPU."""


class ObjectiveSection(StrictModel):
    """`[objective]`: what is back-propagated. The metric `loss` stays next-byte cross-entropy over all bytes."""

    use_mtp: bool = Field(False, description="multi-token prediction: also predict bytes further ahead")
    mtp_n_tokens: int = Field(4, ge=1, le=MAX_HORIZON, description="bytes predicted from a position, the next included")
    mtp_weight: float = Field(0.2, ge=0, le=10, description="weight of all horizons but the first")
    mtp_decay: float = Field(0.5, gt=0, le=1, description="factor from one horizon's weight to the next")
    mtp_normalize: bool = Field(False, description="divide by the sum of the horizons' weights before mtp_weight")
    mtp_variant: Literal["linear", "layer", "sequential", "shared"] = Field(
        "linear", description="a matrix, a block or a chain of blocks per horizon, or the main head's own logits"
    )
    mtp_match_params: bool = Field(False, description="layer, sequential: a trunk shorter by the heads' blocks")
    use_collider: bool = Field(False, description="Collider: backward through a part of the positions only")
    collider_mode: Literal["topk", "compat"] = Field(
        "topk", description="exactly so many per sequence; compat: the seed's rule, which filters far more"
    )
    collider_sparsity: float = Field(0.35, ge=0, lt=1, description="share of the positions that is filtered")
    collider_threshold: float = Field(0.3, ge=0, le=1, description="compat only: least normalised loss that is kept")
    collider_scorer: Literal["loss", "excess", "random"] = Field(
        "loss", description="what is kept: high loss, high loss above a reference model's, or any"
    )
    collider_reference: str | None = Field(None, min_length=1, description="excess: folder of the reference's run")
    collider_recurrent: Literal["full", "kept"] = Field(
        "full", description="recurrent matrices learn from every step, or from kept positions alone"
    )
    collider_start_step: int | None = Field(
        None, ge=0, description="steps before the filter begins; default: those of the warm-up"
    )
    collider_min_dim: int = Field(SMALLEST_GAIN, ge=0, description="models narrower than this are not filtered")
    entropy_weight: float = Field(0.0, ge=0, le=1, description="reward of the predictions' entropy in nats")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all bytes")

    @model_validator(mode="after")
    def _fits(self) -> "ObjectiveSection":
        if self.use_collider and (self.collider_scorer == "excess") != (self.collider_reference is not None):
            raise ValueError("collider_scorer = excess and collider_reference = RUN need each other")
        if self.use_collider and self.collider_mode == "compat" and self.collider_scorer != "loss":
            raise ValueError("collider_mode = compat is the seed's rule, which knows collider_scorer = loss only")
        if self.use_mtp and self.mtp_match_params and self.mtp_variant not in ("layer", "sequential"):
            raise ValueError(
                f"mtp_match_params takes blocks from the trunk, and mtp_variant = {self.mtp_variant} has none"
            )
        return self

    @property
    def horizons(self) -> int:
        """Bytes predicted from a position."""
        return self.mtp_n_tokens if self.use_mtp else 1

    @property
    def plain(self) -> bool:
        """Whether what is back-propagated is the loss itself."""
        return not self.use_mtp and not self.use_collider and self.entropy_weight == 0 and self.label_smoothing == 0


class ScheduleSection(StrictModel):
    """`[schedule]`: the learning rate over the run, as a factor of `optimizer.lr`."""

    type: Literal["none", "constant", "cosine", "wsd"] = Field(
        "none", description="none: left to the optimizer; constant, cosine or warm-up, stable, decay"
    )
    warmup: float = Field(0.0, ge=0, le=10**9, description="steps of linear warm-up; below 1 a share of the budget")
    stable_ratio: float = Field(0.8, ge=0, le=1, description="wsd: share of the budget after which the rate decays")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="factor at the end of cosine and wsd")

    @field_validator("warmup")
    @classmethod
    def _whole(cls, warmup: float) -> float:
        if warmup >= 1 and warmup != int(warmup):
            raise ValueError("from 1 on these are steps, which are whole")
        return warmup

    @model_validator(mode="after")
    def _used(self) -> "ScheduleSection":
        if self.type == "none" and self.warmup:
            raise ValueError("type = none leaves the warm-up to optimizer.warmup_steps: set that, or another type")
        return self


class LoaderSection(StrictModel):
    """`[loader]`: who reads the batches. They are the same whoever reads them."""

    workers: int = Field(0, ge=0, le=256, description="threads that read batches ahead; 0: read when needed")
    prefetch: int = Field(8, ge=1, le=10**4, description="batches that threads read ahead")


class ParallelSection(StrictModel):
    """`[parallel]`: how the processes of one run share it; nothing where there is one. It may change on resume."""

    mode: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: the whole model on each; fsdp: a share of every block, for models that do not fit"
    )
    timeout: float = Field(
        600.0, gt=0, le=10**6, description="seconds after which a process that does not answer ends the run"
    )


class DiagnosticsSection(StrictModel):
    """`[diagnostics]`: what a run is looked at for while it trains."""

    strict: bool = Field(False, description="a diagnostic of severity error ends the run, with exit code 5")
    every: int = Field(100, ge=1, le=10**6, description="steps between figures that wait for the device")
    ignore: tuple[str, ...] = Field((), description="ids of diagnostics that are left out")
    gpu_seconds: float = Field(
        0.2, ge=0, le=3600, description="seconds between samples of the GPU's load, by nvidia-ml-py; 0: none"
    )
