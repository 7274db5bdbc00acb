"""Curves in characters, for pages that have no pictures."""

from collections.abc import Sequence

from rnn_lab.report.facts import Curve

WIDTH, HEIGHT = 64, 14
MARKS = "ox+*#%@&=~^$"


def ascii_plot(curves: Sequence[Curve], unit: str) -> list[str]:
    """Lines of a chart of loss against the curves' axis; a sign per curve, explained below it.

    The start, far above, is cut off as in the pictures.
    """
    if not curves:
        return []
    settled = [value for curve in curves for value in curve.loss[len(curve.loss) // 6 :]]
    low, high = min(settled), max(settled)
    end = max(curve.at[-1] for curve in curves)
    if high <= low or end <= 0:
        return []
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, curve in zip(MARKS, curves, strict=False):
        for at, loss in zip(curve.at, curve.loss, strict=True):
            row = round((high - loss) / (high - low) * (HEIGHT - 1))
            if 0 <= row < HEIGHT:
                grid[row][min(WIDTH - 1, int(at / end * WIDTH))] = mark
    lines = [f"{high - (high - low) * i / (HEIGHT - 1):7.3f} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    lines.append(f"{'':7} +{'-' * WIDTH}")
    lines.append(f"{'':9}0{f'{end:,.4g} {unit}':>{WIDTH - 1}}")
    return [*lines, "  ".join(f"{mark} {curve.label}" for mark, curve in zip(MARKS, curves, strict=False))]
