"""Robustness protocols: views of one model, one row per run, statistics, tables and pictures of all runs."""

from benchmarks.robustness.corruption import (
    CORRUPTIONS,
    CorruptedPrediction,
    Corruption,
    corrupt,
    corrupted_predictions,
)
from benchmarks.robustness.metrics import (
    LOWER_IS_BETTER,
    Scores,
    classification_scores,
    confusion_matrix,
    masked_mse,
    score_predictions,
)
from benchmarks.robustness.protocol import EvaluationSet, Evaluator, Predict, Prediction
from benchmarks.robustness.regret import regret_view
from benchmarks.robustness.rows import (
    ID_COLUMNS,
    Column,
    View,
    parse_column,
    parse_corruption,
    read_rows,
    run_row,
    tidy,
    update_rows,
    write_rows,
)
from benchmarks.robustness.statistics import Summary, bootstrap_means, compare, summarize
from benchmarks.robustness.tables import difference_table, summary_table, view_table
from benchmarks.robustness.views import (
    RATES,
    clean_view,
    corruption_view,
    evaluate_views,
    missing_view,
    subset_view,
)

__all__ = [
    "CORRUPTIONS",
    "ID_COLUMNS",
    "LOWER_IS_BETTER",
    "RATES",
    "Column",
    "CorruptedPrediction",
    "Corruption",
    "EvaluationSet",
    "Evaluator",
    "Predict",
    "Prediction",
    "Scores",
    "Summary",
    "View",
    "bootstrap_means",
    "classification_scores",
    "clean_view",
    "compare",
    "confusion_matrix",
    "corrupt",
    "corrupted_predictions",
    "corruption_view",
    "difference_table",
    "evaluate_views",
    "masked_mse",
    "missing_view",
    "parse_column",
    "parse_corruption",
    "read_rows",
    "regret_view",
    "run_row",
    "score_predictions",
    "subset_view",
    "summarize",
    "summary_table",
    "tidy",
    "update_rows",
    "view_table",
    "write_rows",
]
