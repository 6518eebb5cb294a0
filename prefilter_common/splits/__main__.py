"""Build splits from scored articles, add labelled articles to them, and audit any splits.

python -m prefilter_common.splits build scored.jsonl --output splits_v1
python -m prefilter_common.splits merge review_queue_distilbert.jsonl --splits splits_v1 --overwrite
python -m prefilter_common.splits audit splits_v1 --traffic last_week.jsonl
"""

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefilter_common.cli import Parser, configure_logging, exit_code, number, seed, table
from prefilter_common.splits.cleaning import ScoreRule

if TYPE_CHECKING:
    from prefilter_common.splits.audit.run import AuditOptions
    from prefilter_common.splits.build import BuildOptions
    from prefilter_common.splits.manifest import Manifest, MergeRecord
    from prefilter_common.splits.merge import MergeOptions


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    return args.run(args.options(args), sys.argv[1:] if argv is None else argv)


def parse_args(argv: list[str] | None) -> Namespace:
    """The command line."""
    parser = Parser(__doc__, prog="python -m prefilter_common.splits")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_build(commands)
    add_merge(commands)
    add_audit(commands)
    return parser.parse_args(argv)


def add_build(commands: Any) -> None:
    """Add the ``build`` command and its flags."""
    parser = commands.add_parser(
        "build",
        help="split scored articles into train, val and test",
        description="Splits scored articles 80/10/10, stratified by label, language and length. Articles that share\n"
        "their text go to the same split. If existing splits are replaced, their articles keep their split.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="SCORED", help="scored articles, JSON Lines")
    parser.add_argument(
        "--output", type=Path, default=Path("splits"), metavar="FOLDER", help="folder to write the splits to"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing splits in --output, and an existing --keep-middle file",
    )
    rule = add_rule(parser)
    rule.add_argument(
        "--keep-middle",
        type=Path,
        metavar="FILE",
        help="JSON Lines file to write the articles with a score between the two to (default: they are discarded)",
    )
    split = parser.add_argument_group("split")
    split.add_argument("--group-by", choices=("source",), help="keep all articles of a source in the same split")
    split.add_argument(
        "--test-after",
        type=day,
        metavar="DATE",
        help="test only on articles published after this day, YYYY-MM-DD, and on what shares their text (default: on a "
        "random sample)",
    )
    split.add_argument(
        "--previous",
        type=Path,
        metavar="FOLDER",
        help="existing splits whose articles keep their split (default: the splits in --output, if any)",
    )
    split.add_argument("--seed", type=seed, default=42, metavar="N", help="random seed of the order of the articles")
    parser.set_defaults(run=run_build, options=build_options)


def build_options(args: Namespace) -> "BuildOptions":
    """The flags of ``build``."""
    from prefilter_common.splits.build import BuildOptions

    return BuildOptions(
        inputs=tuple(args.inputs),
        output=args.output,
        rule=ScoreRule(args.commerce_from, args.journalism_below),
        keep_middle=args.keep_middle,
        group_by=args.group_by,
        test_after=args.test_after,
        previous=args.previous,
        seed=args.seed,
        overwrite=args.overwrite,
    )


def run_build(options: "BuildOptions", argv: Sequence[str]) -> int:
    """Write the splits and print what they contain."""
    from prefilter_common.splits.build import build

    manifest = build(options, argv)
    print_splits(manifest, manifest)
    return 0


def print_splits(manifest: "Manifest", record: "Manifest | MergeRecord") -> None:
    """Print the sizes of the splits, the counts of rows in ``record``, and both again as one line of JSON."""
    rows = [["split", "articles", "commerce", "journalism"]]
    for name, split in manifest["splits"].items():
        rows.append([name, *(f"{n:,}" for n in (split["rows"], *reversed(split["labels"].values())))])
    print(table(rows))
    print()
    for what, numbers in (("discarded", record["discarded_rows"]), ("repaired", record["repaired_rows"])):
        for reason, n in numbers.items():
            print(f"{what} rows, {reason}: {n:,}")
    counts = {key: value for key, value in record.items() if key.endswith("_rows") and key != "repaired_rows"}
    sizes = {name: split["rows"] for name, split in manifest["splits"].items()}
    print(json.dumps({**counts, **sizes}, separators=(",", ":")))


def add_merge(commands: Any) -> None:
    """Add the ``merge`` command and its flags."""
    parser = commands.add_parser(
        "merge",
        help="add labelled articles, such as answered review queues, to train",
        description="Adds labelled articles to train, never to val or test; articles that share their text or id with\n"
        "one in val or test are discarded. The label of an article that is already in train is corrected.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="LABELLED", help="labelled articles, JSON Lines")
    parser.add_argument(
        "--splits", type=Path, default=Path("splits"), metavar="FOLDER", help="existing splits to add to"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder to write (default: the --splits folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing splits")
    parser.set_defaults(run=run_merge, options=merge_options)


def merge_options(args: Namespace) -> "MergeOptions":
    """The flags of ``merge``."""
    from prefilter_common.splits.merge import MergeOptions

    return MergeOptions(tuple(args.inputs), args.splits, args.output or args.splits, args.overwrite)


def run_merge(options: "MergeOptions", argv: Sequence[str]) -> int:
    """Write the splits and print what was added."""
    from prefilter_common.splits.merge import merge

    manifest = merge(options, argv)
    print_splits(manifest, manifest["merges"][-1])
    return 0


def add_audit(commands: Any) -> None:
    """Add the ``audit`` command and its flags."""
    parser = commands.add_parser(
        "audit",
        help="check splits for leaks, shortcuts and doubtful labels",
        description="Checks any splits for leaks, shortcuts, doubtful labels and differences between the splits, and\n"
        "changes nothing. Writes split_audit.json and split_audit.html. Exits with 1 if train and test overlap.",
    )
    parser.add_argument(
        "splits", type=Path, metavar="FOLDER", help="folder with train.jsonl, test.jsonl and, optionally, val.jsonl"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results"), metavar="FOLDER", help="folder to write the report to"
    )
    parser.add_argument(
        "--traffic", type=Path, metavar="FILE", help="unlabelled production articles to compare with, JSON Lines"
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="model directory whose tokenizer measures the articles (default: the packaged encoder)",
    )
    add_rule(parser)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed of the folds and the intervals")
    parser.set_defaults(run=run_audit, options=audit_options)


def audit_options(args: Namespace) -> "AuditOptions":
    """The flags of ``audit``."""
    from prefilter_common.splits.audit.run import AuditOptions

    rule = ScoreRule(args.commerce_from, args.journalism_below)
    return AuditOptions(args.splits, args.output, args.traffic, args.model, rule, args.seed)


def run_audit(options: "AuditOptions", argv: Sequence[str]) -> int:
    """Write the report and print it. Returns 1 if train and test overlap."""
    from prefilter_common.files import write_json
    from prefilter_common.outputs import require_files
    from prefilter_common.splits.audit.report import audit_text, write_audit_page
    from prefilter_common.splits.audit.run import audit

    numbers, page = options.output / "split_audit.json", options.output / "split_audit.html"
    require_files(numbers, page)
    report = audit(options, argv)
    write_json(numbers, report)
    write_audit_page(page, report)
    print(audit_text(report))
    return 1 if report["overlap"] else 0


def add_rule(parser: argparse.ArgumentParser) -> Any:
    """Add the flags of the score rule. Returns their group, to which callers may add more flags."""
    rule = parser.add_argument_group("score rule, 0 to 10")
    low, high = ScoreRule().journalism_below, ScoreRule().commerce_from
    score = number("from 0 to 10", lambda x: 0 <= x <= 10)
    rule.add_argument("--commerce-from", type=score, default=high, metavar="S", help="lowest score that means commerce")
    rule.add_argument("--journalism-below", type=score, default=low, metavar="S", help="lower scores mean journalism")
    return rule


def day(text: str) -> date:
    """An argparse type: a date."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a date, YYYY-MM-DD") from None


if __name__ == "__main__":
    sys.exit(exit_code(main))
