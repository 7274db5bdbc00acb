"""Published figures beside ours, and how far the two rankings agree."""

import math
from collections.abc import Sequence
from itertools import combinations

from rnn_lab.comparison.records import ExternalRow
from rnn_lab.report.contestants import Contestant
from rnn_lab.report.facts import Agreement, Published, Standing

FIELLER = "Kendall tau-b, p exact; from 6 pairs on tanh(atanh(tau) ± 1.96 sqrt(0.437 / (n − 4))), Fieller et al. 1957"


def published(
    rows: Sequence[ExternalRow], field: Sequence[Contestant], standings: Sequence[Standing]
) -> tuple[Published, ...]:
    """Every published row; ours beside it where it names one of our runs, or a preset that one of them came from."""
    ours = {standing.label: standing for standing in standings}
    presets = {one.result("preset"): one.label for one in field if one.result("preset")}
    found = []
    for row in rows:
        label = row.run if row.run in ours else None
        label = label or presets.get(row.preset) or (row.label if row.label in ours else None)
        mine = ours.get(label) if label else None
        found.append(
            Published(
                label=row.label,
                document=row.document,
                run=label,
                loss=row.nats,
                our_loss=mine.loss if mine else None,
                tokens_per_s=row.tokens_per_s,
                our_tokens_per_s=mine.tokens_per_s.value if mine and mine.tokens_per_s else None,
                params=row.params,
                our_params=mine.params if mine else None,
                preset=row.preset,
                caveat=row.caveat and " ".join(row.caveat.split()),
                history=row.history and " ".join(row.history.split()),
            )
        )
    return tuple(found)


def agreements(rows: Sequence[Published]) -> tuple[Agreement, ...]:
    """Rank correlation per document, of losses and of throughputs; each run of ours counts once per document."""
    found = []
    for document in dict.fromkeys(row.document for row in rows):
        of = {row.run: row for row in reversed(rows) if row.document == document and row.run is not None}
        losses = [(str(r.run), r.loss, r.our_loss.value) for r in of.values() if r.loss is not None and r.our_loss]
        rates = [
            (str(r.run), r.tokens_per_s, r.our_tokens_per_s)
            for r in of.values()
            if r.tokens_per_s is not None and r.our_tokens_per_s is not None
        ]
        for name, pairs in (("loss", losses), ("tokens per second", rates)):
            if len(pairs) >= 2:
                found.append(agreement(document, name, sorted(pairs)))
    return tuple(found)


def agreement(document: str, of: str, pairs: Sequence[tuple[str, float, float]]) -> Agreement:
    """Kendall's tau-b of (label, theirs, ours), two-sided p, and a 95 % interval from six pairs on.

    The variance 0.437 / (n - 4) of atanh(tau) is from Fieller, Hartley and Pearson, Biometrika 44 (1957) 470.
    """
    from scipy.stats import kendalltau

    n = len(pairs)
    measured = kendalltau([theirs for _, theirs, _ in pairs], [mine for _, _, mine in pairs])
    tau = None if math.isnan(measured.statistic) else float(measured.statistic)
    low = high = None
    if tau is not None and n >= 6:
        # At tau = 1 atanh has no value: half a discordant pair is the least that this many pairs can tell apart.
        most = 1 - 1 / (n * (n - 1) / 2)
        middle, half = math.atanh(min(max(tau, -most), most)), 1.959964 * math.sqrt(0.437 / (n - 4))
        low, high = math.tanh(middle - half), max(math.tanh(middle + half), tau)
        low = min(low, tau)
    swapped = tuple(
        f"{a} and {b}"
        for (a, their_a, our_a), (b, their_b, our_b) in combinations(pairs, 2)
        if (their_a - their_b) * (our_a - our_b) < 0
    )
    p = None if tau is None else float(measured.pvalue)
    return Agreement(document, of, n, tau, low, high, p, FIELLER, swapped)
