"""Scored articles in, train, val and test out, with every article of existing splits where it was."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from prefilter_common.articles import COMMERCE, JOURNALISM, LABEL_NAMES, Article
from prefilter_common.errors import InputError
from prefilter_common.files import write_text
from prefilter_common.outputs import require_files
from prefilter_common.runinfo import file_fingerprint
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.cleaning import (
    ID,
    INVALID,
    LABEL,
    MIDDLE,
    NO_SCORE,
    NO_TEXT,
    REPEATED,
    Row,
    ScoreRule,
    all_articles,
    canonical,
    json_lines,
    kept_articles,
    read_rows,
    text_hash,
    to_json,
)
from prefilter_common.splits.grouping import divide, in_order
from prefilter_common.splits.manifest import (
    BuildSettings,
    Manifest,
    check_folder,
    discarded_by_reason,
    file_hashes,
    made_by,
    repaired_by_kind,
    write_folder,
)

log = logging.getLogger(__name__)

LINKS_SPLITS = "same text as articles in different splits"
MAX_LOGGED = 10


@dataclass(frozen=True)
class BuildOptions:
    """The options of ``build``; articles of the splits in the folder ``previous`` keep their split."""

    inputs: tuple[Path, ...]
    output: Path
    rule: ScoreRule = field(default_factory=ScoreRule)
    keep_middle: Path | None = None
    group_by: str | None = None
    test_after: date | None = None
    previous: Path | None = None
    seed: int = 42
    overwrite: bool = False


def build(options: BuildOptions, argv: Sequence[str] = ()) -> Manifest:
    """Read, label, split and write. Returns the manifest. Raises InputError before anything is written."""
    check_options(options)
    source = options.previous or options.output
    source_hashes = file_hashes(source)
    previous = read_previous(source, required=options.previous is not None)
    answers = {text_hash(a): a.label for a, _ in previous if a.commerce_score is None and a.label is not None}
    rows = drop_repeated(label_rows(read_rows(options.inputs), options.rule, answers))
    log_discarded(rows)
    places, articles = kept_articles(rows)
    if not articles:
        reasons = ", ".join(f"{n:,} × {reason}" for reason, n in discarded_by_reason(rows, 0).items())
        raise InputError(f"no row has both text and a score that decides its label: {reasons}")
    log.info(f"{len(articles)} of {len(rows)} rows have text and a label; looking for duplicates")
    division = divide(articles, previous, options.seed, options.group_by, options.test_after)
    rows = with_own_ids(rows, before=[article for article, _ in previous])
    articles = kept_articles(rows)[1]
    for place in division.dropped:
        rows[places[place]] = rows[places[place]].discard(LINKS_SPLITS)
    if gone := division.previous["not_in_input"]:
        log.warning(
            f"{gone} articles of the previous splits are missing from the input, and so from the new splits; "
            "articles that were added with merge have to be merged again"
        )
    order = in_order(articles, options.seed)
    chosen = {name: [articles[i] for i in order if division.splits[i] == split] for split, name in enumerate(NAMES)}
    check_splits(chosen)
    written = sum(map(len, chosen.values()))
    manifest: Manifest = {
        **made_by(argv),
        "inputs": [file_fingerprint(path) for path in options.inputs],
        "settings": describe_settings(options),
        "input_rows": len(rows),
        "written_rows": written,
        "discarded_rows": discarded_by_reason(rows, written),
        "repaired_rows": repaired_by_kind(rows),
        "clusters": division.clusters,
        "previous": division.previous,
    }
    contents = {name: (json_lines(part), part) for name, part in chosen.items()}
    manifest = write_folder(options.output, options.overwrite, contents, manifest, rows, source, source_hashes)
    if options.keep_middle:
        write_middle(options.keep_middle, rows, options.output)
    return manifest


def check_options(options: BuildOptions) -> None:
    """Raise InputError for problems that show before the input is read."""
    check_folder(options.output, options.overwrite, options.inputs)
    if (middle := options.keep_middle) is None:
        return
    for folder in (options.output, options.previous):
        if folder and middle.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{middle}: --keep-middle must be outside {folder}, which may contain only the splits")
    require_files(middle)
    if not middle.exists():
        return
    if any(path.exists() and path.samefile(middle) for path in options.inputs):
        raise InputError(f"{middle}: --keep-middle is one of the inputs, which would be lost; name another file")
    if not options.overwrite:
        raise InputError(f"{middle}: already exists; pass --overwrite to replace it, or name another file")


def write_middle(path: Path, rows: Sequence[Row], output: Path) -> None:
    """Write the articles with a score in the middle. An error says that the splits in ``output`` are complete."""
    try:
        write_text(path, "".join(to_json(row.article) for row in rows if row.article and row.reason == MIDDLE))
    except BaseException as error:
        error.add_note(f"{output} is complete, but {path} is not written: repeat the command with --overwrite")
        raise


def label_rows(rows: Iterable[Row], rule: ScoreRule, answers: Mapping[str, int]) -> list[Row]:
    """Each row with the label that its score gives, or discarded if the score gives none.

    Args:
        answers: ``text_hash`` -> a label that was given without a score, as ``merge`` corrects one. It counts before
            the score.
    """
    labelled = []
    for row in rows:
        if (article := row.kept) is not None:
            score = article.commerce_score
            label = rule.label(score)
            answer = answers.get(text_hash(article))
            if answer is not None:
                row = row if answer == label else replace(row, repairs=(*row.repairs, LABEL))
                # Without its score, so that the next build keeps the answer too.
                label, article = answer, replace(article, commerce_score=None)
            elif label is None:
                row = row.discard(NO_SCORE, '"commerce_score" is missing') if score is None else row.discard(MIDDLE)
            elif article.label not in (None, label):
                row = replace(row, repairs=(*row.repairs, LABEL))
            row = replace(row, article=replace(article, label=label))
        labelled.append(row)
    return labelled


def drop_repeated(rows: Sequence[Row]) -> list[Row]:
    """Discard rows that repeat the id and text of another. Which one is kept does not depend on their order."""
    places, articles = kept_articles(rows)
    groups: dict[tuple[str | None, str], list[int]] = defaultdict(list)
    for k, article in enumerate(articles):
        groups[article.id, text_hash(article)].append(k)
    remaining = list(rows)
    for group in groups.values():
        first, *others = sorted(group, key=lambda k: canonical(articles[k]))
        for k in others:
            kept = rows[places[first]]
            detail = f"repeats {kept.file}, line {kept.line}"
            if articles[k].label != articles[first].label:
                detail += ", which has the other label"
            remaining[places[k]] = rows[places[k]].discard(REPEATED, detail)
    return remaining


def with_own_ids(rows: Sequence[Row], before: Iterable[Article] = (), taken: Collection[str] = ()) -> list[Row]:
    """Where different articles share an id, let one keep it and append a hash of the text to the others'.

    Args:
        rows: those that are not discarded have an id, and no two of them the same id and text.
        before: articles that keep their id if they are among the rows; otherwise the first in canonical order keeps it.
        taken: ids that none of the rows may have.
    """
    places, articles = kept_articles(rows)
    hashes = [text_hash(article) for article in articles]
    owners = {(article.id, text_hash(article)) for article in before}
    ranks = [((a.id, digest) not in owners, canonical(a)) for a, digest in zip(articles, hashes, strict=True)]
    groups: dict[str, list[int]] = defaultdict(list)
    for k in sorted(range(len(articles)), key=ranks.__getitem__):
        groups[str(articles[k].id)].append(k)
    used = {*groups, *taken}
    renamed = list(rows)
    for old, group in sorted(groups.items()):
        for k in group if old in taken else group[1:]:
            new = old
            while new in used:
                new += f"-{hashes[k][:16]}"
            used.add(new)
            row, article = rows[places[k]], replace(articles[k], id=new)
            detail = f"the id {old} belongs to another article"
            renamed[places[k]] = replace(row, article=article, repairs=(*row.repairs, ID), detail=detail)
    return renamed


def read_previous(folder: Path, required: bool) -> list[tuple[Article, int]]:
    """Articles of the splits in a folder, each with its split. Raises InputError for a line that cannot be read."""
    present = [(path, split) for split, name in enumerate(NAMES) if (path := folder / f"{name}.jsonl").is_file()]
    if required and not present:
        raise InputError(f"{folder}: contains no splits; check --previous")
    return [(article, split) for path, split in present for article in all_articles(read_rows([path]))]


def log_discarded(rows: Sequence[Row]) -> None:
    """Log the first unreadable lines, and how many more there are."""
    bad = [row for row in rows if row.reason in (INVALID, NO_TEXT)]
    for row in bad[:MAX_LOGGED]:
        log.warning(f"{row.file}, line {row.line}: {row.reason}: {row.detail}")
    if len(bad) > MAX_LOGGED:
        log.warning(f"… and {len(bad) - MAX_LOGGED:,} more")


def check_splits(splits: dict[str, list[Article]]) -> None:
    """Raise InputError unless every split has both labels."""
    for name, articles in splits.items():
        missing = {JOURNALISM, COMMERCE} - {article.label for article in articles}
        if missing:
            kinds = " or ".join(LABEL_NAMES[label] for label in sorted(missing))
            raise InputError(
                f"{name} would contain no {kinds}: too few articles, or too few groups of articles that must stay "
                "together; add articles, or split without --group-by and --test-after"
            )


def describe_settings(options: BuildOptions) -> BuildSettings:
    """The settings that decide labels and splits, as plain JSON values."""
    return {
        "commerce_from": options.rule.commerce_from,
        "journalism_below": options.rule.journalism_below,
        "group_by": options.group_by,
        "test_after": options.test_after.isoformat() if options.test_after else None,
        "seed": options.seed,
    }
