"""What stands against shipping the model that the figures favour, and which labels would settle it."""

from collections.abc import Iterator, Mapping, Set
from pathlib import PurePath
from typing import TypedDict

from prefilter_common.evaluation.choice.figures import Assessment, measure_name
from prefilter_common.evaluation.slices import CROSSED
from prefilter_common.evaluation.traffic.audit import AuditSection, PairAudit
from prefilter_common.evaluation.traffic.rows import FlagRow, PointComparison, TrafficPair
from prefilter_common.evaluation.traffic.section import TrafficSection
from prefilter_common.statistics.comparison import Comparison
from prefilter_common.statistics.operating_points import DEFAULT

# Disputed articles to label: if one of two models is right about four of five, as many show it with a power of 80 %.
DISPUTED_NEEDED = 20
# With a larger share of the traffic in parts that the labelled articles do not cover, their figures decide nothing.
MOST = 0.5


class Objection(TypedDict):
    """Why the favourite cannot be selected yet: the ``suspect``, and the ``remedy`` that would settle it.

    ``to_label`` articles of ``part``, from the ``file`` of a review queue (None without one).
    """

    suspect: str
    remedy: str
    part: str | None
    to_label: int
    file: str | None


def differing(traffic: TrafficSection | None, names: Set[str]) -> list[TrafficPair]:
    """The pairs of these models that decide differently on the traffic, at the default operating point."""
    return [
        pair
        for pair in (traffic["pairs"] if traffic else ())
        if set(pair["models"]) <= names and pair["points"][DEFAULT]["differ"]
    ]


def objections_to(
    favourite: str,
    names: Set[str],
    assessed: Mapping[str, Assessment],
    comparison: Comparison | None,
    traffic: TrafficSection | None,
    audit: AuditSection | None,
    queues: Mapping[str, str],
) -> list[Objection]:
    """All of them; empty where the favourite may be shipped."""
    return [
        *_not_compared(favourite, {name for name in names if assessed[name]["tier"] != "none"}, traffic),
        *_unexplained(favourite, names, assessed, comparison, traffic, audit, queues),
        *_not_covered(favourite, traffic, audit, queues),
    ]


def _not_compared(favourite: str, names: Set[str], traffic: TrafficSection | None) -> Iterator[Objection]:
    if not traffic:
        return
    compared = {name for pair in traffic["pairs"] if favourite in pair["models"] for name in pair["models"]}
    if others := sorted(names - compared - {favourite}):
        yield {
            "suspect": f"{favourite} was not compared with {', '.join(others)} on the traffic",
            "remedy": "leave out --traffic-models, or evaluate only the models in question with --models",
            "part": None,
            "to_label": 0,
            "file": None,
        }


def _unexplained(
    favourite: str, names: Set[str], assessed: Mapping[str, Assessment], comparison: Comparison | None,
    traffic: TrafficSection | None, audit: AuditSection | None, queues: Mapping[str, str],
) -> Iterator[Objection]:  # fmt: skip
    for pair in differing(traffic, names):
        if favourite not in pair["models"]:
            continue
        (other,) = (name for name in pair["models"] if name != favourite)
        point = pair["points"][DEFAULT]
        part = point["worst_slice"]
        row = _row_of(point, part)
        needed = min(DISPUTED_NEEDED, row["only_first"] + row["only_second"])
        labelled = _labelled(audit, pair["models"])
        better, n_labelled = labelled and labelled["better"], _in_part(labelled, part)
        # Either the labels show that the favourite is right more often, or there are enough of them where the two
        # differ most, and neither is shown to be: then the figures decide.
        if better == favourite or (better is None and n_labelled >= needed):
            continue
        worse = assessed[other]["tier"] == "none" or _worse(comparison, favourite, other)
        if better is None and worse and _is_covered(part, traffic):
            continue  # the labelled articles explain it
        file = queues.get(favourite)
        where = f" in {part}" if part else ""
        if better == other:
            misses = ", ".join(measure_name(key) for key in assessed[other]["misses"]["minimum"])
            suspect = f"{point['verdict']}, and according to the labelled articles {other} is right more often"
            suspect += f", though it misses the minimum for {misses}" if misses else ""
            remedy = "add the labelled articles to the training articles, and train both models again"
        else:
            fewer, more = sorted(pair["models"], key=lambda name: row["rates"][pair["models"].index(name)])
            suspect = (
                f"{point['verdict']}. Either {fewer} misses commerce{where} or {more} blocks journalism there; "
                "the labelled articles do not say which"
            )
            source = f'articles marked "models disagree"{where} in {file or "a review queue"}'
            remedy = (
                f"label at least {needed - n_labelled} {'more ' if n_labelled else ''}of the {source}; {_then(file)}"
            )
        to_label = max(needed - n_labelled, 0)
        yield {"suspect": suspect, "remedy": remedy, "part": part, "to_label": to_label, "file": file}


