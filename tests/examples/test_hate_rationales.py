"""Words, plausibility, character spans, and scores of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from examples.hate_speech.batches import TextSet
from examples.hate_speech.data import TextData
from examples.hate_speech.measure import Wanted, all_scores, measure, notes_of, scores_of_words, span_view, subset
from examples.hate_speech.posts import Post
from examples.hate_speech.rationales import (
    Spans,
    character_f1,
    iou_f1,
    marked_ranges,
    marks_of,
    plausibility,
    runs,
    top_words,
    word_scores,
    words_of,
)
from examples.hate_speech.saliency import attention_scores, faithfulness, log_odds, predict, token_scores
from examples.hate_speech.task import HateTask
from mmrobust.models.text import TextClassifierOutput
from tests.examples import hate_sets as sets

TREE = Post("1", "amber birch-cedar, fern", 0, None, ((0, 5), (12, 17)))


class TestWords:
    def test_published_tokens_or_words_and_punctuation(self) -> None:
        assert [TREE.text[start:end] for start, end in words_of(TREE)] == ["amber", "birch", "-", "cedar", ",", "fern"]
        post = Post("2", "a <user> b", 0, ("a", "<user>", "b"))
        assert [post.text[start:end] for start, end in words_of(post)] == ["a", "<user>", "b"]

    def test_marks(self) -> None:
        assert marks_of(TREE, words_of(TREE)).tolist() == [True, False, False, True, False, False]
        assert not marks_of(TREE._replace(rationale=None), words_of(TREE)).any()
        assert marks_of(Post("", "", 0), []).shape == (0,)

    def test_a_word_has_the_highest_score_of_its_tokens_and_no_special_token_counts(self) -> None:
        offsets = np.array([[0, 0], [0, 2], [2, 5], [6, 9], [0, 0]])
        found = word_scores(offsets, np.array([9.0, 1.0, 3.0, -2.0, 9.0]), [(0, 5), (6, 9), (10, 12)])
        assert found.tolist() == [3.0, -2.0, -2.0]  # the last was cut off

    def test_text_without_tokens_or_words(self) -> None:
        assert word_scores(np.zeros((2, 2), int), np.ones(2), [(0, 3)]).tolist() == [0.0]
        assert word_scores(np.zeros((2, 2), int), np.ones(2), []).shape == (0,)


def trapezoids(scores: np.ndarray, marks: np.ndarray) -> float:
    """Write out the area under the precision-recall curve of scores that all differ, from (recall 0, precision 1)."""
    hits = np.cumsum(marks[np.argsort(-scores)])
    recall = np.concatenate([[0.0], hits / marks.sum()])
    precision = np.concatenate([[1.0], hits / np.arange(1, len(hits) + 1)])
    return float(((recall[1:] - recall[:-1]) * (precision[1:] + precision[:-1]) / 2).sum())


class TestPlausibility:
    def test_a_perfect_score(self) -> None:
        marks = np.array([True, True, False, False, False, True, True, True])
        found = plausibility([marks.astype(float)], [marks])
        assert found.auprc == found.average_precision == found.auroc == found.token_f1 == found.iou_f1_spans == 1
        assert found.posts == 1
        # Single words cover half of a pair, and a third of three.
        assert found.iou_f1 == pytest.approx(2 * 0.4 * 1.0 / 1.4)

    def test_equals_definitions(self, rng: np.random.Generator) -> None:
        scores = [rng.random(size) for size in (7, 12, 5)]
        marks = [rng.random(len(score)) < 0.5 for score in scores]
        marks[2][:] = True
        found = plausibility(scores, marks, top=3)
        f1 = [f1_score(mark, score >= np.sort(score)[-3]) for score, mark in zip(scores, marks, strict=True)]
        assert found.token_f1 == pytest.approx(np.mean(f1))
        precision = [average_precision_score(mark, score) for score, mark in zip(scores, marks, strict=True)]
        assert found.average_precision == pytest.approx(np.mean(precision))
        assert found.auprc == pytest.approx(np.mean([trapezoids(*pair) for pair in zip(scores, marks, strict=True)]))
        areas = [roc_auc_score(mark, score) for score, mark in zip(scores[:2], marks[:2], strict=True)]
        assert found.auroc == pytest.approx(np.mean(areas))  # of the third all words are marked

    def test_by_hand(self) -> None:
        # Precision and recall after each word, the highest first: (1, 1/2), (1/2, 1/2), (2/3, 1), (1/2, 1).
        found = plausibility([np.array([1.0, 4.0, 3.0, 2.0])], [np.array([False, True, False, True])], top=1)
        assert found.auprc == pytest.approx(1 / 2 + (1 / 2 + 2 / 3) / 2 / 2)
        assert found.average_precision == pytest.approx(1 / 2 + 2 / 3 / 2)
        assert found.auroc == pytest.approx(3 / 4)
        assert found.token_f1 == found.iou_f1 == found.iou_f1_spans == pytest.approx(2 / 3)

    def test_top_words(self) -> None:
        scores = np.array([0.5, 0.9, 0.1, 0.5])
        assert [np.flatnonzero(top_words(scores, count)).tolist() for count in (1, 2, 9)] == [[1], [1, 3], [0, 1, 2, 3]]
        assert top_words(np.zeros(0)).shape == (0,)

    def test_equal_scores(self) -> None:
        found = plausibility([np.ones(8)], [np.arange(8) < 2])
        assert found.average_precision == 0.25
        assert found.auprc == pytest.approx((1 + 0.25) / 2)  # as the benchmark has it
        assert found.auroc == 0.5

    def test_posts_without_a_mark_do_not_count(self) -> None:
        marks = np.array([True, False])
        one = plausibility([np.array([1.0, 0.0])], [marks])
        assert plausibility([np.array([1.0, 0.0])] * 2, [marks, ~marks & False]) == one
        assert np.isnan(plausibility([], []).auprc)

    def test_partial_match_as_in_eraser(self) -> None:
        # One of two predictions is right, one of three true spans is found; a post without predictions lowers recall.
        pairs = [([(0, 2), (5, 6)], [(0, 3), (7, 8), (9, 10)]), ([], [(0, 1)])]
        assert iou_f1(pairs) == pytest.approx(2 * 0.5 * (1 / 6) / (0.5 + 1 / 6))
        assert iou_f1([([(0, 1)], [(3, 4)])]) == iou_f1([]) == 0

    def test_runs(self) -> None:
        assert runs(np.zeros(0, bool)) == []
        assert runs(np.array([False, True, True])) == [(1, 3)]


class TestCharacters:
    def test_f1_equals_that_of_sets(self, rng: np.random.Generator) -> None:
        for _ in range(20):
            masks = rng.random((2, 30)) < 0.4
            a, b = (set(np.flatnonzero(mask).tolist()) for mask in masks)
            assert character_f1(*map(runs, masks)) == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
        assert character_f1([], []) == 1
        assert character_f1([(0, 3)], []) == 0

    def test_neighbours_take_what_is_between_them(self) -> None:
        words = [(0, 2), (3, 5), (7, 9)]
        assert marked_ranges(words, np.array([True, True, False])) == [(0, 5)]
        assert marked_ranges(words, np.array([True, False, True])) == [(0, 2), (7, 9)]

    def test_the_threshold_is_the_best_one(self) -> None:
        words = [[(0, 2), (3, 5), (6, 8)]] * 3
        scores = [np.array([0.9, 0.2, 0.1]), np.array([0.8, 0.3, 0.2]), np.array([0.1, 0.4, 0.3])]
        spans = Spans(words, scores, [[(0, 2)], [(0, 2)], []])
        threshold = spans.best_threshold()
        assert 0.4 <= threshold < 0.8
        assert spans.f1(threshold) == 1
        assert Spans(words, scores, [[], [], []]).f1(Spans(words, scores, [[]] * 3).best_threshold()) == 1
        assert Spans([[]], [np.zeros(0)], [[]]).best_threshold() == 0


# --- scores of tokens


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[override]
    return sets.write_hatexplain(tmp_path_factory.mktemp("hatexplain"))


def data_of(root: Path, **options: Any) -> TextData:
    return TextData(str(root), "tiny", **{"max_tokens": 32, "batch_size": 4, "cache": None} | options)


def task_of(data: TextData, **options: Any) -> HateTask:
    torch.manual_seed(0)
    encoder = None if data.frozen else data.encoder.new_model()
    task = HateTask(data.hidden_features, list(data.classes), encoder=encoder, **options)
    for parameter in [] if task.model.asrm is None else task.model.asrm.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # not the identity any more
    return task.eval()


class OneWord(torch.nn.Module):
    """Reads one word: logits are those of a text without it, and `more` where the word is in it."""

    def __init__(self, word: int, logits: list[float], more: list[float]) -> None:
        super().__init__()
        self.word = word
        self.register_buffer("logits", torch.tensor(logits))
        self.register_buffer("more", torch.tensor(more))

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor, *, return_gate: bool = False) -> TextClassifierOutput:
        found = ((inputs == self.word) & mask).any(1).float()
        nothing = inputs.new_zeros(0)
        return TextClassifierOutput(self.logits + found[:, None] * self.more, nothing, nothing, None, nothing)


def task_of_amber(data: TextData, logits: list[float], more: list[float]) -> HateTask:
    task = HateTask(data.hidden_features, list(data.classes))
    task.model = OneWord(data.encoder.tokenizer.convert_tokens_to_ids("amber"), logits, more)
    return task


@pytest.mark.parametrize("asrm", ["none", "asrm", "span", "position", "contrastive"])
@pytest.mark.parametrize("frozen", [True, False])
def test_scores_of_every_calibration(root: Path, asrm: str, frozen: bool) -> None:
    data = data_of(root, frozen=frozen)
    task, rows = task_of(data, asrm=asrm), data.sets["test"]
    scores = token_scores(task, rows)
    gates = set() if asrm == "none" else {"gate", "change"}
    assert set(scores) == {"contribution", "gradient"} | gates
    for each in scores.values():
        assert [len(one) for one in each] == rows.lengths.tolist()
        assert all(np.isfinite(one).all() for one in each)
    if gates:
        spread = max(float(np.ptp(one)) for one in scores["gate"])
        assert (spread < 1e-6) == (asrm == "asrm")  # one gate for all tokens


def test_contributions_add_up_to_the_log_odds(root: Path) -> None:
    data = data_of(root)
    two = HateTask(data.hidden_features, ["normal", "hate"]).eval()
    rows = data.sets["test"]
    logits = predict(two, rows)
    # With two classes the log odds are linear in the tokens: contributions are exact.
    bias = two.model.head.bias.detach().double().numpy()
    for one, (normal, hate) in zip(token_scores(two, rows)["contribution"], logits, strict=True):
        assert one.sum() == pytest.approx(hate - normal - (bias[1] - bias[0]), abs=1e-5)


def test_scores_do_not_depend_on_the_batch(root: Path) -> None:
    data = data_of(root)
    task, rows = task_of(data, asrm="span"), data.sets["test"]
    alone = token_scores(task, subset(rows, [5]))
    whole = token_scores(task, rows)
    for name in ("gate", "change", "contribution", "gradient"):
        np.testing.assert_allclose(alone[name][0], whole[name][5], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("asrm", ["asrm", "span", "position", "contrastive"])
def test_gate_and_change_are_what_the_calibration_does(root: Path, asrm: str) -> None:
    data = data_of(root)
    task, rows = task_of(data, asrm=asrm), data.sets["test"]
    found, opened = token_scores(task, rows), []
    for i in range(len(rows)):
        batch = rows[i]
        with torch.no_grad():
            (gate,) = task.model(batch["inputs"], batch["mask"], return_gate=True).gate
        opened.append(gate)
        states = batch["inputs"][0]  # an encoder that is frozen has run already, and dropout is off
        np.testing.assert_allclose(found["gate"][i], (gate - 1).abs().mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["change"][i], ((gate - 1) * states).norm(dim=1), rtol=1e-3, atol=1e-5)
    assert min(gate.min() for gate in opened) < 0.9  # where the sign matters


def test_attention_received_is_that_of_the_last_layer(root: Path) -> None:
    data = data_of(root, frozen=False)
    rows, model = data.sets["test"], data.encoder.new_model()
    found = attention_scores(data.encoder, model, rows.posts)
    model.set_attn_implementation("eager")
    assert found is not None
    for one, ids in zip(found, rows.tokens.ids, strict=True):
        with torch.no_grad():
            (weights,) = model(input_ids=torch.from_numpy(ids)[None], output_attentions=True).attentions[-1]
        # Heads, tokens that look, tokens that are looked at: what is given sums to 1, what is received does not.
        np.testing.assert_allclose(one, weights.mean((0, 1)), rtol=1e-4, atol=1e-6)
        assert np.ptp(one) > 1e-3


def test_attention_is_what_tokens_receive(root: Path) -> None:
    data = data_of(root, frozen=False)
    rows, model = data.sets["test"], data.encoder.model
    before = model.config._attn_implementation
    found = attention_scores(data.encoder, model, rows.posts)
    assert found is not None
    assert [len(one) for one in found] == rows.lengths.tolist()
    assert all(one.sum() == pytest.approx(1, abs=1e-5) for one in found)
    assert model.config._attn_implementation == before
    assert attention_scores(data.encoder, torch.nn.Linear(2, 2), rows.posts) is None
    assert "attention" in all_scores(task_of(data), data, rows, attention=True)


def test_log_odds() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    odds = torch.logsumexp(logits[0, [0, 2]], 0) - logits[0, 1]
    torch.testing.assert_close(log_odds(logits, ("hate", "normal", "offensive")), odds[None])
    torch.testing.assert_close(log_odds(logits, ("a", "b", "c")), logits[:, 2] - torch.logsumexp(logits[:, :2], 1))


def test_faithfulness_removes_and_keeps_words(root: Path) -> None:
    data = data_of(root)
    task, rows = task_of(data), data.sets["test"]
    words = [words_of(post) for post in rows.posts]
    scores = [np.arange(len(one), dtype=float) for one in words]
    found = faithfulness(task, data, rows, words, scores, predict(task, rows), top=100)
    # All words removed, or all kept: the texts are empty, or the same as before.
    assert found["sufficiency"] == pytest.approx(0, abs=1e-3)
    empty = data.text_set([Post("", "", 0)])
    said = predict(task, rows).argmax(1)
    whole, none = (torch.from_numpy(predict(task, one)).softmax(1).numpy() for one in (rows, empty))
    expected = np.mean(whole[np.arange(len(rows)), said] - none[0, said])
    assert found["comprehensiveness"] == pytest.approx(expected, abs=1e-3)


def test_faithfulness_by_hand(root: Path) -> None:
    """With "amber" the model says offensive, without it normal; posts of either kind have it as the highest word."""
    data = data_of(root, frozen=False)
    task = task_of_amber(data, [0.0, 1.0, 0.0], [0.0, 0.0, 3.0])
    rows = data.text_set([Post("", text, 0) for text in ("amber fern kelp", "fern amber kelp", "kelp amber", "fern")])
    scores = [np.array(one, float) for one in ([3, 2, 1], [2, 3, 1], [2, 1], [1])]
    words = [words_of(post) for post in rows.posts]
    found = faithfulness(task, data, rows, words, scores, predict(task, rows), top=1)
    said, unsaid = (np.exp(x) / (1 + np.e + np.exp(3)) for x in (3, 1))
    offensive, normal = 1 / (2 + np.e), np.e / (2 + np.e)
    assert unsaid < offensive < normal < said
    # Of two texts "amber" goes and what was said is said no more; alone it says the same as the text.
    assert found["comprehensiveness"] == pytest.approx(2 * (said - offensive) / 4)
    # Of the third only another word is left, and of the last nothing changes.
    assert found["sufficiency"] == pytest.approx((said - offensive) / 4)


def test_bias_is_measured_against_the_label(tmp_path: Path) -> None:
    data = data_of(sets.write_groups(tmp_path), frozen=False)
    view = measure(task_of_amber(data, [0.0, 1.0, 0.0], [3.0, 0.0, 0.0]), data, Wanted(False))["bias"]
    # Posts with "amber" score high. Of Women: two of three toxic posts, no normal one; of Islam: the toxic one, and one
    # of two normal ones.
    women = {"subgroup": 5 / 6, "bpsn": 1.0, "bnsp": 7 / 12}
    islam = {"subgroup": 3 / 4, "bpsn": 7 / 12, "bnsp": 1.0}
    assert view["Women"] == pytest.approx(women)
    assert view["Islam"] == pytest.approx(islam)
    assert view["generalized mean"]["groups"] == 2
    assert view["generalized mean"]["subgroup"] == pytest.approx((((5 / 6) ** -5 + (3 / 4) ** -5) / 2) ** (-1 / 5))
    assert all(np.isnan(x) for x in view["African"].values())


def test_thresholds_of_spans_are_chosen_on_validation(root: Path, tmp_path: Path) -> None:
    # By the number of pieces, 1, 2 and 5, the best threshold is above 2 in validation, and in test below.
    rows = ["train,[],amber", 'trial,"[[9, 14]]",amber am ambre', 'test,"[[6, 14]]",amber am ambre']
    sets.write(tmp_path / "toxic_spans.csv", "\n".join(["split,spans,text", *rows, ""]))
    data = data_of(root)
    found = span_view(task_of(data), data, Wanted(False, False, str(tmp_path)))["pieces"]
    assert 2 <= found["threshold"] < 5
    assert found["val_f1"] == 1
    assert found["f1"] == pytest.approx(2 * 5 / (5 + 8))


def test_cut_posts_with_spans_are_counted(root: Path, tmp_path: Path) -> None:
    long = "amber " * 40
    rows = ["train,[],amber", "trial,[],amber", f'test,"[[0, 5]]",{long}', f"test,[],{long}"]
    sets.write(tmp_path / "toxic_spans.csv", "\n".join(["split,spans,text", *rows, ""]))
    data = data_of(root)
    note = f"2 texts of {tmp_path.name} of more than {data.max_tokens} tokens cut (test 2)"
    assert notes_of(data, str(tmp_path)) == [*data.notes, note]
    assert notes_of(data, "") == list(data.notes)


def test_measures_everything(root: Path, tmp_path: Path) -> None:
    data = data_of(root)
    spans = str(sets.write_spans(tmp_path))
    views = measure(task_of(data, asrm="span"), data, Wanted(faithfulness=True, attention=True, spans=spans))
    assert set(views) == {"val", "test", "class", "confusion", "bias", "rationale", "spans"}
    kinds = {"contribution", "gradient", "gate", "change", "random", "pieces", "attention"}
    assert set(views["rationale"]) == set(views["spans"]) == kinds
    assert views["rationale"]["gate"]["posts"] == 8
    assert {"comprehensiveness", "sufficiency", "auprc"} <= set(views["rationale"]["gate"])
    plain = measure(task_of(data), data, Wanted(faithfulness=False))
    assert "spans" not in plain
    assert "sufficiency" not in plain["rationale"]["contribution"]


def test_faithfulness_is_measured_with_the_predictions_of_the_same_posts(root: Path) -> None:
    data = data_of(root)
    # Posts that are not measured are between those that are.
    data.sets["test"].posts[:] = [post._replace(rationale=None) if i % 3 == 0 else post for i, post in numbered(data)]
    task, neutral = task_of(data, asrm="span"), data.classes.index("normal")
    marked = [i for i, post in numbered(data) if post.label != neutral and post.rationale]
    assert marked != list(range(len(marked)))
    rows = subset(data.sets["test"], marked)
    words = [words_of(post) for post in rows.posts]
    scores = scores_of_words(task, data, rows, words, attention=False)["pieces"]
    expected = faithfulness(task, data, rows, words, scores, predict(task, rows))
    view = measure(task, data, Wanted(attention=False))["rationale"]["pieces"]
    assert {name: view[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def numbered(data: TextData) -> list[tuple[int, Post]]:
    return list(enumerate(data.sets["test"].posts))


def test_empty_text_and_text_of_ten_thousand_tokens(root: Path) -> None:
    data = data_of(root)
    task = task_of(data, asrm="span")
    rows = data.text_set([Post("a", "", 0), Post("b", "amber " * 10_000, 0)])
    assert rows.tokens.truncated == 1
    assert np.isfinite(predict(task, rows)).all()
    scores = token_scores(task, rows)["gate"]
    assert len(scores[1]) == 32
    assert word_scores(rows.tokens.offsets[1], scores[1], words_of(rows.posts[1])).shape == (10_000,)
    assert predict(task, TextSet([], data.encoder.encode([]), [])).shape == (0, 3)
