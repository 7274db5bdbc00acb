"""What a person has to know of many verdicts, in few lines; `compare --json` has every pair's own notes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnn_lab.comparison.compare import Comparison, Group
    from rnn_lab.comparison.ranking import AxisVerdicts, Judgement

SHOWN = 4


def reversals(judgement: "Judgement") -> Iterator[str]:
    """A line for each pair whose order was shown to change with what is held equal, one for all others."""
    unsure = [row for row in judgement.reversals if not row.decided]
    for row in judgement.reversals:
        if row.decided or len(unsure) <= SHOWN:
            yield (
                f"rank reversal: {row.a} ahead at equal {', '.join(row.a_ahead)}; "
                f"{row.b} at equal {', '.join(row.b_ahead)}{'' if row.decided else ' (not both shown)'}"
            )
    if len(unsure) > SHOWN:
        yield f"rank reversals, not both shown: {few([f'{row.a} and {row.b}' for row in unsure])}"


def notes(judgement: "Judgement") -> Iterator[str]:
    """One line per model that lost runs, one per budget, one per kind of anything else."""
    yield from lost(judgement.groups)
    for one in judgement.axes:
        if one.short:
            yield f"at equal {one.axis} too few steps for the window, so nothing is judged of {', '.join(one.short)}"
        yield from _dependent(one)
        yield from _doubts(one)
    yield from _of_pairs(judgement)
    by_what: dict[str, list[str]] = {}
    for label, found in judgement.confounds.items():
        if found:
            listed = ", ".join(f"{item.key} ({item.a} and {item.b})" for item in found)
            by_what.setdefault(listed, []).append(label)
    for listed, labels in by_what.items():
        verb = "differs" if len(labels) == 1 else "differ"
        yield f"{', '.join(labels)} also {verb} from {judgement.groups[0].label} in {listed}"


def few(texts: Sequence[str]) -> str:
    """All of a few texts, or the first of many and how many more."""
    shown = texts if len(texts) <= SHOWN else [*texts[: SHOWN - 1], f"{len(texts) - SHOWN + 1} more"]
    return ", ".join(shown)


def lost(groups: "Iterable[Group]") -> Iterator[str]:
    """A line or two for each group that has runs which are not judged, or did not end."""
    for group in groups:
        yield from _lost(group)


def _lost(group: "Group") -> Iterator[str]:
    """What became of the runs of a model that did not end well."""
    lost = ", ".join(f"{run.name} {run.fate}" for run in group.lost)
    if lost and group.judged:
        yield f"{group.label} is judged without {lost}"
    elif lost:
        yield f"{group.label} cannot be judged: {lost}"
    short = [run for run in group.judged if run.status != "ok"]
    if short:
        yield f"{group.label}: {', '.join(f'{run.name} did not end ({run.status})' for run in short)}"


def _dependent(one: "AxisVerdicts") -> Iterator[str]:
    """Pairs whose steps are worth too few independent ones."""
    weak = [pair for pair in one.pairs if pair.verdict == "inconclusive" and pair.n_eff is not None]
    if weak:
        worth = [f"{_about(pair)} (worth {pair.n_eff:.1f})" for pair in weak]
        yield (
            f"at equal {one.axis} too few independent steps for {few(worth)}: take a longer window (--window), or seeds"
        )


def _doubts(one: "AxisVerdicts") -> Iterator[str]:
    """What is wrong with clocks and seeds, each reason once."""
    texts = dict.fromkeys(text for pair in one.pairs for text in pair.notes)
    yield from (text for text in texts if text.startswith("at equal seconds "))
    alike = [pair for pair in one.pairs if any(text.startswith("the seeds agree") for text in pair.notes)]
    if alike:
        at = "by validation loss" if one.budget is None else f"at equal {one.axis}"
        which = few([_about(pair) for pair in alike])
        yield f"{at} nothing is shown for {which}: {next(text for text in texts if text.startswith('the seeds agree'))}"


def _of_pairs(judgement: "Judgement") -> Iterator[str]:
    """Seeds that were left out, and what pairs were compared in spite of."""
    said: dict[str, dict[str, list[str]]] = {}
    for one in judgement.axes:
        for pair in one.pairs:
            for what, text in _told(pair):
                axes = said.setdefault(what, {}).setdefault(text, [])
                if one.axis not in axes:
                    axes.append(one.axis)
    for what, texts in said.items():
        axes = list(dict.fromkeys(axis for some in texts.values() for axis in some))
        yield f"{what}{few(list(texts))} [{', '.join(axes)}]"


def _told(pair: "Comparison") -> Iterable[tuple[str, str]]:
    """What a pair's note is about, and the note."""
    left_out = [text for text in pair.notes if text.endswith("left out")]
    yield from (("left out, without a partner: ", text.partition(" has no")[0]) for text in left_out)
    for item in pair.told:
        if item.topic == "pairing":
            yield f"in spite of {item.key}: ", _about(pair)
        else:
            yield f"in spite of {item.key}: ", f"{_about(pair)} ({item.a} and {item.b})"


def _about(pair: "Comparison") -> str:
    return f"{pair.subject} against {pair.baseline}"
