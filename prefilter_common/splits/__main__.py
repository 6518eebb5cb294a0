"""Build splits from scored articles, add labelled articles to them, and audit any splits.

python -m prefilter_common.splits build scored.jsonl --output splits
python -m prefilter_common.splits merge review_queue_distilbert.jsonl --splits splits --overwrite
python -m prefilter_common.splits audit splits --traffic last_week.jsonl
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from prefilter_common.cli import HelpFormatter, configure_logging, exit_code, seed, table
from prefilter_common.splits.cleaning import ScoreRule


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    return args.run(args, sys.argv[2:] if argv is None else argv[1:])


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m prefilter_common.splits", description=__doc__, formatter_class=HelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_build(commands)
    add_merge(commands)
    add_audit(commands)
    return parser.parse_args(argv)


def add_build(commands: Any) -> None:
    """Add the ``build`` command and its flags."""
    parser = commands.add_parser(
        "build",
        formatter_class=HelpFormatter,
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
        type=date.fromisoformat,
        metavar="DATE",
        help="test only on articles published after this day, YYYY-MM-DD (default: on a random sample)",
    )
    split.add_argument(
        "--previous",
        type=Path,
        metavar="FOLDER",
        help="existing splits whose articles keep their split (default: the splits in --output, if any)",
    )
    split.add_argument("--seed", type=seed, default=42, metavar="N", help="random seed of the order of the articles")
    parser.set_defaults(run=run_build)


def run_build(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Write the splits and print what they contain."""
    from prefilter_common.splits.build import BuildOptions, build

    options = BuildOptions(
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
    manifest = build(options, argv)
    print_splits(manifest, manifest)
    return 0


def print_splits(manifest: dict[str, Any], record: dict[str, Any]) -> None:
    """Print the sizes of the splits, the counts of rows in ``record``, and both again as one line of JSON."""
    rows = [["split", "articles", "commerce", "journalism"]]
    for name, split in manifest["splits"].items():
        rows.append([name, *(f"{n:,}" for n in (split["rows"], *reversed(split["labels"].values())))])
    print(table(rows))
    print()
    for what in ("discarded", "repaired"):
        for reason, n in record[f"{what}_rows"].items():
            print(f"{what}: {n:,} rows, {reason}")
    counts = {key: value for key, value in record.items() if key.endswith("_rows") and key != "repaired_rows"}
    sizes = {name: split["rows"] for name, split in manifest["splits"].items()}
    print(json.dumps({**counts, **sizes}, separators=(",", ":")))


def add_merge(commands: Any) -> None:
    """Add the ``merge`` command and its flags."""
    parser = commands.add_parser(
        "merge",
        formatter_class=HelpFormatter,
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
    parser.set_defaults(run=run_merge)


def run_merge(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Write the splits and print what was added."""
    from prefilter_common.splits.merge import MergeOptions, merge

    options = MergeOptions(tuple(args.inputs), args.splits, args.output or args.splits, args.overwrite)
    manifest = merge(options, argv)
    print_splits(manifest, manifest["merges"][-1])
    return 0


def add_audit(commands: Any) -> None:
    """Add the ``audit`` command and its flags."""
    parser = commands.add_parser(
        "audit",
        formatter_class=HelpFormatter,
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
    parser.set_defaults(run=run_audit)


def run_audit(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Write the report and print it. Returns 1 if train and test overlap."""
    from prefilter_common.files import write_json
    from prefilter_common.splits.audit.report import audit_text, write_audit_page
    from prefilter_common.splits.audit.run import AuditOptions, audit

    rule = ScoreRule(args.commerce_from, args.journalism_below)
    options = AuditOptions(args.splits, args.output, args.traffic, args.model, rule, args.seed)
    report = audit(options, argv)
    write_json(args.output / "split_audit.json", report)
    write_audit_page(args.output / "split_audit.html", report)
    print(audit_text(report))
    return 1 if report["overlap"] else 0


def add_rule(parser: argparse.ArgumentParser) -> Any:
    """Add the flags of the score rule. Returns their group, to which callers may add more flags."""
    rule = parser.add_argument_group("score rule, 0 to 10")
    low, high = ScoreRule().journalism_below, ScoreRule().commerce_from
    rule.add_argument("--commerce-from", type=float, default=high, metavar="S", help="lowest score that means commerce")
    rule.add_argument("--journalism-below", type=float, default=low, metavar="S", help="lower scores mean journalism")
    return rule


if __name__ == "__main__":
    sys.exit(exit_code(main))
