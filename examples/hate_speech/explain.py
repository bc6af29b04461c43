"""The `explain` command: which words a checkpoint looks at, and what the calibration does to the feature space."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.robustness.drawing import save_figure
from benchmarks.robustness.rows import write_atomically
from examples.pipeline.arguments import Arguments, count, split_overrides
from mmrobust.masking import masked_mean

from .batches import TextSet
from .hatexplain import read_lines_corpus
from .masking import Lexicon, hidden_words, lexicon, mask_word, read_list
from .measure import all_scores
from .metrics import neutral_class, softmax
from .plots import plot_similarity, plot_space
from .posts import Post, Range, plural
from .rationales import marks_of, word_scores, words_of
from .saliency import ATTENTION, CHANGE, CONTRIBUTION, GATE, MEANING, PIECES, RANDOM, batches, predict
from .shading import MOST_IN_PICTURE, Shown, page, plot_words
from .tables import clean, read_lines
from .trained import Trained, open_checkpoint

SEED = 0
SHOWN = [name for name in MEANING if name not in (RANDOM, PIECES)]
LEAST_SPACE = 3  # fewer points have no neighbours to draw


def explain_command(args: Sequence[str]) -> None:
    """Write an HTML page and pictures of texts."""
    parser = Arguments(
        "python -m examples.hate_speech explain",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration.",
    )
    parser.add_argument("checkpoint", type=Path, help="best.ckpt of a run")
    parser.add_argument("--text", action="append", default=[], help="a text; may be given several times")
    parser.add_argument("--file", type=Path, help="texts, one a line, or posts as in HateXplain's JSON lines (.jsonl)")
    limit = "at most so many posts of the file, or of validation (default: %(default)s)"
    parser.add_argument("--limit", type=count, default=10, help=limit)
    parser.add_argument("--scores", nargs="+", choices=SHOWN, help="default: gate or attention; contribution")
    parser.add_argument("--mask-words", type=Path, help="file of offensive words, one a line, in place of the default")
    parser.add_argument("--unmasked", action="store_true", help="show offensive words in full")
    space = "validation posts in the feature space; 0 = none (default: %(default)s)"
    parser.add_argument("--space-posts", type=int, default=600, help=space)
    parser.add_argument("--out", type=Path, help="folder for page and pictures (default: explanation beside the file)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    print(*map(str, explain(given, overrides)), sep="\n")


def explain(given: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Explain the texts of the parsed arguments; without any, toxic validation posts with a rationale."""
    folder = given.out or given.checkpoint.parent / "explanation"
    if given.space_posts and given.space_posts < LEAST_SPACE:
        raise ValueError(f"explain: --space-posts: expected 0 or at least {LEAST_SPACE}, got {given.space_posts}")
    posts, notes = read_posts(given)  # before the data is read, which takes longer
    listed = read_list(given.mask_words) if given.mask_words else None
    trained = open_checkpoint(given.checkpoint, overrides, folder / "configs")
    hidden = words_to_hide(trained, given, listed)
    rows = trained.data.text_set(examples(trained, given.limit) if posts is None else posts)
    shown = show_posts(trained, rows, given.scores, hidden)
    if rows.tokens.truncated:
        notes.append(f"{plural(rows.tokens.truncated, 'text')} of more than {trained.data.max_tokens} tokens cut")
    if len(shown) > MOST_IN_PICTURE:
        notes.append(f"words.png shows the first {MOST_IN_PICTURE} of {len(shown)} texts")
    if hidden is not None:
        notes.append(_MASKED if hidden.rationale else _MASKED_AS_LISTED)
    images = [folder / "words.png"]
    toward = "the predicted class" if neutral_class(trained.data.classes) is None else "toxic"
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # fonts of foreign letters lack weights
    save_figure(plot_words(shown, toward), images[0])
    if given.space_posts > 0:
        images += draw_space(trained, folder, given.space_posts)
    title = f"{trained.facts['config']} on {trained.facts['data']}"
    write_atomically(folder / "index.html", page(title, shown, notes, images[1:], toward))
    return [folder / "index.html", *images]


_MASKED = (
    "Offensive words are masked: those that humans marked in the text, and words, their forms and compounds, that have "
    "many marks, alone or in toxic posts, among the training posts. Some may be harmless, and others may be left."
)
_MASKED_AS_LISTED = "Offensive words are masked: those of the list given, their forms and compounds."


class Hidden(NamedTuple):
    """Words to mask, and whether those that humans marked in the text itself are masked too."""

    words: Lexicon
    rationale: bool


def words_to_hide(trained: Trained, given: argparse.Namespace, listed: Lexicon | None) -> Hidden | None:
    """Tell which words are offensive; None where nothing is to be masked."""
    if given.unmasked:
        return None
    if listed is not None:
        return Hidden(listed, False)
    words = lexicon(trained.data.corpus.splits["train"], neutral_class(trained.data.classes))
    if not words.words:
        why = "as nobody marked words in its training posts"
        raise ValueError(f"explain: {trained.facts['data']}: expected --mask-words FILE, or --unmasked, {why}")
    return Hidden(words, True)


