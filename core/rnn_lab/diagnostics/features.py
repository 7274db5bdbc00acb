"""Rules about what a run was configured with: loader, memory, GaLore, Collider, 8-bit state."""

from rnn_lab.diagnostics.rule import Rule, Window

WAITS, BUSY = 0.10, 90.0
FULL = 0.90
ENERGY, STALE = 0.5, 0.6
SLOW = 0.05
SPARSE = (0.20, 0.50)
COARSE = 0.05


def _waiting(window: Window) -> str | None:
    if len(window.lines) < 50:
        return None
    waited, busy = window.mean("data_wait_frac", 50), window.mean("gpu_util", 50)
    told = "" if busy is None else f", the GPU was busy {busy:.0f} % of the time"
    if waited is not None and waited > WAITS:
        return f"{waited:.0%} of 50 steps passed waiting for batches{told}"
    if busy is not None and waited is not None and busy < BUSY and waited < WAITS / 10:
        return f"batches are there in time{told}: it waits for launches, and a loader will not help"
    return None


def _fed(window: Window) -> str:
    loader, train = window.facts.cfg.loader, window.facts.cfg.train
    if (window.mean("data_wait_frac", 50) or 0.0) > WAITS:
        workers = 8 if loader.workers < 8 else 2 * loader.workers
        return f"loader.workers = {workers}; loader.prefetch = {max(16, 2 * workers)}"
    return f'train.batch_size = {2 * train.batch_size}; train.graph = "on"'


def needed(window: Window) -> str:
    """`weights 0.2 GB, gradients 0.2 GB, ...`."""
    return ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in window.facts.needs.items())


def _tight(window: Window) -> str | None:
    """At the start by what is sure to be needed, at the end by what was."""
    facts, total = window.facts, sum(window.facts.needs.values())
    if facts.memory is None:
        return None
    if window.at == "start":
        if total <= FULL * facts.memory:
            return None
        return f"at least {total / 1e9:.2f} GB of {facts.memory / 1e9:.2f} GB will be needed: {needed(window)}"
    peak = window.line.get("memory_bytes")
    if peak is None or peak <= FULL * facts.memory:
        return None
    return f"the largest use was {peak / 1e9:.2f} GB of {facts.memory / 1e9:.2f} GB; of that, {needed(window)}"


def _smaller(window: Window) -> str:
    train = window.facts.cfg.train
    found = [f"train.grad_accum = {2 * train.grad_accum}"] if train.batch_size % (2 * train.grad_accum) == 0 else []
    found += [] if train.checkpoint_every is not None else ["train.checkpoint_every = 1"]
    return "; ".join(found or [f"train.batch_size = {max(1, train.batch_size // 2)}"])


def _weak_subspace(window: Window) -> str | None:
    fresh, stale = window.line.get("galore/energy"), window.line.get("galore/energy_stale")
    if fresh is None:
        return None
    if fresh < ENERGY:
        return f"a fresh subspace holds {fresh:.0%} of the gradient, less than {ENERGY:.0%}"
    if stale is not None and stale < STALE * fresh:
        return f"a subspace holds {fresh:.0%} of the gradient when fresh and {stale:.0%} before the next"
    return None


def _larger_subspace(window: Window) -> str:
    cfg, fresh, wider = window.facts.cfg.optimizer, window.line.get("galore/energy"), window.facts.wider
    often = f"optimizer.galore_update_freq = {max(1, cfg.galore_update_freq // 2)}"
    if wider is None or (fresh is not None and fresh >= ENERGY):
        return often
    return f"optimizer.galore_rank = {wider}; {often}"


def _saves_nothing(window: Window) -> str | None:
    share = window.facts.unsaved
    if share is None or share <= 0.5:
        return None
    return f"rank {window.facts.cfg.optimizer.galore_rank} saves nothing of {share:.0%} of Muon's parameters"


