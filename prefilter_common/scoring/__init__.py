"""Articles in, P(commerce) out.

In: a model directory and articles. Out: scores, from whichever engine runs the model; ``Scorer`` is all that a
deployment needs. As a command it scores a JSON Lines file of any size: ``python -m prefilter_common.scoring``. Does not
belong here: labels, and what a score is worth.

Ray Data runs the same class over JSON Lines or Parquet (``read_parquet``), on as many workers as ``concurrency`` says,
at most one per core. ``num_cpus=0.5`` leaves cores to the reading; workers that reserve every core would wait for it
forever. Needs ``pip install "ray[data]"``; the workers find the package by PYTHONPATH, or on a cluster by
``ray.init(runtime_env={"working_dir": "."})`` in this repository. Model and files must have the same absolute path on
every machine.

    # ray
    import ray
    from prefilter_common.articles import Article
    from prefilter_common.scoring import Scorer


    class Score:
        def __init__(self):
            self.scorer = Scorer.load("/data/models/distilbert", threads=1)

        def __call__(self, rows):  # a null title or content is None, or NaN where all are null
            texts = [[text if isinstance(text, str) else "" for text in rows[key]] for key in ("title", "content")]
            return {"id": rows["id"], "score": self.scorer.score([Article(*both) for both in zip(*texts)])}


    articles = ray.data.read_json("in.jsonl", lines=True)
    articles.map_batches(Score, batch_size=1024, concurrency=2, num_cpus=0.5).write_parquet("scores")
"""

from prefilter_common.scoring.scorer import Scorer

__all__ = ["Scorer"]
