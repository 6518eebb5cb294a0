"""What stands against shipping the model that the figures favour, and which labels would settle it."""

from collections.abc import Iterator, Mapping, Set
from typing import Any, TypedDict

from prefilter_common.evaluation.traffic.coverage import CROSSED
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


def differing(traffic: Mapping[str, Any] | None, names: Set[str]) -> list[dict[str, Any]]:
    """The pairs of these models that decide differently on the traffic, at the default operating point."""
    return [
        pair
        for pair in (traffic or {"pairs": []})["pairs"]
        if set(pair["models"]) <= names and pair["points"][DEFAULT]["differ"]
    ]


def objections_to(
    favourite: str,
    names: Set[str],
    assessed: Mapping[str, Mapping[str, Any]],
    comparison: Mapping[str, Any] | None,
    traffic: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    queues: Mapping[str, str],
) -> list[Objection]:
    """All of them; empty where the favourite may be shipped."""
    return [
        *_unexplained(favourite, names, assessed, comparison, traffic, audit, queues),
        *_not_covered(favourite, traffic, queues),
    ]


def _unexplained(
    favourite: str, names: Set[str], assessed: Mapping, comparison: Mapping | None, traffic: Mapping | None,
    audit: Mapping | None, queues: Mapping[str, str],
) -> Iterator[Objection]:  # fmt: skip
    for pair in differing(traffic, names):
        if favourite not in pair["models"]:
            continue
        (other,) = (name for name in pair["models"] if name != favourite)
        point = pair["points"][DEFAULT]
        part = point["worst_slice"]
        needed = min(DISPUTED_NEEDED, point["only_first"] + point["only_second"])
        if _labelled(audit, pair["models"]) >= needed:
            continue  # the audit has said which of the two is right
        worse = assessed[other]["tier"] == "none" or _worse(comparison, favourite, other)
        if worse and _is_covered(part, traffic):
            continue  # the labelled articles explain it
        fewer, more = sorted(pair["models"], key=lambda name: _rate(pair, point, part, name))
        where = f" in {part}" if part else ""
        suspect = (
            f"{point['verdict']}. Either {fewer} misses commerce{where} or {more} blocks journalism there; "
            "the labelled articles do not say which"
        )
        file = queues.get(favourite)
        remedy = (
            f'label at least {needed} of the articles marked "models disagree"{where} in {file or "a review queue"}, '
            f"then run the same command with --audited {file or 'FILE'}"
        )
        yield {"suspect": suspect, "remedy": remedy, "part": part, "to_label": needed, "file": file}


def _not_covered(favourite: str, traffic: Mapping | None, queues: Mapping[str, str]) -> Iterator[Objection]:
    if not traffic or traffic["uncovered_share"] <= MOST:
        return
    gaps = sorted((gap for gap in traffic["uncovered"] if gap["by"] == CROSSED), key=lambda gap: -gap["n_traffic"])
    largest, file = gaps[0], queues.get(favourite)
    named = "; ".join(
        f"{gap['to_label']} of {gap['value']} ({gap['traffic_share']:.0%} of the traffic)" for gap in gaps[:5]
    )
    yield {
        "suspect": f"{traffic['uncovered_share']:.0%} of the traffic is in languages and lengths that the labelled "
        f"articles do not cover; the largest part is {largest['value']}; the test set {largest['lacks']}",
        "remedy": f"label articles of both kinds: at least {named}; add them to the test set, or label them in "
        f"{file or 'a review queue'} and run the same command with --audited {file or 'FILE'}",
        "part": f"{largest['by']} {largest['value']}",
        "to_label": largest["to_label"],
        "file": file,
    }


def _labelled(audit: Mapping | None, names: list[str]) -> int:
    """How many labelled articles the two decide differently."""
    pairs = (audit or {"pairs": []})["pairs"]
    return next((pair["n_disputed"] for pair in pairs if set(pair["models"]) == set(names)), 0)


def _worse(comparison: Mapping | None, favourite: str, other: str) -> bool:
    """Whether the test set shows that the other is worse."""
    row = (comparison or {}).get("models", {}).get(other)
    return bool(row and comparison and comparison["best"] == favourite and row["best_is_better"])


def _is_covered(part: str | None, traffic: Mapping[str, Any] | None) -> bool:
    gaps = [f"{gap['by']} {gap['value']}" for gap in (traffic or {"uncovered": []})["uncovered"]]
    crossed = part is not None and part.startswith(CROSSED)
    return part not in gaps and not (crossed and any(gap.startswith(CROSSED) for gap in gaps))


def _rate(pair: Mapping, point: Mapping, part: str | None, name: str) -> float:
    """How much of the part, or of all, the named model flags."""
    row = next((row for row in point["slices"] if f"{row['by']} {row['value']}" == part), point)
    return row["rates"][pair["models"].index(name)]
