import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import call, write_jsonl
from malformed import snapshot
from sklearn.metrics import f1_score

import evaluate_models
from prefilter_common.articles import Article, load_articles, spread_by_length
from prefilter_common.errors import InputError
from prefilter_common.evaluation.baseline import baseline_row
from prefilter_common.evaluation.traffic.labelling import require_unlabelled
from prefilter_common.models.contract import Stage
from prefilter_common.models.directory import read_contract, write_contract
from prefilter_common.runinfo import file_fingerprint
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models_dir(trained, tmp_path_factory):
    """Two good models, one without weights, one that is no model, one unfinished."""
    path = tmp_path_factory.mktemp("zoo")
    shutil.copytree(trained / "tiny", path / "first")
    shutil.copytree(trained / "tiny", path / "second")
    shutil.copytree(trained / "tiny", path / "broken")
    (path / "broken" / "model.safetensors").unlink()
    (path / "notes").mkdir()
    shutil.copytree(trained / "tiny", path / ".third.partial")
    return path


@pytest.fixture(scope="module")
def evaluated(models_dir, data_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    flags = ["--models-dir", models_dir, "--test-data", data_dir / "test.jsonl", "--output", output]
    code = call(evaluate_models, flags)
    return code, output, json.loads((output / "evaluation_results.json").read_text(encoding="utf-8"))


def test_a_broken_directory_is_an_error_row_and_the_others_are_evaluated(evaluated):
    code, output, results = evaluated
    assert code == 1
    assert {name for name in results if name[0] != "_"} == {"first", "second", "broken", "notes"}
    assert "cannot be loaded" in results["broken"]["error"] and "no config.json" in results["notes"]["error"]
    assert sorted(p.name for p in (output / "predictions").iterdir()) == ["first.jsonl", "second.jsonl"]


def test_each_row_keeps_the_earlier_keys_and_fits_the_predictions(evaluated, data_dir):
    _, output, results = evaluated
    articles = load_articles(data_dir / "test.jsonl")
    rows = [json.loads(line) for line in (output / "predictions" / "first.jsonl").open(encoding="utf-8")]
    assert [row["id"] for row in rows] == [a.id for a in articles]
    assert [row["label"] for row in rows] == [a.label for a in articles]
    assert [row["language"] for row in rows] == [a.language for a in articles]
    row = results["first"]
    earlier = "accuracy f1 precision recall avg_inference_ms p50_inference_ms p95_inference_ms confusion_matrix"
    assert set(earlier.split()) <= set(row)
    decided = [r["score"] >= 0.5 for r in rows]
    assert row["f1"] == pytest.approx(f1_score([r["label"] for r in rows], decided))
    assert np.sum(row["confusion_matrix"]) == row["n_articles"] == 16
    assert 0 < row["p50_inference_ms"] <= row["p95_inference_ms"]


def test_the_scores_are_the_scorers(evaluated, trained, data_dir):
    _, output, _ = evaluated
    rows = [json.loads(line) for line in (output / "predictions" / "first.jsonl").open(encoding="utf-8")]
    scores = Scorer.load(trained / "tiny").score(load_articles(data_dir / "test.jsonl"))
    np.testing.assert_allclose([row["score"] for row in rows], scores, atol=1e-5)


def test_provenance_names_the_data_and_the_command(evaluated):
    run = evaluated[2]["_run"]
    assert run["data"]["test"]["rows"] == 16 and run["command"].endswith(str(evaluated[1]))


def test_named_models_only_with_a_table_on_stdout(models_dir, data_dir, tmp_path, capsys):
    flags = ["--models-dir", models_dir, "--test-data", data_dir / "test.jsonl", "--output", tmp_path]
    assert call(evaluate_models, [*flags, "--models", "second"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "F1", "%", "precision", "%", "recall", "%", "ms", "worst", "slice"]
    assert lines[2].startswith("second ") and lines[3].startswith("(TF-IDF floor) ")
    assert any(line.startswith("choice: ") for line in lines) and max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "none"], "has no none; it has broken, first, notes, second"),
        (["--models-dir", "nowhere"], "nowhere: no such directory; train a model first"),
        (["--test-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_bad_arguments_write_nothing(models_dir, data_dir, tmp_path, capsys, flags, words):
    base = ["--models-dir", models_dir, "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "r"]
    assert call(evaluate_models, base + flags) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_results_are_not_written_among_the_models(models_dir, data_dir, capsys):
    flags = ["--models-dir", models_dir, "--test-data", data_dir / "test.jsonl", "--output", f"{models_dir}/."]
    assert call(evaluate_models, flags) == 2
    assert "is the folder of the models" in capsys.readouterr().err and not (models_dir / "predictions").exists()


def test_unlabelled_test_data_is_refused(models_dir, tmp_path, capsys):
    data = write_jsonl(tmp_path / "t.jsonl", [{"title": "t", "content": "c"}])
    assert call(evaluate_models, ["--models-dir", models_dir, "--test-data", data, "--output", tmp_path / "r"]) == 2
    assert '"label" is missing' in capsys.readouterr().err


def test_messy_articles_are_evaluated(models_dir, tmp_path):
    records = [
        {
            "title": "Ã©tÃ©\x00 \u200b",
            "text": "donâ€™t \ufffd" * 500,
            "label": 1,
            "tags": ["x"],
            "metadata": {"a": None},
        },
        {"title": "", "content": "", "label": 0, "language": None, "id": 17},
    ]
    data = write_jsonl(tmp_path / "t.jsonl", records)
    flags = ["--models-dir", models_dir, "--models", "first", "--test-data", data, "--output", tmp_path / "r"]
    assert call(evaluate_models, flags) == 0
    lines = (tmp_path / "r" / "predictions" / "first.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["line-1", "17"]


def test_the_latency_sample_spans_the_lengths():
    articles = [Article("", "x" * n) for n in range(100)]
    sample = [len(a.content) for a in spread_by_length(articles[::-1], 10)]
    assert sample == list(range(5, 100, 10))
    assert len(spread_by_length(articles[:3], 10)) == 3


@pytest.fixture(scope="module")
def with_traffic(models_dir, data_dir, tmp_path_factory):
    """Two models with everything on; the validation labels are such that every operating point exists."""
    path, output = tmp_path_factory.mktemp("zoo"), tmp_path_factory.mktemp("results")
    shutil.copytree(models_dir / "first", path / "first")
    shutil.copytree(models_dir / "first", path / "legacy")
    (path / "legacy" / "prefilter.json").unlink()
    (path / "legacy" / "validation_predictions.jsonl").unlink()
    (path / "legacy" / "cpu_benchmark.json").unlink(missing_ok=True)  # another test may have left one
    rows = [{"label": int(i < 90), "score": 0.9 if i < 90 else 0.2} for i in range(1_800)]
    write_jsonl(path / "first" / "validation_predictions.jsonl", rows)
    (path / "first" / "cpu_benchmark.json").write_text('{"avg_ms": 12.5}')
    short = [{"title": "t", "content": f"news {i}", "language": "xx"} for i in range(30)]
    flags = ["--models-dir", path, "--test-data", data_dir / "test.jsonl", "--output", output, "--seed", 3]
    flags += ["--audit", 5, 10, "--prevalence", 0.05, 0.175, 0.05, "--cost-per-article", 0.01, "--cost-of-blocking", 1]
    flags += ["--traffic", write_jsonl(tmp_path_factory.mktemp("t") / "traffic.jsonl", short), "--latency-samples", 2]
    assert call(evaluate_models, flags) == 0
    return path, output, json.loads((output / "evaluation_results.json").read_text(encoding="utf-8")), flags


def test_operating_points_are_written_back_and_asked_for_by_name(with_traffic):
    path, _, results, _ = with_traffic
    assert read_contract(path / "first").thresholds == {
        "default": 0.5, "best_f1": 0.55, "high_precision": 0.55,
    }  # fmt: skip
    points = results["first"]["operating_points"]
    assert set(points) == {"default", "best_f1", "high_precision"}
    assert set(points["best_f1"]["intervals"]) == {"f1", "precision", "recall", "accuracy"}
    scorer = Scorer.load(path / "first", device="cpu")
    article = Article("t", "c")
    assert scorer.is_commerce(article, "high_precision") == (scorer.score([article])[0] >= 0.55)


def test_a_directory_of_the_earlier_scripts_keeps_one_point_and_is_left_alone(with_traffic, data_dir, tmp_path):
    path, _, results, flags = with_traffic
    assert not (path / "legacy" / "prefilter.json").exists()
    assert set(results["legacy"]["operating_points"]) == {"default"}
    assert any("only the default threshold for legacy" in text for text in results["_warnings"])
    more = ["--models", "legacy", "--val-data", data_dir / "val.jsonl", "--output", tmp_path]
    assert call(evaluate_models, [*flags, *more]) == 0
    results = json.loads((tmp_path / "evaluation_results.json").read_text(encoding="utf-8"))
    # Whether a tiny model has a threshold that blocks little journalism differs from one processor to the next.
    found = "best_f1" in results["legacy"]["operating_points"]
    assert found != any("no best_f1 threshold for legacy" in text for text in results["_warnings"])
    assert not any("only the default threshold for legacy" in text for text in results["_warnings"])
    assert not (path / "legacy" / "prefilter.json").exists()


def test_traffic_sections_queues_and_warnings(with_traffic):
    _, output, results, _ = with_traffic
    assert results["_traffic"]["n_articles"] == 30 and len(results["_traffic"]["pairs"]) == 1
    assert results["_traffic"]["uncovered"][0]["value"] == "xx"
    assert any(
        "100% of the traffic (language xx) is not covered: the labelled articles have none of it" in w
        for w in results["_warnings"]
    )
    queue = load_articles(output / "review_queue_first.jsonl") if results["_traffic"]["review_queue"]["first"] else []
    assert all(article.label is None and article.content.startswith("news ") for article in queue)
    assert results["first"]["cpu_benchmark_ms"] == 12.5 and results["legacy"]["cpu_benchmark_ms"] is None
    assert (output / "report.html").is_file()


def test_labels_that_are_given_during_a_run_are_not_overwritten(with_traffic, tmp_path, monkeypatch, capsys):
    flags, evaluate = with_traffic[3], evaluate_models.evaluate_each

    def meanwhile(*args):
        write_jsonl(tmp_path / "audit_first.jsonl", [{"title": "t", "content": "c", "label": 1}])
        return evaluate(*args)

    monkeypatch.setattr(evaluate_models, "evaluate_each", meanwhile)
    more = ["--models", "first", "--audit", 2, "--output", tmp_path, "--latency-samples", 1]
    assert call(evaluate_models, [*flags, *more]) == 0
    assert (
        "audit_first.jsonl, line 1: has a label, or was changed by hand, and this run would overwrite it"
        in capsys.readouterr().err
    )
    assert json.loads((tmp_path / "audit_first.jsonl").read_text(encoding="utf-8"))["label"] == 1
    assert (tmp_path / "evaluation_results.json").is_file()


@pytest.mark.parametrize(
    "line", ['{"label": commerce}', '{"label": 1,}', '{"label": 1, "label": null}', "{", "label,1", "\ufeff{}", "[1]"]
)
def test_a_line_that_was_changed_by_hand_is_not_overwritten(tmp_path, line):
    path = tmp_path / "audit_m.jsonl"
    path.write_text('{"label": null}\n' + line, encoding="utf-8")
    with pytest.raises(InputError, match=r"audit_m\.jsonl, line 2: has a label, or was changed by hand"):
        require_unlabelled([path])
    path.write_text('{"label": null}\n\n', encoding="utf-8")
    require_unlabelled([path, tmp_path / "nowhere.jsonl"])


def test_a_test_set_of_one_label_is_refused(models_dir, data_dir, tmp_path, capsys):
    commerce = write_jsonl(tmp_path / "test.jsonl", [{"title": "t", "content": f"c{i}", "label": 1} for i in range(9)])
    flags = ["--models-dir", models_dir, "--test-data", commerce, "--output", tmp_path / "r"]
    assert call(evaluate_models, flags) == 2 and not (tmp_path / "r").exists()
    assert "test.jsonl: every article is commerce; both labels are needed" in capsys.readouterr().err


def test_a_prevalence_that_is_given_twice_is_shown_once(with_traffic):
    results = with_traffic[2]
    assert results["_settings"]["prevalence"] == [0.05, 0.175]
    panel = results["_production"]["models"]["first"]["panel"]
    assumed = [(row["prevalence"], row["point"]) for row in panel if row["source"] == "assumed"]
    assert len(assumed) == len(set(assumed)) and {share for share, _ in assumed} == {0.05, 0.175}


def test_the_latency_of_stages_goes_with_them(with_traffic, data_dir, tmp_path, capsys):
    model = shutil.copytree(with_traffic[0] / "first", tmp_path / "models" / "first")
    stage = Stage("encoder", 1.0, 0.1, 0.9, max_length=16)
    write_contract(model, replace(read_contract(model), stages=(stage,)))
    flags = ["--models-dir", tmp_path / "models", "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "r"]

    def evaluate(stages):
        (model / "cpu_benchmark.json").write_text(json.dumps({"avg_ms": 1.5, **stages}), encoding="utf-8")
        assert call(evaluate_models, [*flags, "--latency-samples", 1]) == 0
        found = json.loads((tmp_path / "r" / "evaluation_results.json").read_text(encoding="utf-8"))
        assert found["_choice"]["models"]["first"]["cpu_ms"] == found["first"]["cpu_benchmark_ms"]
        warnings = [line for line in capsys.readouterr().err.splitlines() if "run the benchmark again" in line]
        return found["first"]["cpu_benchmark_ms"], read_contract(model).stages, warnings

    with_stage = {"stages": ["16 tokens"]}
    assert evaluate(with_stage) == (1.5, (stage,), [])
    rows = [{"label": int(i < 90), "score": 0.8 if i < 90 else 0.2} for i in range(1_800)]
    write_jsonl(model / "validation_predictions.jsonl", rows)
    ms, stages, (warning,) = evaluate(with_stage)
    assert ms is None and stages == () and warning.startswith("first: its stages (16 tokens) were chosen for other")
    assert evaluate(with_stage) == evaluate({"passes": 2}) == (None, (), [])  # until the benchmark has run
    assert evaluate({"stages": []}) == evaluate({"passes": 1}) == (1.5, (), [])


@pytest.mark.parametrize("where", ["production_section", "choice_of"])
def test_stopped_before_the_end_a_run_leaves_the_earlier_results_and_their_files(
    with_traffic, data_dir, tmp_path, monkeypatch, capsys, where
):
    path, output, _, flags = with_traffic
    shutil.copytree(path, tmp_path / "models")
    shutil.copytree(output, tmp_path / "results")
    rows = [{"label": int(i < 90), "score": 0.8 if i < 90 else 0.2} for i in range(1_800)]
    write_jsonl(tmp_path / "models" / "first" / "validation_predictions.jsonl", rows)
    before = snapshot(tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"prefilter_common.evaluation.results.{where}", stop)
    here = ["--models-dir", tmp_path / "models", "--output", tmp_path / "results"]
    assert call(evaluate_models, [*flags, *here, "--test-data", data_dir / "val.jsonl", "--audit", 6, 11]) == 130
    assert "no unfinished output was left behind" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_the_same_seed_gives_the_same_figures(with_traffic, tmp_path):
    _, _, results, flags = with_traffic
    assert call(evaluate_models, [*flags, "--output", tmp_path]) == 0
    again = json.loads((tmp_path / "evaluation_results.json").read_text(encoding="utf-8"))
    assert again["first"]["intervals"] == results["first"]["intervals"]
    assert again["_comparison"] == results["_comparison"] and again["_traffic"] == results["_traffic"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--traffic-models", "first", "second"], "pass --traffic FILE"),
        (["--traffic-models", "first", "other", "--traffic", "x"], "name two different ones of"),
        (["--traffic", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--target-precision", "1.5"], "'1.5' is not a number from 0.000001 to below 1"),
        (["--prevalence", "1e-320"], "is not a number from 0.000001 to below 1"),
        (["--val-data", "{tmp}/commerce.jsonl"], "commerce.jsonl: every article is commerce; both labels are needed"),
        (["--target-precision", "0"], "'0' is not a number from 0.000001"),
        (["--cost-of-blocking", "1e300"], "'1e300' is not a number above 0 and below 1e100"),
        (["--seed", "-1"], "is not a whole number from 0"),
    ],
)
def test_bad_flags_of_the_comparison_write_nothing(models_dir, data_dir, tmp_path, capsys, flags, words):
    write_jsonl(tmp_path / "commerce.jsonl", [{"title": "t", "content": "c", "label": 1}])
    base = ["--models-dir", models_dir, "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "r"]
    assert call(evaluate_models, base + [flag.format(tmp=tmp_path) for flag in flags]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_splits_beside_the_test_set_that_no_longer_match_the_manifest_are_named(models_dir, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "splits")
    described = {name: file_fingerprint(tmp_path / "splits" / f"{name}.jsonl") for name in ("train", "val", "test")}
    (tmp_path / "splits" / "manifest.json").write_text(json.dumps({"splits": described}), encoding="utf-8")
    with (tmp_path / "splits" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"title": "one more", "content": "article", "label": 1}\n')
    flags = ["--models-dir", models_dir, "--models", "first", "--test-data", tmp_path / "splits" / "test.jsonl"]
    assert call(evaluate_models, [*flags, "--output", tmp_path / "r", "--latency-samples", 1]) == 0
    found = json.loads((tmp_path / "r" / "evaluation_results.json").read_text(encoding="utf-8"))
    assert found["_manifest"]["differs"] == ["train"]
    assert "train changed after manifest.json was written" in found["_warnings"]


def test_training_articles_that_were_not_compared_are_a_warning(models_dir, data_dir, tmp_path):
    """Copies of a model's own training articles cannot be found in others, or in none."""
    test = write_jsonl(
        tmp_path / "test.jsonl",
        [{"title": a.title, "content": a.content, "label": a.label} for a in load_articles(data_dir / "test.jsonl")]
        * 2,
    )
    flags = ["--models-dir", models_dir, "--models", "first", "--test-data", test, "--latency-samples", 1]

    def warnings(*more):
        assert call(evaluate_models, [*flags, "--output", tmp_path / "r", *more]) == 0
        found = json.loads((tmp_path / "r" / "evaluation_results.json").read_text(encoding="utf-8"))
        return found["_warnings"]

    assert any("no training articles were read" in text for text in warnings())
    same = warnings("--train-data", data_dir / "train.jsonl")
    assert not any("training articles" in text for text in same)
    n = len(load_articles(test))
    assert f"{n // 2} of the {n} test articles have the text of another, so intervals are too narrow" in same
    others = warnings("--train-data", data_dir / "val.jsonl")
    assert any(f"first: trained on {data_dir / 'train.jsonl'}, not on" in text for text in others)


def test_training_articles_of_one_label_give_no_floor(caplog):
    articles = [Article("t", "c", 0)] * 3
    assert baseline_row(articles, articles, 0) is None and "all of one label" in caplog.text
