"""Rows of `rnn-lab bench decode`: bytes per second of generation with carried state, the prompt excluded.

A step is one forward of the language model with T = 1, every layer from its state, and the likeliest byte becomes
the next input. Matrices of linear maps are held in the dtype of the autocast. Nothing waits for the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.bench.isolated import rows_of
from rnn_lab.bench.machine import ceilings, header
from rnn_lab.bench.rows import failure, free
from rnn_lab.bench.timing import Spread, captured, intervals, synchronise
from rnn_lab.config import ModelSection
from rnn_lab.layer import State
from rnn_lab.lm import LM
from rnn_lab.modelspec import ModelSpec, model_spec
from rnn_lab.registry import registry
from rnn_lab.train.device import autocast

PROMPT, WARM_UP = 64, 3


@dataclass(frozen=True)
class DecodeSetting:
    """Bytes to generate for how many sequences at once.

    `limit` is how many seconds a row may take in a process of its own; None: in this one.
    """

    batch_sizes: tuple[int, ...]
    tokens: int
    dtype: torch.dtype
    device: torch.device
    limit: float | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """Under a CUDA graph of one step and launched from Python; only the latter on the CPU."""
        return ("graph", "eager") if self.device.type == "cuda" else ("eager",)


def bench_decode(
    asked: Sequence[tuple[str, ModelSection]], setting: DecodeSetting, show: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """The page: header, ceilings, rows; see bench.train.bench_train."""
    page: dict[str, Any] = {
        "kind": "bench-decode",
        "header": header(setting.device),
        "setting": {"tokens": setting.tokens, "dtype": str(setting.dtype).removeprefix("torch.")},
        "ceilings": ceilings(setting.device),
        "rows": [],
    }
    for _, section in asked:
        model_spec(section, registry(), must_reach=False)  # what cannot be built is an error at once
    for row in rows_of(_rows, (list(asked), setting), setting.limit):
        page["rows"].append(row)
        show(page)
    return page


def _rows(
    asked: Sequence[tuple[str, ModelSection]], setting: DecodeSetting, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of all models, each announced first."""
    for label, section in asked:
        spec = model_spec(section, registry(), must_reach=False)
        for batch in setting.batch_sizes:
            for mode in setting.modes:
                row = {"model": label, "batch": batch, "mode": mode}
                if row not in done:
                    yield row
                    yield row | _row(spec, batch, mode, setting)


def _row(spec: ModelSpec, batch: int, mode: str, setting: DecodeSetting) -> dict[str, Any]:
    cls, cfg = spec.layer_cls, spec.layer_cfg
    if mode == "graph" and cls.state_shapes(cfg) != cls.state_shapes(cfg, 1):
        return {"status": "skipped", "reason": "its state grows with every byte: a graph needs fixed shapes"}
    try:
        return _measured(spec, batch, mode, setting)
    except Exception as error:
        return failure(error)
    finally:
        free()


def _measured(spec: ModelSpec, batch: int, mode: str, setting: DecodeSetting) -> dict[str, Any]:
    torch.manual_seed(42)
    model = spec.build().to(setting.device).eval()
    model.prepare()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # Autocast would read them in fp32 and cast them again for every byte.
            module.to(setting.dtype)
    step = decoder(model, batch, setting.dtype, graph=mode == "graph")
    for _ in range(WARM_UP):
        step()
    synchronise(setting.device)
    times = Spread.of(intervals([step], setting.tokens, setting.device))
    seq_len = PROMPT + WARM_UP + setting.tokens
    return {
        "status": "ok",
        "params": spec.certificate.params,
        "config": spec.table(),
        "ms": times.as_dict(),
        "tokens_per_s": 1e3 * batch / times.median,
        "state_bytes": batch * spec.lm_cfg.depth * spec.layer_cls.state_bytes(spec.layer_cfg, seq_len),
        "backends": [choice.as_dict() for choice in getattr(model.layers[0], "backends", {}).values()],
    }


def decoder(model: LM, batch: int, dtype: torch.dtype, *, graph: bool) -> Callable[[], object]:
    """A function that generates one byte for each of `batch` sequences, after a prompt that is read here."""
    device = model.embedding.weight.device
    prompt_BT = torch.randint(32, 127, (batch, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    carried: tuple[Tensor, list[State]] = _advance(model, prompt_BT, None, dtype)
    if not graph:

        def step() -> None:
            nonlocal carried
            carried = _advance(model, *carried, dtype)

        return step
    token_B1, states = carried
    token_B1 = token_B1.clone()
    states = [{name: t.clone() for name, t in state.items()} for state in states]

    def in_place() -> None:
        new_B1, after = _advance(model, token_B1, states, dtype)
        token_B1.copy_(new_B1)
        for state, changed in zip(states, after, strict=True):
            for name, tensor in state.items():
                tensor.copy_(changed[name])

    return captured([in_place]).replay


@torch.no_grad()
def _advance(
    model: LM, tokens_BT: Tensor, states: list[State] | None, dtype: torch.dtype
) -> tuple[Tensor, list[State]]:
    """The likeliest next byte `[B, 1]` and the states before it."""
    with autocast(tokens_BT.device, dtype):
        logits_BTV, states = model(tokens_BT, states)
    return logits_BTV[:, -1:].argmax(-1), states
