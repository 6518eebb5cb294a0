"""Divide the articles of a scored file into those that pass, those that are blocked, and those that models dispute."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from prefilter_common.files import decoded, numbered_lines
from prefilter_common.scoring.rows import differs


def write_parts(articles: Path, rows: Path, parts: Mapping[str, Path]) -> None:
    """Write the input's own rows, with ``prefilter_score`` added, into the file of each part they belong to.

    Args:
        articles: JSON Lines.
        rows: the score row of each, in the same order.
        parts: ``passed``, ``blocked`` or ``differ`` -> the file to write.
    """
    with ExitStack() as stack:
        out = {
            part: stack.enter_context(path.open("w", encoding="utf-8", errors="replace", newline="\n"))
            for part, path in parts.items()
        }
        records, scored = ((decoded(line) for _, line in numbered_lines(path)) for path in (articles, rows))
        for record, row in zip(records, scored, strict=True):
            record["prefilter_score"] = row["score"]
            belongs = {"blocked" if row["is_commerce"] else "passed"}
            if "shadow_score" in row:
                record["shadow_score"] = row["shadow_score"]
                if differs(row):
                    belongs.add("differ")
            line = json.dumps(record, ensure_ascii=False) + "\n"
            for part in belongs & out.keys():
                out[part].write(line)
