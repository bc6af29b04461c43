"""The `explain` command: which words a checkpoint looks at, and what the calibration does to the feature space."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.robustness.drawing import save_figure
from benchmarks.robustness.rows import write_atomically
from examples.pipeline.arguments import Arguments, count, split_overrides
from mmrobust.masking import masked_mean

from .batches import TextSet
from .hatexplain import read_lines_corpus
from .masking import hidden_words, lexicon, mask_word, read_list
from .measure import all_scores, subset
from .metrics import neutral_class, softmax
from .plots import plot_similarity, plot_space
from .posts import Post
from .rationales import marks_of, word_scores, words_of
from .saliency import ATTENTION, CONTRIBUTION, GATE, MEANING, batches, predict
from .shading import Shown, page, plot_words
from .tables import read_lines
from .trained import Trained, open_checkpoint

SEED = 0


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
    parser.add_argument("--limit", type=count, default=10, help="at most so many posts of the file, or of validation")
    parser.add_argument("--scores", nargs="+", choices=list(MEANING), help="default: gate or attention; contribution")
    parser.add_argument("--mask-words", type=Path, help="file of offensive words, one a line, in place of the default")
    parser.add_argument("--unmasked", action="store_true", help="show offensive words in full")
    parser.add_argument("--space-posts", type=int, default=600, help="validation posts in the feature space; 0 = none")
    parser.add_argument("--out", type=Path, help="folder for page and pictures (default: explanation beside the file)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    print(*map(str, explain(given, overrides)), sep="\n")


def explain(given: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Explain the texts of the parsed arguments; without any, toxic validation posts with a rationale."""
    folder = given.out or given.checkpoint.parent / "explanation"
    posts = read_posts(given)  # before the data is read, which takes longer
    listed = read_list(given.mask_words) if given.mask_words else None
    trained = open_checkpoint(given.checkpoint, overrides, folder / "configs")
    rows = examples(trained, given.limit) if posts is None else trained.data.text_set(posts)
    shown = show_posts(trained, rows, given, listed)
    notes = [f"{rows.tokens.truncated} texts of more than {trained.data.max_tokens} tokens cut"]
    notes = notes if rows.tokens.truncated else []
    if not given.unmasked:
        notes.append("Offensive words are masked: those of the list given." if listed is not None else _MASKED)
    images = [folder / "words.png"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of emoji, which the font lacks
        save_figure(plot_words(shown), images[0])
    if given.space_posts > 0:
        images += draw_space(trained, folder, given.space_posts)
    title = f"{trained.facts['config']} on {trained.facts['data']}"
    write_atomically(folder / "index.html", page(title, shown, notes, images[1:]))
    return [folder / "index.html", *images]


_MASKED = (
    "Offensive words are masked: those that humans marked, and words marked in more than three tenths of their uses in "
    "the training posts. Others may be left."
)


def read_posts(given: argparse.Namespace) -> list[Post] | None:
    """Read the texts asked for; None without any."""
    posts = [Post(f"text {i}", text, -100) for i, text in enumerate(given.text, 1)]
    if given.file is not None:
        name = given.file.name.removesuffix(".gz")
        if name.endswith((".jsonl", ".json")):
            posts += read_lines_corpus({"test": given.file})[0]["test"][: given.limit]
        else:
            lines = [line for line in read_lines(given.file) if line.strip()][: given.limit]
            posts += [Post(f"line {i}", line, -100) for i, line in enumerate(lines, 1)]
    return posts if given.text or given.file is not None else None


def examples(trained: Trained, limit: int) -> TextSet:
    """Draw validation posts, toxic ones with a rationale where there are any."""
    rows, neutral = trained.data.sets["val"], neutral_class(trained.data.classes)
    toxic = [i for i, post in enumerate(rows.posts) if post.rationale and post.label != neutral]
    toxic = toxic or list(range(len(rows)))
    chosen = np.random.default_rng(SEED).permutation(toxic)[:limit]
    return subset(rows, chosen.tolist())


def show_posts(
    trained: Trained, rows: TextSet, given: argparse.Namespace, listed: frozenset[str] | None
) -> list[Shown]:
    """Score the words of posts, and mask them."""
    task, data = trained.task, trained.data
    scores = all_scores(task, data, rows, attention=GATE not in (given.scores or [GATE]) or task.model.asrm is None)
    kinds = given.scores or [GATE if GATE in scores else ATTENTION, CONTRIBUTION]
    kinds = [kind for kind in kinds if kind in scores]
    hide = listed if listed is not None else lexicon(data.corpus.splits["train"])
    probabilities = softmax(predict(task, rows)) if len(rows) else np.zeros((0, 1))
    shown = []
    for i, post in enumerate(rows.posts):
        words = words_of(post)
        hidden = hidden_words(post, words, hide, rationale=listed is None) & (not given.unmasked)
        texts = [post.text[start:end] for start, end in words]
        texts = [mask_word(word) if one else word for word, one in zip(texts, hidden, strict=True)]
        said = int(probabilities[i].argmax())
        title = f"{post.id}: predicted {data.classes[said]} ({probabilities[i, said]:.2f})"
        title += f", labelled {data.classes[post.label]}" if 0 <= post.label < len(data.classes) else ""
        found = {kind: word_scores(rows.tokens.offsets[i], scores[kind][i], words) for kind in kinds}
        marks = None if post.rationale is None else marks_of(post, words)
        shown.append(Shown(title, texts, found, marks))
    return shown


def draw_space(trained: Trained, folder: Path, limit: int) -> list[Path]:
    """Draw validation posts before and after the calibration: feature space, and similarities of pairs."""
    rows = trained.data.sets["val"]
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:limit]
    rows = subset(rows, np.sort(chosen).tolist())
    before, after = pooled(trained, rows)
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
        states = output.tokens if output.gate is None else output.tokens / output.gate.clamp(min=1e-6)
        for place, tokens in enumerate((states, output.tokens)):
            vectors[place, index] = masked_mean(tokens, mask).double().cpu().numpy()
    return vectors[0], vectors[1]
