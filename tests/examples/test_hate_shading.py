"""Shaded words: strengths, ranges, legend, and letters that the fonts lack."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.robustness.drawing import save_figure
from examples.hate_speech import shading
from examples.hate_speech.shading import BLUE, FAINT, RED, Shown, legend, page, plot_words, range_of, shades, width_of

MISSING = "\U0001fae8"  # a letter that is made out to be in no font


@pytest.fixture(autouse=True)
def _fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only one font be installed."""
    mono = shading._fonts()["monospace"]
    monkeypatch.setattr(shading, "_fonts", lambda: {"monospace": mono})
    shading.font_with.cache_clear()
    yield
    shading.font_with.cache_clear()


def strengths(name: str, *scores: float) -> list[float]:
    return [strength for _, strength in shades(name, np.array(scores))]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if not patch.get_fill()]


class TestShades:
    @pytest.mark.parametrize("name", ["gate", "change", "attention"])
    def test_a_row_without_spread_is_flat(self, name: str) -> None:
        assert max(strengths(name, 0.5, 0.501, 0.5003)) < FAINT
        assert max(strengths(name, 0.5, 0.5)) == 0
        assert strengths(name, 0.1, 0.9, 0.5) == pytest.approx([0, 1, 0.5])

    @pytest.mark.parametrize("name", ["contribution", "gradient"])
    def test_sign_and_size(self, name: str) -> None:
        found = shades(name, np.array([2.0, -1.0, 0.0]))
        assert [color for color, _ in found] == [RED, BLUE, BLUE]
        assert [strength for _, strength in found] == [1, 0.5, 0]
        assert max(strengths(name, 0.001, -0.002)) < FAINT

    @pytest.mark.parametrize("name", ["gate", "change", "attention", "contribution", "gradient"])
    def test_single_words_are_not_shaded_in_full(self, name: str) -> None:
        assert max(strengths(name, 2.5)) <= 0.5
        assert strengths(name) == []

    def test_ranges(self) -> None:
        assert range_of(np.array([0.001, 0.002])) == "1.0e-03 to 2.0e-03"
        assert range_of(np.array([0.47, 0.471])) == "0.470 to 0.471"
        assert range_of(np.zeros(2)) == "0.000 to 0.000"


class TestPage:
    def test_what_colours_mean_as_far_as_they_are_used(self) -> None:
        scores = {"gate": np.zeros(1), "gradient": np.zeros(1)}
        found = legend([Shown("", ["fern"], scores, None)], "the predicted class")
        assert [(name, text.split(":")[0]) for _, name, text in found] == [
            ("orange", "gate"),
            ("orange", "gradient"),
            ("blue", "gradient"),
        ]
        assert found[1][2].endswith("speaks for the predicted class")

    def test_page_and_picture_say_the_same(self) -> None:
        shown = [
            Shown("text 1", [], {"gate": np.zeros(0)}, None),
            Shown("text 2", ["fern", "kelp"], {"gate": np.array([0.1, 0.9])}, np.array([True, False]), 1234),
        ]
        written, drawn = page("", shown, [], [], "toxic"), texts(plot_words(shown, "toxic"))
        assert "(no word)" in written
        assert {"(no", "word)"} <= set(drawn)
        assert "<b>gate</b><i>0.100 to 0.900</i>" in written
        assert "gate  0.100 to 0.900" in drawn
        assert written.count("… 1,234 more words not read") == drawn.count("1,234") == 2
        for _, _, text in legend(shown, "toxic"):
            assert text in written
            assert text in drawn


class TestLetters:
    def test_widths(self) -> None:
        assert [width_of(word) for word in ("fern", "天气", "e\u0301", "😀\ufe0f", "\u200b", "")] == [4, 4, 1, 2, 0, 0]

    def test_letters_that_no_font_has_are_boxes_side_by_side(self) -> None:
        shown = [Shown(f"id {MISSING}", [f"a{MISSING * 2}b"], {"gate": np.zeros(1)}, None)]
        figure = plot_words(shown, "toxic")
        first, second = boxes(figure)
        assert first.get_x() + first.get_width() < second.get_x()
        drawn = texts(figure)
        assert {"a", "b", "id □"} <= set(drawn)
        assert not any(MISSING in text for text in drawn)

    def test_an_installed_font_with_the_letter_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mono = shading._fonts()["monospace"]
        monkeypatch.setattr(shading, "_fonts", lambda: {"monospace": mono, "Other": "other"})
        monkeypatch.setattr(shading, "_has", lambda path, letter: path == "other" or letter.isascii())
        figure = plot_words([Shown("", ["天"], {"gate": np.zeros(1)}, None)], "toxic")
        assert not boxes(figure)
        (letter,) = (text for text in figure.axes[0].texts if text.get_text() == "天")
        assert letter.get_fontfamily() == ["monospace", "Other"]

    def test_nothing_is_drawn_with_a_letter_missing(self, tmp_path: Path) -> None:
        words = ["天气", MISSING, "x" * 300, "天" * 200, "\x07", "", "$x$", "e\u0301", "\u0301"]
        shown = [Shown("天 $", words, {"gate": np.arange(9.0)}, None)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save_figure(plot_words(shown, "toxic"), tmp_path / "words.png")

    def test_words_longer_than_a_line(self) -> None:
        figure = plot_words([Shown("", ["x" * 300], {"gate": np.zeros(1)}, None)], "toxic")
        letters = [text for text in texts(figure) if set(text) <= {"x", "…"} and text]
        assert 100 < sum(map(len, letters)) <= shading.COLUMNS
        assert letters[-1] == "…"
