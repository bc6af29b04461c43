"""Which words are masked: those with enough evidence, their forms and compounds, and no neutral ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from examples.hate_speech.masking import Lexicon, Uses, hidden_words, lexicon, lower_bound, mask_word, read_list
from examples.hate_speech.masking import plain_word as plain
from examples.hate_speech.posts import Post, ranges_from_words
from examples.hate_speech.rationales import marks_of, words_of
from examples.hate_speech.readers import read_corpus
from tests.examples import hate_sets as sets

NORMAL = 1


def post(text: str, *marked: str, label: int | None = None) -> Post:
    """Make a post in which some words are marked; it is toxic if there are any."""
    words = text.split()
    ranges = ranges_from_words(words, [int(word in marked) for word in words])
    return Post("", text, (0 if marked else NORMAL) if label is None else label, tuple(words), ranges)


# "kelp" stands for a word that is always marked alone, "fern" for one that is marked with what stands beside it.
POSTS = [
    *[post("this is kelp here", "kelp")] * 20,
    *[post("all of the fern women delta", "all", "of", "the", "fern", "women", "delta")] * 8,
    *[post("women and fern walk in delta")] * 8,
    *[post("all of the harbour in town")] * 9,
]


class TestLexicon:
    def test_a_word_marked_alone_is_listed(self) -> None:
        found = lexicon(POSTS, NORMAL)
        assert found.words == found.stems == {"kelp"}

    def test_few_uses_are_no_evidence(self) -> None:
        assert not lexicon([post("kelp here", "kelp")] * 4, NORMAL).words
        assert lexicon([post("kelp here", "kelp")] * 5, NORMAL).words == {"kelp"}

    def test_words_marked_less_clearly_need_toxic_posts(self) -> None:
        marked = [post("a kelp b c d e f", "a", "kelp", "b", "c", "d", "e", "f")] * 40
        listed = lexicon([*marked, *[post("a b c d e f")] * 30], NORMAL)
        assert listed.words == {"kelp"}
        assert not lexicon([*marked, *[post("a kelp b c d e f")] * 30], NORMAL).words

    def test_names_of_groups_are_not_listed(self) -> None:
        found = lexicon([post("this is women here", "women")] * 50, NORMAL)
        assert not found.words
        assert not found.hides("women")

    @pytest.mark.parametrize("word", ["kelp", "kelps", "kelpz", "kelpers", "townkelp", "kelptown", "kelpkelps"])
    def test_forms_and_compounds(self, word: str) -> None:
        posts = [*POSTS, *[post("one town")] * 3]
        assert lexicon(posts, NORMAL).hides(word)

    @pytest.mark.parametrize("word", ["fern", "delta", "women", "skelpy", "xkelp", "the", "islands", "lagoon", ""])
    def test_others_are_left(self, word: str) -> None:
        assert not lexicon(POSTS, NORMAL).hides(word)

    def test_a_long_word_is_found_anywhere(self) -> None:
        found = lexicon([post("this is lagoon here", "lagoon")] * 20, NORMAL)
        assert found.hides("xxlagoonxx")

    def test_a_short_word_is_found_anywhere_if_other_words_bear_it_out(self) -> None:
        more = [post(f"so {word} too", word) for word in ("xkelpa", "ykelpo", "zkelpu")]
        assert lexicon([*POSTS, *more], NORMAL).hides("qkelpi")
        assert not lexicon([*POSTS, *more, *[post("the ckelpe")] * 3], NORMAL).hides("qkelpi")

    def test_known_neutral_words_are_left(self) -> None:
        posts = [*[post("this is lagoon here", "lagoon")] * 20, *[post("the lagoons bathe")] * 8]
        found = lexicon(posts, NORMAL)
        assert found.hides("lagoon")
        assert not found.hides("lagoons")

    def test_without_a_normal_class_marks_tell_toxic_posts(self) -> None:
        assert lexicon(POSTS, None) == lexicon(POSTS, NORMAL)

    def test_posts_without_rationales(self) -> None:
        assert not lexicon([Post("", "kelp", 0)] * 20, NORMAL).words
        assert Uses([Post("", "kelp", 0)], lambda post: True).toxic == Counter(["kelp"])

    def test_lower_bound(self) -> None:
        assert lower_bound(0, 0) == lower_bound(0, 50) == 0
        shares = [lower_bound(k, 2 * k) for k in (1, 5, 50, 5000)]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(0.5, abs=0.01)


class TestHiddenWords:
    def test_those_listed_and_those_that_humans_marked(self) -> None:
        one = post("amber kelp cedar", "amber")
        words = words_of(one)
        listed = Lexicon(frozenset({"kelp"}))
        assert hidden_words(one, words, listed, rationale=False).tolist() == [False, True, False]
        assert hidden_words(one, words, listed, rationale=True).tolist() == [True, True, False]
        assert hidden_words(one, [], listed, rationale=True).shape == (0,)

    def test_list_of_a_file(self, tmp_path: Path) -> None:
        listed = read_list(sets.write(tmp_path / "words.txt", "Cedar!\n\nfern\nbay\n"))
        assert all(map(listed.hides, ("cedar", "cedars", "xcedarx", "fern", "ferns", "bay", "fernfern")))
        assert not any(map(listed.hides, ("bays", "ferny", "xfern", "")))

    def test_mask(self) -> None:
        assert [mask_word(word) for word in ("weather", "a", "")] == ["w******", "a", ""]


def test_real_posts(mmrobust_data: Path) -> None:
    corpus = read_corpus(mmrobust_data / "hatexplain")
    found = lexicon(corpus.splits["train"], NORMAL)
    neutral = "children football friends school teacher understand assistant analysis doctor women travel winter"
    assert not any(found.hides(word + ending) for word in neutral.split() for ending in ("", "s"))
    uses, marked, normal = Counter[str](), Counter[str](), Counter[str]()
    for one in [*corpus.splits["val"], *corpus.splits["test"]]:
        words = words_of(one)
        texts = [plain(one.text[start:end]) for start, end in words]
        uses.update(texts)
        marked.update(np.array(texts, dtype=object)[marks_of(one, words)])
        normal.update(texts if one.label == NORMAL else ())
    del normal[""]
    # Of words that others nearly always mark, alone or not, most uses are masked; of normal posts, little is.
    offensive = [word for word in uses if uses[word] >= 20 and marked[word] >= 0.85 * uses[word]]
    assert len(offensive) > 5
    assert sum(map(found.hides, offensive)) >= 0.9 * len(offensive)
    assert all(found.hides(word + "s") for word in offensive if found.hides(word) and len(word) > 3)
    assert sum(found.hides(word) for word, _ in normal.most_common(2000)) < 100
    assert sum(normal[word] for word in normal if found.hides(word)) < 0.03 * sum(normal.values())


def test_accents_and_wide_letters_are_no_disguise() -> None:
    assert [plain(word) for word in ("\uff4b\u00e9lp", "K\u00c8LP!", "k-e-l-p")] == ["kelp"] * 3