def _slow_refresh(window: Window) -> str | None:
    spent, step = window.line.get("galore/refresh_ms"), window.mean("step_ms", 100)
    cfg = window.facts.cfg.optimizer
    # Adaptive subspaces may be lost, and so refreshed, at every look, four times a period.
    every = max(1, cfg.galore_update_freq // 4) if cfg.galore_adaptive else cfg.galore_update_freq
    if spent is None or not step or spent / every <= SLOW * step:
        return None
    takes = "may take" if cfg.galore_adaptive else "takes"
    return f"refreshing subspaces {takes} {spent / every / step:.0%} of the step on average ({spent:.0f} ms each time)"


def _off_target(window: Window) -> str | None:
    found = [share for share in window.column("collider_sparsity", 20) if share > 0]
    if len(found) < 20 or SPARSE[0] <= sum(found) / 20 <= SPARSE[1]:
        return None
    return f"{sum(found) / 20:.0%} of the positions are filtered, outside of {SPARSE[0]:.0%} to {SPARSE[1]:.0%}"


def _exact(window: Window) -> str:
    compat = window.facts.cfg.objective.collider_mode == "compat"
    return 'objective.collider_mode = "topk"' if compat else "objective.collider_sparsity = 0.35"


def _no_gain(window: Window) -> str | None:
    if window.facts.backward is None:
        return None
    dense, filtered = window.facts.backward
    if filtered < dense:
        return None
    return f"backward of one product takes {filtered * 1e3:.3g} ms filtered and {dense * 1e3:.3g} ms dense"


def _coarse(window: Window) -> str | None:
    """Two readings in a row, which lie 100 steps apart or more."""
    if window.line.get("quant/rel_err_max") is None:
        return None
    found = [(line["step"], line.get("quant/rel_err_max")) for line in window.lines]
    read = [(step, error) for step, error in found if error is not None]
    last, worst = read[-1]
    before = [step for step, _ in read if step <= last - 100]
    if not before or any(error <= COARSE for step, error in read if step >= before[-1]):
        return None
    return f"8-bit momentum is off by {worst:.1%} in one matrix for 100 steps"


def _finer(window: Window) -> str:
    cfg = window.facts.cfg.optimizer
    if cfg.block_size > 128:
        return f'optimizer.block_size = {256 if cfg.block_size > 256 else 128}, or optimizer.quant = "dynamic"'
    return 'optimizer.quant = "dynamic"'


LOADER = Rule(
    "D-LOADER", "warning", f"more than {WAITS:.0%} of 50 steps waited for batches; or none did and the GPU was idle",
    _waiting, _fed, every=10,
)  # fmt: skip
OOM = Rule(
    "D-OOM", "warning", f"needs at least, or took, more than {FULL:.0%} of the device's memory; error where it ran out",
    _tight, _smaller, ("start", "end", "event"),
)  # fmt: skip
GALORE_RANK = Rule(
    "D-GALORE-RANK", "warning", f"median energy below {ENERGY} at a refresh, or stale below {STALE} of fresh",
    _weak_subspace, _larger_subspace,
)  # fmt: skip
GALORE_NOSAVE = Rule(
    "D-GALORE-NOSAVE", "warning", "rank of at least mn / (m + n) for more than half of Muon's parameters",
    _saves_nothing, 'optimizer.galore_rank = "auto", or optimizer.name = "muon"', ("start",),
)  # fmt: skip
GALORE_SLOW = Rule(
    "D-GALORE-SLOW", "warning", f"refreshes take more than {SLOW:.0%} of the step on average", _slow_refresh,
    lambda window: f"optimizer.galore_update_freq = {2 * window.facts.cfg.optimizer.galore_update_freq}",
)  # fmt: skip
COLLIDER = Rule(
    "D-COLLIDER", "warning", f"realised sparsity outside of {SPARSE[0]} to {SPARSE[1]}", _off_target, _exact, every=10
)
COLLIDER_NOGAIN = Rule(
    "D-COLLIDER-NOGAIN", "warning", "measured backward of a product not faster filtered than dense", _no_gain,
    "objective.use_collider = false", ("start",),
)  # fmt: skip
QUANT = Rule(
    "D-QUANT", "warning", f"largest relative error of 8-bit momentum above {COARSE} for 100 steps", _coarse, _finer
)
