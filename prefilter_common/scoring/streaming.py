"""Score a JSON Lines file of any size in constant memory, and divide it.

    python -m prefilter_common.scoring models/multilingual-e5-small in.jsonl out.jsonl
    zcat feed.jsonl.gz | python -m prefilter_common.scoring models/x - --passed - --blocked blocked.jsonl | next-stage

OUTPUT has one row per article, in the order of the input:

    {"id": "a1", "score": 0.981234, "is_commerce": true, "language": "en", "characters": 130}

The language is the article's own, or null; the characters are those of title and content together. An id that occurs
twice gives two rows. An article that a reduced vocabulary cannot read has "unread": true. --passed and --blocked get
the input's own rows with "prefilter_score", and any "shadow_score", added. With --shadow, a second model scores as
well: OUTPUT has its "shadow_score" and "shadow_is_commerce", and a file gets the input's rows on which the two decide
differently, as evaluation's --traffic and the labelling want them; none that the second cannot read, which are
"shadow_unread": true.

"-" is standard input, which is read to its end first, or standard output. The whole input is checked before the model
is loaded. Outputs appear complete or not at all; until then the rows are in a hidden folder beside OUTPUT, and the same
command resumes a run that was interrupted. The last line on stdout, or on stderr where stdout has rows, is one JSON
object; its seconds are those of this run, without loading.
"""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefilter_common.articles import read_articles
from prefilter_common.cli import Parser, batch_size, configure_logging, threads
from prefilter_common.errors import InputError
from prefilter_common.files import resolved
from prefilter_common.outputs import kept_directory, locked, partial_name, require_files
from prefilter_common.scoring.delivery import STANDARD, deliver, is_delivered
from prefilter_common.scoring.engines.interface import ENGINES, EngineName
from prefilter_common.scoring.rows import ROWS_FILE, Run, require_same_run, write_rows
from prefilter_common.scoring.scorer import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The command line; ``threshold`` names an operating point."""

    model: Path
    input: Path
    output: Path | None
    passed: Path | None
    blocked: Path | None
    shadow: tuple[Path, Path] | None
    full: Path | None
    engine: EngineName | None
    threshold: str
    batch_size: int
    threads: int | None

    @property
    def models(self) -> list[Path]:
        """The model and, where there is one, its shadow."""
        return [self.model, *([self.shadow[0]] if self.shadow else [])]

    def load(self, model: Path) -> Scorer:
        """One of the ``models``."""
        return Scorer.load(model, engine=self.engine, threads=self.threads, full=self.full)

    @property
    def divided(self) -> dict[str, Path]:
        """Part of the input -> where it goes."""
        parts = {"passed": self.passed, "blocked": self.blocked, "differ": self.shadow[1] if self.shadow else None}
        return {part: path for part, path in parts.items() if path is not None}

    @property
    def outputs(self) -> list[Path]:
        """Everything that is written."""
        return [*([self.output] if self.output else []), *self.divided.values()]


def main(argv: list[str] | None = None) -> int:
    """Check the whole input, load the model, score, write, print. Returns the exit code."""
    options = parse_args(argv)
    configure_logging()
    check_paths(options)
    with ExitStack() as stack:
        articles = stack.enter_context(readable_twice(options.input))
        total = sum(1 for _ in read_articles(articles))
        folder = stack.enter_context(rows_folder(options))
        scorers = [options.load(model) for model in options.models]
        run = Run(scorers, articles, options.threshold, options.batch_size)
        require_same_run(folder, run.made_with())
        stack.enter_context(what_is_left(folder, lasts=bool(files(options))))
        summary = write_rows(run, folder, total)
        require_no_output(options)  # another program may have written one meanwhile, and the rename would replace it
        deliver(articles, folder, options.divided, options.output)
    text = json.dumps(summary, separators=(",", ":"))
    print(text, file=sys.stderr if STANDARD in options.outputs else sys.stdout)
    return 0


def parse_args(argv: list[str] | None) -> Options:
    """The command line."""
    parser = Parser(__doc__, prog="python -m prefilter_common.scoring")
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("input", type=Path, help="articles, JSON Lines; labels are not needed")
    parser.add_argument("output", type=Path, nargs="?", help="scores to write, JSON Lines; must not exist yet")
    parser.add_argument("--passed", type=Path, metavar="FILE", help="write the articles that are not commerce")
    parser.add_argument("--blocked", type=Path, metavar="FILE", help="write the articles that are commerce")
    parser.add_argument(
        "--shadow",
        type=Path,
        nargs=2,
        metavar=("MODEL", "FILE"),
        help="score with another model as well, and write the articles on which the two decide differently",
    )
    parser.add_argument(
        "--full",
        type=Path,
        metavar="MODEL",
        help="model for the articles that one with a reduced vocabulary cannot read (default: let them through); it "
        "decides at its own operating point",
    )
    parser.add_argument(
        "--engine",
        type=EngineName.parse,
        metavar="NAME",
        help=f"engine that runs the model (default: the one that the benchmark recommends), one of "
        f"{' '.join(map(str, ENGINES))}",
    )
    parser.add_argument(
        "--threshold", default="default", metavar="NAME", help="operating point that decides is_commerce"
    )
    parser.add_argument("--batch-size", type=batch_size, default=16, metavar="N", help="articles per forward pass")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="threads for the arithmetic (default: one per core)"
    )
    args = parser.parse_args(argv)
    args.shadow = tuple(args.shadow) if args.shadow else None
    return Options(**vars(args))


def check_paths(options: Options) -> None:
    """Raise InputError for what is wrong before anything is read."""
    for model in [*options.models, *([options.full] if options.full else [])]:
        if not model.is_dir():
            raise InputError(f"{model}: no such model directory; check the path")
    if options.input != STANDARD and options.input.exists() and not options.input.is_file():
        raise InputError(f"{options.input}: not a file; the articles are read more than once, so write them to one")
    if not options.outputs:
        raise InputError("nothing to write; name an output, --passed or --blocked")
    places = [path if path == STANDARD else resolved(path) for path in options.outputs]
    twice = [path for path, place in zip(options.outputs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise InputError(f"{twice[0]}: is named for two outputs; name another for one of them")
    if (options.input == STANDARD and not sys.stdin) or (STANDARD in options.outputs and not sys.stdout):
        raise InputError("-: standard input or output is closed; name a file instead")
    require_files(*files(options))
    require_no_output(options)


def files(options: Options) -> list[Path]:
    """The outputs that are files."""
    return [path for path in options.outputs if path != STANDARD]


def require_no_output(options: Options) -> None:
    """Raise InputError when an output exists, unless a killed run of the same command has put it in place."""
    named = files(options)
    for path in named:
        if path.exists() and not is_delivered(path, partial_name(named[0])):
            if options.input.exists() and path.samefile(options.input):
                raise InputError(f"{path}: is the input; name another output")
            raise InputError(f"{path}: already exists; move it away, or name another output")


@contextmanager
def readable_twice(articles: Path) -> Iterator[Path]:
    """``articles``, or a copy of standard input that lasts as long as the block."""
    if articles != STANDARD:
        yield articles
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "standard-input.jsonl"
        with copy.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        try:
            yield copy
        except InputError as error:
            raise InputError(str(error).replace(str(copy), "standard input")) from None


@contextmanager
def what_is_left(folder: Path, lasts: bool) -> Iterator[None]:
    """Add to what ends the block early that the rows are kept, where they are."""
    try:
        yield
    except BaseException as error:
        rows = folder / ROWS_FILE
        if lasts and rows.is_file() and rows.stat().st_size:
            error.add_note(f"the same command continues with the rows in {folder}")
        raise


@contextmanager
def rows_folder(options: Options) -> Iterator[Path]:
    """Where the rows are until they are complete: beside the first output that is a file, for the next run as well.

    Until the block ends no other process can write any of the outputs.
    """
    if named := files(options):
        with ExitStack() as stack:
            for path in named[1:]:
                stack.enter_context(locked(resolved(path)))
            yield stack.enter_context(kept_directory(named[0]))
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
