"""Figures in words: seconds, percent, and the plain sentences that open a report.

Why: a page is believed where it also says who loses. The sentences are made from the duels, so that no one has to
write, or may forget, "and here the student loses".

Usage: ``headline = say(views, scores, budgets, problems=100); headline.title``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thinkfast.report.duels import METRICS, Accuracies, Duel, Metric, against, winners
from thinkfast.report.systemrun import SystemRecord
from thinkfast.report.views import View

Tone = Literal["win", "loss", "even"]
# Systems on a quiet machine keep it equally busy within 2 %; one program beside one of them takes a third or more.
_ALIKE = 0.85
_UNEVEN = 1.2  # systems of one shape that work alike differ by up to a tenth
_WORKED = 5.0  # seconds: less says little
NAMES: dict[Metric, str] = {"coverage": "coverage", "majority": "majority accuracy"}


@dataclass(frozen=True, slots=True)
class Point:
    """A student (its name in the log) against its teacher: the sentence, one without names, and the figures."""

    system: str
    metric: Metric
    tone: Tone
    text: str
    short: str
    figures: str


@dataclass(frozen=True, slots=True)
class Headline:
    """The sentence at the top, what it is measured on, one point per student and metric, and what puts all of it in
    doubt, if anything does.
    """

    title: str
    basis: str
    points: tuple[Point, ...]
    warning: str = ""


def percent(share: float) -> str:
    """0.876 as "87.6 %"; whole where nothing is lost by it."""
    value = f"{100 * share:.1f}"
    return f"{value.removesuffix('.0')} %"


def points(difference: float) -> str:
    """A difference of shares in signed percentage points, as "+3.1" or "−0.4"."""
    value = f"{100 * difference:+.1f}"
    return value.replace("-", "−")


def seconds_text(seconds: float) -> str:
    """Seconds as people write them: "0.25 s", "12 s", "3.5 min"."""
    if seconds >= 120:
        return f"{seconds / 60:.3g} min"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def say(views: Sequence[View], scores: Accuracies, budgets: Sequence[float], problems: int) -> Headline:
    """The opening of the report, from comparisons at `budgets` (may be empty: then there is little to say)."""
    label = {view.name: view.label for view in views}
    basis, warning = _basis(views, problems), _disturbed(views) or _uneven(views)
    if not budgets:
        return Headline("No system finished a chain, so there is nothing to compare.", basis, (), warning)
    last = winners(scores, budgets)[-1]
    title = _title(views, scores, last, label, budgets[-1], problems)
    teacher = next((view for view in views if view.is_teacher), None)
    said = [
        _student(against(scores, metric, view.name, teacher.name, budgets), label)
        for view in views
        if teacher is not None and not view.is_teacher
        for metric in METRICS
    ]
    return Headline(title, basis, tuple(said), warning)


def _basis(views: Sequence[View], problems: int) -> str:
    chains = sum(len(view.rows) for view in views)
    systems = f"{len(views)} systems, one after another on the same machine" if len(views) > 1 else "One system"
    return (
        f"{systems}; {problems} problem{'s' * (problems != 1)}, {chains:,} chains. Seconds are wall clock for the "
        "whole set, with prefill, sampling and checking, without loading the model."
    )


def _disturbed(views: Sequence[View]) -> str:
    """Which systems had less of the machine than another, because something else ran beside them."""
    known = [(view.label, view.record.processors or 0.0, view.record.idle) for view in views]
    free, most = max(((had, label) for label, had, _ in known), default=(0.0, ""))
    # A system that leaves processors idle could have had them: it needs no more.
    less = [
        f"{label} had {had:.1f} of the processors"
        for label, had, idle in known
        if idle is not None and 0 < had < _ALIKE * free and idle < (free - had) / 2
    ]
    if not less:
        return ""
    return (
        f"Something else was running: {', '.join(less)} and {most} {free:.1f}, so their seconds do not compare. Run it "
        "again on a quiet machine, into a new folder."
    )


def _uneven(views: Sequence[View]) -> str:
    """Which systems of one shape were not equally fast, because the machine was not."""
    shapes: dict[tuple[str, int, str], list[View]] = {}
    for view in views:
        shapes.setdefault((view.family, view.record.parameters, view.record.ended), []).append(view)
    for same in shapes.values():
        slow, fast = (pick(same, key=lambda view: view.record.tokens_per_second) for pick in (min, max))
        faster = fast.record.tokens_per_second > _UNEVEN * slow.record.tokens_per_second
        if faster and _worked_alike(fast.record, slow.record):
            return (
                f"{fast.label} and {slow.label} are of one shape and made {fast.record.tokens_per_second:,.0f} and "
                f"{slow.record.tokens_per_second:,.0f} tokens/s: the machine was not equally fast all the time, and "
                "leads at a budget may come of that. Run it again on a quiet machine, into a new folder."
            )
    return ""


def _worked_alike(one: SystemRecord, other: SystemRecord) -> bool:
    """Whether two runs were long, and of chains and prompts whose lengths are within a tenth of each other's."""
    if min(one.wall_seconds, other.wall_seconds) < _WORKED or min(one.samples, other.samples) == 0:
        return False
    each = [(r.generated_tokens / r.samples, r.prompt_tokens / r.samples) for r in (one, other)]
    return all(max(pair) <= 1.1 * min(pair) for pair in zip(*each, strict=True))


