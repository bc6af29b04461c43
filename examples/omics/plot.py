"""The `plot` command: embeddings, class subspaces, confusion and training curves of checkpoints."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from benchmarks.robustness.drawing import COLORS, MARKERS, WIDTH, save_figure, tidy_axes
from benchmarks.robustness.metrics import confusion_matrix
from examples.pipeline.arguments import Arguments, split_overrides
from examples.pipeline.errors import DataError

from .history import HISTORY, Verdict, read_history, verdict
from .measure import answers_of
from .metrics import Answers
from .parts import PARTS
from .plots import draw_confusion
from .trained import Trained, open_checkpoint

METHODS = ("tsne", "umap", "pca")
PERPLEXITY = 30.0
UNKNOWN_COLOR = "#999999"


def plot_command(args: Sequence[str]) -> None:
    """Draw checkpoints, say whether they over- or underfit, and print the names of the files."""
    parser = Arguments(
        "python -m examples.omics plot",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="best.ckpt of one or more runs")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: plots beside the first)")
    parser.add_argument(
        "--method", choices=METHODS, default="tsne", help="of the embeddings; umap needs umap-learn (default: tsne)"
    )
    parser.add_argument("--part", choices=PARTS, default="test", help="rows to draw (default: test)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    folder = given.out or given.checkpoints[0].parent / "plots"
    several = len(given.checkpoints) > 1
    for number, path in enumerate(given.checkpoints):
        trained = open_checkpoint(path, overrides, folder / "configs")
        figures, said = draw(trained, given.part, given.method)
        print(f"{path}: {said.text}" if said else f"{path}: no {HISTORY} beside it, so no training curves")
        prefix = f"{number}_{trained.facts['config']}_" if several else ""
        for name, figure in figures.items():
            save_figure(figure, folder / f"{prefix}{name}.png")
            print(folder / f"{prefix}{name}.png")


def draw(trained: Trained, part: str, method: str) -> tuple[dict[str, Figure], Verdict | None]:
    """Draw all pictures of a checkpoint; also return what its history says, if it is there."""
    found = answers_of(trained.task, trained.data.sets[part])
    classes = trained.task.classes
    title = f"{trained.facts['data']} · {trained.facts['config']} · {part} rows"
    figures = {
        "embedding": plot_embedding(found, classes, method, title),
        "confusion": plot_matrix(found, classes, title),
    }
    if found.residual is not None:
        figures["subspaces"] = plot_subspaces(trained, found, title)
    history = trained.path.parent / HISTORY
    said = None
    if history.is_file():
        frame = read_history(history)
        said = verdict(frame)
        figures["curves"] = plot_history(frame, f"{trained.facts['data']} · {trained.facts['config']}")
    return figures, said


def flatten(vectors: np.ndarray, method: str) -> np.ndarray:
    """Bring vectors ``(N, H)`` into the plane; by PCA where there are too few for neighbours."""
    if method == "pca" or len(vectors) < 5:
        return PCA(2, random_state=0).fit_transform(vectors) if min(vectors.shape) > 1 else np.zeros((len(vectors), 2))
    if method == "umap":
        return _umap(vectors)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    flat = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    return np.asarray(TSNE(2, perplexity=perplexity, init="random", random_state=0).fit_transform(flat))


def _umap(vectors: np.ndarray) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError:
        raise DataError("--method umap: needs the package umap-learn (pip install umap-learn); or: tsne, pca") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed makes it run in one thread
        return np.asarray(UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=0).fit_transform(vectors))


def plot_embedding(found: Answers, classes: Sequence[str], method: str, title: str) -> Figure:
    """Draw the embeddings in the plane; rows that are classified wrongly have a ring."""
    assert found.embedding is not None
    points = flatten(found.embedding.astype(np.float64), method)
    figure = Figure(figsize=(WIDTH * 0.8, 5.4), layout="constrained")
    axes = figure.add_subplot()
    _scatter(axes, points, found.label, classes)
    wrong = (found.logits.argmax(axis=1) != found.label) & (found.label >= 0)
    axes.scatter(*points[wrong].T, s=60, facecolors="none", edgecolors="black", linewidths=0.8, label="wrong")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{title} · embeddings by {method}", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_subspaces(trained: Trained, found: Answers, title: str) -> Figure:
    """Draw coordinates in the class subspaces by their principal components, and the residuals to two classes.

    The left side shows projections c = U x onto the bases of all classes side by side, in the plane of their first
    two principal components; the right side the residual of each row to its own class and to the nearest other one,
    with what is rejected: rows above the diagonal are nearer to their own.
    """
    head = trained.task.prototypes
    assert head is not None and found.residual is not None and found.embedding is not None
    classes = trained.task.classes
    with torch.no_grad():
        x = torch.from_numpy(found.embedding)
        x = torch.nn.functional.normalize(x, dim=1) if head.normalize else x
        inside = torch.einsum("bd,ckd->bck", x, head.basis.to(x.dtype)).flatten(1).numpy()
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(left, flatten(inside.astype(np.float64), "pca"), found.label, classes)
    left.set_title("projections onto the class subspaces, by PCA", fontsize=9, loc="left")
    left.set_xticks([])
    left.set_yticks([])
    points = own_and_other(found)
    _scatter(right, points, found.label, classes)
    limits = [0.0, 1.05 * float(points.max())]
    right.plot(limits, limits, color="#777777", linewidth=0.8)
    if np.isfinite(float(head.threshold)):
        right.fill_between([float(head.threshold), limits[1]], float(head.threshold), limits[1], color="#00000014")
        right.set_title("residuals; shaded: rejected, as both are above the threshold", fontsize=9, loc="left")
    right.set_xlabel("residual to the own class (of unknown classes: to the nearest)", fontsize=9)
    right.set_ylabel("residual to the nearest other class", fontsize=9)
    tidy_axes(right)
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(8, len(names)), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def own_and_other(found: Answers) -> np.ndarray:
    """Return the residuals to the own class and to the nearest other one ``(N, 2)``.

    A row of an unknown class has none of its own: it gets those to the nearest two.
    """
    assert found.residual is not None
    rows = np.arange(len(found.label))
    place = np.where(found.label >= 0, found.label, found.residual.argmin(axis=1))
    others = found.residual.copy()
    others[rows, place] = np.inf
    return np.stack([found.residual[rows, place], others.min(axis=1)], axis=1)


def plot_matrix(found: Answers, classes: Sequence[str], title: str) -> Figure:
    """Draw the confusion matrix in shares of the true class."""
    counts = confusion_matrix(found.label, found.logits.argmax(axis=1), len(classes))
    size = 3.4 + 0.3 * len(classes)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    draw_confusion(axes, counts, classes)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    return figure


def plot_history(frame: pd.DataFrame, title: str) -> Figure:
    """Draw losses and accuracies of training and validation rows over the epochs, with the verdict."""
    said = verdict(frame)
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    for axes, name, what in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("Cross entropy", "Balanced accuracy"), strict=True
    ):
        for part, color, style in (("train", COLORS[1], "-"), ("val", COLORS[2], "--")):
            label = {"train": "training rows", "val": "validation rows"}[part]
            axes.plot(frame["epoch"] + 1, frame[f"{part}_{name}"], color=color, linestyle=style, label=label)
        axes.axvline(frame["epoch"].iloc[said.best] + 1, color="#777777", linestyle=":", linewidth=1.2, label="kept")
        axes.set_xlabel("Epoch")
        axes.set_ylabel(what)
        tidy_axes(axes)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle("\n".join([title, *textwrap.wrap(said.text, 130)]), fontsize=9, x=0.01, ha="left")
    return figure


def _scatter(axes: Axes, points: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> None:
    look: dict[str, Any] = {"s": 14, "alpha": 0.75, "linewidths": 0}
    for code, name in enumerate(classes):
        rows = label == code
        color, marker = COLORS[1 + code % (len(COLORS) - 1)], MARKERS[code % len(MARKERS)]
        axes.scatter(points[rows, 0], points[rows, 1], color=color, marker=marker, label=name, **look)
    if (label < 0).any():
        rows = label < 0
        axes.scatter(points[rows, 0], points[rows, 1], color=UNKNOWN_COLOR, marker="x", s=18, label="unknown")