def read_posts(given: argparse.Namespace) -> tuple[list[Post] | None, list[str]]:
    """Read the texts asked for, None without any, and say what was left out."""
    posts, notes = [Post(f"text {i}", clean(text), -100) for i, text in enumerate(given.text, 1)], list[str]()
    if given.file is not None:
        name = given.file.name.removesuffix(".gz")
        if name.endswith((".jsonl", ".json")):
            posts += read_lines_corpus({"test": given.file})[0]["test"][: given.limit]
        else:
            numbered = list(enumerate(read_lines(given.file), 1))
            lines = [(number, line) for number, line in numbered if line.strip()]
            posts += [Post(f"line {number}", line, -100) for number, line in lines[: given.limit]]
            if blank := len(numbered) - len(lines):
                notes.append(f"{plural(blank, 'blank line')} of {given.file.name} left out")
    return posts if given.text or given.file is not None else None, notes


def examples(trained: Trained, limit: int) -> list[Post]:
    """Draw validation posts, toxic ones with a rationale where there are any."""
    posts, neutral = trained.data.corpus.splits["val"], neutral_class(trained.data.classes)
    toxic = [post for post in posts if post.rationale and post.label != neutral] or posts
    return [toxic[i] for i in np.random.default_rng(SEED).permutation(len(toxic))[:limit]]


def kinds_of(trained: Trained, asked: Sequence[str] | None) -> list[str]:
    """Choose the kinds of scores to show; one that was asked for and that the model cannot give is an error."""
    gated = trained.task.model.asrm is not None
    kinds = list(asked or (GATE if gated else ATTENTION, CONTRIBUTION))
    for kind in kinds:
        if kind in (GATE, CHANGE) and not gated:
            known = ", ".join(name for name in SHOWN if name not in (GATE, CHANGE))
            raise ValueError(
                f"explain: --scores: {kind!r} needs a calibration, which this model lacks; there are {known}"
            )
    return kinds


def show_posts(trained: Trained, rows: TextSet, asked: Sequence[str] | None, hide: Hidden | None) -> list[Shown]:
    """Score the words of posts, and mask them."""
    task, data, kinds = trained.task, trained.data, kinds_of(trained, asked)
    scores = all_scores(task, data, rows, attention=ATTENTION in kinds)
    if asked and ATTENTION in asked and ATTENTION not in scores:
        raise ValueError("explain: --scores: expected no 'attention', which this encoder does not return")
    kinds = [kind for kind in kinds if kind in scores]
    probabilities = softmax(predict(task, rows)) if len(rows) else np.zeros((0, 1))
    shown = []
    for i, post in enumerate(rows.posts):
        words, cut = words_read(post, rows.tokens.offsets[i], data.max_tokens)
        texts = [post.text[start:end] for start, end in words]
        if hide is not None:
            hidden = hidden_words(post, words, hide.words, rationale=hide.rationale)
            texts = [mask_word(word) if one else word for word, one in zip(texts, hidden, strict=True)]
        said = int(probabilities[i].argmax())
        title = f"{post.id}: predicted {data.classes[said]} ({probabilities[i, said]:.2f})"
        title += f", labelled {data.classes[post.label]}" if 0 <= post.label < len(data.classes) else ""
        found = {kind: word_scores(rows.tokens.offsets[i], scores[kind][i], words) for kind in kinds}
        marks = None if post.rationale is None else marks_of(post, words)
        shown.append(Shown(title, texts, found, marks, cut))
    return shown


def words_read(post: Post, offsets: np.ndarray, most: int) -> tuple[list[Range], int]:
    """Give the words of a post up to the last one that the model read, and count those behind it."""
    words = words_of(post)
    if len(offsets) < most:  # what is behind the last token then is no text to a tokenizer, but nothing was cut
        return words, 0
    end = offsets[:, 1].max(initial=0)
    read = [word for word in words if word[0] < end]
    return read, len(words) - len(read)


def draw_space(trained: Trained, folder: Path, limit: int) -> list[Path]:
    """Draw validation posts before and after the calibration: feature space, and similarities of pairs."""
    posts = trained.data.corpus.splits["val"]
    chosen = np.random.default_rng(SEED).permutation(len(posts))[:limit]
    rows = trained.data.text_set([posts[i] for i in np.sort(chosen)])
    before, after = pooled(trained, rows)
    if trained.task.model.asrm is None:
        after = None
    paths = [folder / "feature_space.png", folder / "similarity.png"]
    save_figure(plot_space(before, after, rows.labels, trained.data.classes), paths[0])
    save_figure(plot_similarity(before, after, rows.labels), paths[1])
    return paths


@torch.inference_mode()
def pooled(trained: Trained, rows: TextSet) -> tuple[np.ndarray, np.ndarray]:
    """Give the means over tokens before and after the calibration, `(N, H)` each."""
    task = trained.task
    vectors = np.zeros((2, len(rows), trained.data.hidden_features))
    for index, batch in batches(rows):
        mask = batch["mask"].to(task.device)
        output = task.model(batch["inputs"].to(task.device), mask, return_gate=True)
        for place, tokens in enumerate((output.states, output.tokens)):
            vectors[place, index] = masked_mean(tokens, mask).double().cpu().numpy()
    return vectors[0], vectors[1]