def _title(
    views: Sequence[View],
    scores: Accuracies,
    last: dict[Metric, Duel | None],
    label: dict[str, str],
    seconds: float,
    problems: int,
) -> str:
    within = f"Within {seconds_text(seconds)} for {problems} problem{'s' * (problems != 1)}"
    if len(views) == 1:
        only = views[0].name
        cover, vote = (percent(float(scores[metric][only].value[-1])) for metric in METRICS)
        return f"{within}, {label[only]} covers {cover} and answers {vote} right by majority vote."
    cover_duel, vote_duel = last["coverage"], last["majority"]
    if cover_duel is None or vote_duel is None:
        which = cover_duel or vote_duel
        if which is None:
            return f"{within}, no system has a right answer."
        return f"{within}, only coverage is above zero: {label[which.a]} has {percent(which.a_value)}."
    cover, vote = percent(cover_duel.a_value), percent(vote_duel.a_value)
    if cover_duel.lead == 0 and vote_duel.lead == 0:
        return f"{within}, the leaders are level: {cover} covered, {vote} right by majority vote."
    if cover_duel.lead == 0:
        return (
            f"{within}, the leaders cover equally much ({cover}), and {label[vote_duel.a]} answers most right by "
            f"majority vote ({vote}{_doubt(vote_duel)})."
        )
    if cover_duel.a == vote_duel.a:
        both = "" if cover_duel.clear and vote_duel.clear else "; the leads are within noise"
        if cover_duel.clear != vote_duel.clear:
            both = f"; the lead in {'majority' if cover_duel.clear else 'coverage'} is within noise"
        return f"{within}, {label[cover_duel.a]} is ahead on both counts: {cover} covered, {vote} right by vote{both}."
    return (
        f"{within}, {label[cover_duel.a]} covers most problems ({cover}{_doubt(cover_duel)}), and "
        f"{label[vote_duel.a]} answers most right by majority vote ({vote}{_doubt(vote_duel)})."
    )


def _doubt(duel: Duel) -> str:
    return "" if duel.clear else ", level" if duel.lead == 0 else ", a lead within noise"


def _student(duels: Sequence[Duel], label: dict[str, str]) -> Point:
    """What a student's duels with the teacher come to, losses not left out."""
    end = duels[-1]
    student, teacher, name = label[end.a], label[end.b], NAMES[end.metric]
    won = [duel for duel in duels if duel.clear and duel.lead > 0]
    lost = [duel for duel in duels if duel.clear and duel.lead < 0]
    shown = [max(some, key=lambda duel: abs(duel.lead)) for some in (won, lost) if some]
    wins, losses = _span(won, duels), _span(lost, duels)
    if won and lost:
        text = f"{student} beats {teacher} in {name} at {wins}, and loses to it at {losses}"
        short = f"{name}: ahead at {wins}, behind at {losses}"
    elif won:
        text, short = f"{student} beats {teacher} in {name} at {wins}", f"{name}: ahead at {wins}"
    elif lost:
        text, short = f"{student} loses to {teacher} in {name} at {losses}", f"{name}: behind at {losses}"
    else:
        text = f"{student} and {teacher} cannot be told apart in {name} at any budget"
        short = f"{name}: no clear difference at any budget"
    shown += [end] if end not in shown else []
    tone: Tone = "even" if bool(won) == bool(lost) else "win" if won else "loss"
    return Point(
        end.a, end.metric, tone, f"{text}.", f"{short[0].upper()}{short[1:]}.", "; ".join(map(_figures, shown))
    )


def _figures(duel: Duel) -> str:
    text = f"at {seconds_text(duel.seconds)}: {percent(duel.a_value)} against {percent(duel.b_value)}"
    if duel.low is None or duel.high is None or duel.low == duel.high:
        return text
    return f"{text}, {points(duel.lead)} points [{points(duel.low)} to {points(duel.high)}]"


def _span(some: Sequence[Duel], duels: Sequence[Duel]) -> str:
    """Budgets in words: "every budget", "budgets of 2 s to 10 s", "5 s and 20 s"."""
    if not some:
        return ""
    if len(some) == len(duels) > 1:
        return "every budget compared"
    places = [duels.index(duel) for duel in some]
    if len(places) > 2 and places[-1] - places[0] == len(places) - 1:
        if places[-1] == len(duels) - 1:
            return f"budgets from {seconds_text(some[0].seconds)} up"
        return f"budgets of {seconds_text(some[0].seconds)} to {seconds_text(some[-1].seconds)}"
    shown = [seconds_text(duel.seconds) for duel in some]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
