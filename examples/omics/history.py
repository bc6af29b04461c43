"""Losses and accuracies over the epochs, in a CSV beside the checkpoint, and what they say about the fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.robustness.rows import write_atomically
from examples.pipeline.callbacks import MONITOR

from .metrics import answer, class_scores

HISTORY = "history.csv"
COLUMNS = ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "select", "lr", "val_rows", "classes")
# Rules of the verdict.
GAP = 0.05  # of balanced accuracy between train and validation
RISE = 0.25  # of the validation loss over its minimum, as a share of it
LOW = 0.5  # of the way from chance to 1 that training rows must go
LATE = 0.1  # share of the epochs at the end within which a best epoch says that training was too short


class History(Callback):
    """Measure training and validation rows after every epoch, both in evaluation mode, and write the CSV.

    The loss is the cross entropy, accuracy is balanced: what train and validation are compared by must not differ in
    dropout, samplers and auxiliary losses. The lines are in the checkpoints, so that a resumed run goes on with them.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, found = trainer.datamodule.sets["train"], trainer.callback_metrics
        answers = answer(pl_module, rows.batch(slice(None)), rows.label.numpy())
        scores = class_scores(answers.logits, answers.label)
        pl_module.train()
        line = {
            "epoch": trainer.current_epoch,
            "train_loss": scores["nll"],
            "val_loss": float(found["val_nll"]),
            "train_accuracy": scores["balanced_accuracy"],
            "val_accuracy": float(found["val_balanced_accuracy"]),
            "select": float(found[MONITOR]),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "val_rows": trainer.datamodule.sets["val"].count,
            "classes": len(trainer.datamodule.classes),
        }
        self.lines = [one for one in self.lines if one["epoch"] < line["epoch"]] + [line]
        if trainer.is_global_zero:
            write_atomically(Path(trainer.default_root_dir) / HISTORY, history_text(self.lines))

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lines = list(state_dict["lines"])


def history_text(lines: Sequence[dict[str, float]]) -> str:
    """Write the CSV, with all digits: `select` breaks ties by a share that a rounded number no longer shows."""
    return pd.DataFrame(lines, columns=list(COLUMNS)).to_csv(index=False)


def read_history(path: Path) -> pd.DataFrame:
    """Read the CSV of a run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has no lines or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `fit` writes it beside the checkpoint")
    try:
        frame = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path}: expected a CSV file ({error})") from None
    lacking = [name for name in COLUMNS if name not in frame]
    if lacking or frame.empty:
        raise ValueError(f"{path}: expected lines with {', '.join(COLUMNS)}, it lacks {', '.join(lacking) or 'lines'}")
    return frame


class Verdict(NamedTuple):
    """``kind``: "underfitting", "too short", "overfitting", "stopped in time" or "good"; ``text`` with the figures."""

    kind: str
    text: str
    best: int


def verdict(frame: pd.DataFrame) -> Verdict:
    """Say whether a run under- or overfits, from its history, by the first rule that holds.

    At the best epoch, with balanced accuracies of training and validation rows:

    1. underfitting: training accuracy has not gone half of the way from chance (1 / classes) to 1;
    2. overfitting: the gap of train minus validation exceeds 0.05 and two standard errors of the validation accuracy,
       and the validation loss is above its minimum of any epoch by more than a quarter, too;
    3. gap: only the first of these. The validation rows are harder, while their loss is still about the lowest;
    4. too short: the best epoch is among the last tenth, and the validation loss had its minimum there as well;
    5. stopped in time: the validation loss rose by more than a quarter after its minimum, but later than the best
       epoch, which is what is kept;
    6. good: none of these.

    Args:
        frame: What `read_history` returns.
    """
    best = int(frame["select"].fillna(-np.inf).to_numpy().argmax())
    line, loss, epochs = frame.iloc[best], frame["val_loss"], len(frame)
    chance = 1 / line["classes"]
    train, val = float(line["train_accuracy"]), float(line["val_accuracy"])
    gap, error = train - val, np.sqrt(max(val * (1 - val), 1e-4) / line["val_rows"])
    lowest = max(float(loss.min()), 1e-3)
    rise_at_best, rise_at_end = float(line["val_loss"]) / lowest - 1, float(loss.iloc[-1]) / lowest - 1
    wide = gap > max(GAP, 2 * error)
    last = epochs - max(int(LATE * epochs), 1)
    if train < chance + LOW * (1 - chance):
        kind, why = "underfitting", f"training accuracy is below {chance + LOW * (1 - chance):.2f}"
    elif wide and rise_at_best > RISE:
        kind, why = "overfitting", f"wide gap, and validation loss {rise_at_best:.0%} above its minimum"
    elif wide:
        kind = "gap"
        why = (
            f"training rows are fitted better than validation rows, whose loss is {rise_at_best:.0%} above its minimum"
        )
        why += f" and ends {rise_at_end:.0%} above it" if rise_at_end > RISE else ""
    elif epochs > 1 and best >= last and int(loss.argmin()) >= last:
        kind, why = "too short", "the last epochs were still the best"
    elif rise_at_end > RISE:
        kind, why = "stopped in time", f"validation loss ends {rise_at_end:.0%} above its minimum, after the best epoch"
    else:
        kind, why = "good", "no wide gap, no rise of the validation loss"
    figures = f"balanced accuracy {train:.3f} on training, {val:.3f} ± {error:.3f} on validation rows"
    return Verdict(kind, f"{kind} at epoch {int(line['epoch']) + 1} of {epochs}: {why}; {figures}", best)
