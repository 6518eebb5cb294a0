"""The content of ``evaluation_results.json``, as the page and the summary read it."""

from typing import TypedDict

from prefilter_common.evaluation.baseline import BaselineRow
from prefilter_common.evaluation.choice.rules import Choice
from prefilter_common.evaluation.leakage import IntegritySection
from prefilter_common.evaluation.production import ProductionSection
from prefilter_common.evaluation.run import ErrorRow, ModelRow
from prefilter_common.evaluation.sections import WrongArticle
from prefilter_common.evaluation.traffic.audit import AuditSection
from prefilter_common.evaluation.traffic.section import TrafficSection
from prefilter_common.runinfo import RunInfo
from prefilter_common.splits.manifest import ManifestRecord
from prefilter_common.statistics.comparison import Comparison
from prefilter_common.statistics.prevalence import Costs


class Settings(TypedDict):
    """What the figures were computed for; ``output`` is the folder of the results."""

    target_precision: float
    prevalence: list[float]
    costs: Costs | None
    seed: int
    output: str


class TestArticles(TypedDict):
    """How many there are."""

    n_articles: int
    n_commerce: int


class Sections(TypedDict):
    """What the choice follows from; ``models`` is in memory only, each row is in the file under its model's name."""

    _settings: Settings
    _test: TestArticles
    _baseline: BaselineRow | None
    _comparison: Comparison
    _integrity: IntegritySection | None
    _traffic: TrafficSection | None
    _production: ProductionSection
    _audit: AuditSection | None
    _warnings: list[str]
    _worst_errors: dict[str, list[WrongArticle]]
    models: dict[str, ModelRow | ErrorRow]


class Compared(Sections):
    """Everything that was computed."""

    _choice: Choice


class Results(Compared):
    """That, and where it comes from."""

    _run: RunInfo
    _manifest: ManifestRecord | None