def _not_covered(
    favourite: str, traffic: TrafficSection | None, audit: AuditSection | None, queues: Mapping[str, str]
) -> Iterator[Objection]:
    if not traffic or traffic["uncovered_share"] <= MOST:
        return
    audited = audit["models"].get(favourite) if audit and audit["of_traffic"] else None
    if audited and audited["enough"]:
        return  # a random sample of the whole traffic was labelled, whatever the test set lacks
    gaps = sorted((gap for gap in traffic["uncovered"] if gap["by"] == CROSSED), key=lambda gap: -gap["n_traffic"])
    file = queues.get(favourite)
    named = "; ".join(
        f"{gap['to_label']} of {gap['value']} ({gap['traffic_share']:.0%} of the traffic)" for gap in gaps[:5]
    )
    suspect = (
        f"{traffic['uncovered_share']:.0%} of the traffic is in languages and lengths that the labelled articles do "
        "not cover; "
    )
    if gaps:
        suspect += f"the largest part is {gaps[0]['value']}; the labelled articles {gaps[0]['lacks']}"
    else:
        suspect += "each of them is less than 1% of it"
    add = f"add articles of both labels to the test set, at least {named}; or " if gaps else ""
    yield {
        "suspect": suspect,
        "remedy": f"{add}label all articles that --audit draws, or all of {file or 'a review queue'}; {_then(file)}",
        "part": f"{CROSSED} {gaps[0]['value']}" if gaps else None,
        "to_label": gaps[0]["to_label"] if gaps else 0,
        "file": file,
    }


def _then(file: str | None) -> str:
    """How to give the labels back: the same command replaces the files of its own output folder."""
    name = PurePath(file).name if file else "FILE"
    return f"move the labelled file out of the results folder, and run the same command with --audited {name}"


def _labelled(audit: AuditSection | None, names: list[str]) -> PairAudit | None:
    """What the labelled articles say of the two."""
    return next((pair for pair in audit["pairs"] if set(pair["models"]) == set(names)), None) if audit else None


def _in_part(labelled: PairAudit | None, part: str | None) -> int:
    """How many of the labelled articles that the two decide differently are in a part, or in all."""
    if labelled is None:
        return 0
    return labelled["n_disputed"] if part is None else labelled["disputed_by_slice"].get(part, 0)


def _worse(comparison: Comparison | None, favourite: str, other: str) -> bool:
    """Whether the test set shows that the other is worse."""
    row = comparison["models"].get(other) if comparison and comparison["best"] == favourite else None
    return row is not None and row["best_is_better"]


def _is_covered(part: str | None, traffic: TrafficSection | None) -> bool:
    gaps = [f"{gap['by']} {gap['value']}" for gap in (traffic["uncovered"] if traffic else ())]
    crossed = part is not None and part.startswith(CROSSED)
    return part not in gaps and not (crossed and any(gap.startswith(CROSSED) for gap in gaps))


def _row_of(point: PointComparison, part: str | None) -> FlagRow:
    """Flag rates and differing decisions of the part, or of all."""
    return next((row for row in point["slices"] if f"{row['by']} {row['value']}" == part), point)
