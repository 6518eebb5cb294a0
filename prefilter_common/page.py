"""Numbers -> the page that people read: one self-contained HTML file."""

import html
import json
from pathlib import Path

from prefilter_common.files import write_text


def write_page(path: Path, data: dict) -> None:
    """Write ``data``, what ``evaluate_models.py`` found, as an HTML page.

    Args:
        path: the file to write.
        data: ``results``, the content of evaluation_results.json, and ``errors``: model -> its worst errors with
            their texts. Texts are hostile input: everything is escaped.
    """
    shown = html.escape(json.dumps(data, ensure_ascii=False, indent=1))
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Commerce prefilter: evaluation</title>'
    write_text(path, f"{head}<h1>Evaluation</h1><pre>{shown}</pre></html>\n")
