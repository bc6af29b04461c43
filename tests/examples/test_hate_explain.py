"""The `explain` command: page and pictures, masked words, texts and files, bad input."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.hate_speech import data, explain
from examples.hate_speech.__main__ import main
from examples.hate_speech.ablate import CONFIGS
from examples.hate_speech.batches import TextSet
from examples.hate_speech.posts import Post
from examples.hate_speech.trained import Trained, open_checkpoint
from tests.examples import hate_sets as sets
from tests.examples.hate_runs import SPAN, TINY, fails


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[override]
    return sets.write_hatexplain(tmp_path_factory.mktemp("hatexplain"))


@pytest.fixture(scope="module")
def words(root: Path) -> list[str]:
    return ["--config", SPAN, "--data.root", str(root), *TINY, "--trainer.max_epochs", "1"]


@pytest.fixture(scope="module")
def checkpoint(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    assert main(["fit", *words, "--trainer.default_root_dir", str(folder)]) == 0
    return str(folder / "best.ckpt")


@pytest.fixture(scope="module")
def plain(root: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a checkpoint without a calibration."""
    folder = tmp_path_factory.mktemp("plain")
    config = ["--config", str(CONFIGS / "encoder_only.yaml"), *words[2:]]
    assert main(["fit", *config, "--trainer.default_root_dir", str(folder)]) == 0
    return str(folder / "best.ckpt")


@pytest.fixture
def trained(checkpoint: str, tmp_path: Path) -> Trained:
    """Open a checkpoint whose gates are not near 1 any more."""
    opened = open_checkpoint(Path(checkpoint), [], tmp_path / "configs")
    torch.manual_seed(0)
    for parameter in opened.task.model.asrm.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return opened


class TestExplain:
    def test_validation_posts_masked(self, checkpoint: str, tmp_path: Path) -> None:
        assert main(["explain", checkpoint, "--out", str(tmp_path), "--limit", "3"]) == 0
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"index.html", "words.png", "feature_space.png", "similarity.png", "configs"}
        page = (tmp_path / "index.html").read_text()
        assert page.count("<article>") == 3
        assert "amber" not in page  # marked in every toxic post of its class
        assert "a****" in page
        assert "<b>human</b>" in page
        assert "<b>gate</b>" in page
        posts = re.findall(r"(\w+)_(\d+): predicted", page)
        assert {part for part, _ in posts} == {"val"}
        assert all(int(number) % 3 != 1 for _, number in posts)  # no normal ones

    def test_unmasked(self, checkpoint: str, tmp_path: Path) -> None:
        assert main(["explain", checkpoint, "--out", str(tmp_path), "--unmasked", "--space-posts", "0"]) == 0
        page = (tmp_path / "index.html").read_text()
        assert "amber" in page
        assert "a****" not in page
        assert {path.name for path in tmp_path.iterdir()} == {"index.html", "words.png", "configs"}

    def test_texts_and_a_list_of_words(self, checkpoint: str, tmp_path: Path) -> None:
        listed = sets.write(tmp_path / "list.txt", "fern\n")
        texts = ["--text", "amber <b> fern $x$ 😀", "--text", "", "--text", "kelp " * 300]
        more = ["--mask-words", str(listed), "--space-posts", "0", "--scores", "gradient", "attention"]
        assert main(["explain", checkpoint, "--out", str(tmp_path), *texts, *more]) == 0
        page = (tmp_path / "index.html").read_text()
        assert "f***" in page
        assert "amber" in page
        assert "&lt;" in page
        assert "(no word)" in page
        assert "<li>1 text of more than 32 tokens cut</li>" in page
        assert "<b>attention</b>" in page
        assert "<b>human</b>" not in page

    def test_says_what_colours_and_numbers_mean(self, checkpoint: str, tmp_path: Path) -> None:
        assert main(["explain", checkpoint, "--out", str(tmp_path), "--limit", "2", "--space-posts", "0"]) == 0
        page = (tmp_path / "index.html").read_text()
        assert "orange</span> contribution: the word speaks for toxic" in page
        assert "blue</span> contribution: the word speaks against toxic" in page
        assert "green</span> human: annotators marked the word" in page
        assert "The strength of a colour is scaled within each text and row" in page
        assert len(re.findall(r"<b>gate</b><i>\S+ to \S+</i>", page)) == 2

    def test_lines_keep_their_numbers(self, checkpoint: str, tmp_path: Path) -> None:
        lines = sets.write(tmp_path / "texts.txt", "amber\n\n  \nkelp\nfern\n\n")
        more = ["--out", str(tmp_path), "--space-posts", "0", "--limit", "2", "--file", str(lines)]
        assert main(["explain", checkpoint, *more]) == 0
        page = (tmp_path / "index.html").read_text()
        assert re.findall(r"<h2>(line \d+):", page) == ["line 1", "line 4"]
        assert "<li>3 blank lines of texts.txt left out</li>" in page

    def test_words_that_were_not_read_are_counted_only(self, checkpoint: str, tmp_path: Path) -> None:
        texts = ["--text", "kelp " * 3000, "--text", "fern " * 31, "--text", "fern " * 30]
        assert main(["explain", checkpoint, "--out", str(tmp_path), *texts, "--space-posts", "0"]) == 0
        page = (tmp_path / "index.html").read_text()
        assert page.count("kelp") == 2 * 30
        assert page.count("… 2,970 more words not read") == page.count("… 1 more word not read") == 2
        assert page.count("fern") == 2 * (30 + 30)
        header = (tmp_path / "words.png").read_bytes()[:24]
        assert int.from_bytes(header[20:24]) < 1000  # pixels of height

    def test_defaults_are_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "or of validation (default: 10)" in text
        assert "0 = none (default: 600)" in text

    def test_files(self, checkpoint: str, root: Path, tmp_path: Path) -> None:
        lines = sets.write(tmp_path / "texts.txt", "amber fern\n\nkelp\n")
        more = ["--out", str(tmp_path), "--space-posts", "0"]
        assert main(["explain", checkpoint, "--file", str(lines), *more]) == 0
        assert (tmp_path / "index.html").read_text().count("<article>") == 2
        assert main(["explain", checkpoint, "--file", str(root / "test.jsonl"), *more]) == 0
        page = (tmp_path / "index.html").read_text()
        assert page.count("<article>") == 10
        assert "<b>human</b>" in page

    def test_without_a_calibration_attention_takes_the_place_of_the_gate(
        self, plain: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        more = ["--text", "amber fern", "--space-posts", "0"]
        assert main(["explain", plain, *more]) == 0
        page = (Path(plain).parent / "explanation" / "index.html").read_text()
        assert "<b>attention</b>" in page
        assert "<b>gate</b>" not in page
        for kind in ("gate", "change"):
            error = fails(capsys, "explain", plain, *more, "--scores", "attention", kind)
            assert f"--scores: '{kind}' needs a calibration, which this model lacks" in error

    def test_shows_all_scores_that_are_asked_for(self, checkpoint: str, tmp_path: Path) -> None:
        more = ["--text", "amber fern", "--space-posts", "0", "--scores", "gate", "attention"]
        assert main(["explain", checkpoint, "--out", str(tmp_path), *more]) == 0
        page = (tmp_path / "index.html").read_text()
        assert re.findall(r"<li><b>(\w+)</b>", page) == ["gate", "attention"]

    def test_corpus_without_marked_words(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        corpus = ["--data.root", str(sets.write_tweeteval(tmp_path / "tweets"))]
        assert main(["fit", *words, *corpus, "--trainer.default_root_dir", str(tmp_path)]) == 0
        explain = ["explain", str(tmp_path / "best.ckpt"), "--text", "amber fern", "--space-posts", "0"]
        assert "tweets: expected --mask-words FILE, or --unmasked" in fails(capsys, *explain)
        page = tmp_path / "explanation" / "index.html"
        assert not page.exists()
        assert main([*explain, "--mask-words", str(sets.write(tmp_path / "list.txt", "fern\n"))]) == 0
        assert "f***" in page.read_text()
        assert main([*explain, "--unmasked"]) == 0
        assert "fern" in page.read_text()

    def test_texts_alone_are_encoded(self, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def token_states(encoder: Any, posts: Sequence[Post], *args: Any, **options: Any) -> list[np.ndarray]:
            encoded.extend(post.text for post in posts)
            return states(encoder, posts, *args, **options)

        encoded, states = list[str](), data.token_states
        monkeypatch.setattr(data, "token_states", token_states)
        more = ["--text", "amber zzz", "--text", "kelp", "--space-posts", "0"]
        assert main(["explain", checkpoint, "--out", str(tmp_path), *more]) == 0
        assert encoded == ["amber zzz", "kelp"]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--file", "nowhere.txt"], "nowhere.txt: no such file"),
            (["--mask-words", "nowhere.txt"], "nowhere.txt: no such file"),
            (["--limit", "none"], "explain: --limit: expected a whole number, got 'none'"),
            (["--scores", "magic"], "explain: --scores: invalid choice: 'magic'"),
            (["--space-posts", "1"], "explain: --space-posts: expected 0 or at least 3, got 1"),
            (["--space-posts", "2"], "explain: --space-posts: expected 0 or at least 3, got 2"),
            (["--nonsense"], "explain: unrecognized arguments: --nonsense"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, checkpoint: str, wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in fails(capsys, "explain", checkpoint, "--out", str(tmp_path), *wrong)

    def test_text_that_is_not_utf8(self, checkpoint: str, tmp_path: Path) -> None:
        # What Python makes of bytes of a command line that are not UTF-8.
        words = ["--text", "amber f\udcffern", "--unmasked", "--space-posts", "0"]
        assert main(["explain", checkpoint, "--out", str(tmp_path), *words]) == 0
        assert "\ufffd" in (tmp_path / "index.html").read_text(encoding="utf-8")

    def test_file_that_is_not_utf8(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "texts.txt"
        path.write_bytes(b"amber\n\xff\n")
        assert "line 2: expected UTF-8, got the byte 0xff" in fails(capsys, "explain", checkpoint, "--file", str(path))


class TestSpace:
    def test_means_before_and_after_the_calibration(self, trained: Trained) -> None:
        rows = trained.data.sets["val"]
        before, after = explain.pooled(trained, rows)
        for i in range(len(rows)):
            batch = rows[i]
            with torch.no_grad():
                (tokens,) = trained.task.model(batch["inputs"], batch["mask"]).tokens
            np.testing.assert_allclose(before[i], batch["inputs"][0].mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(after[i], tokens.mean(0), rtol=1e-4, atol=1e-5)
        assert np.abs(after - before).max() > 0.1

    @pytest.mark.parametrize(("limit", "count"), [(5, 5), (600, 9)])
    def test_draws_validation_posts(
        self, trained: Trained, limit: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pooled(opened: Trained, rows: TextSet) -> tuple[np.ndarray, np.ndarray]:
            posts.extend(rows.posts)
            found.append(means(opened, rows))
            return found[0]

        def watch(plot: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: drawn.append(args) or plot(*args)  # type: ignore[func-returns-value]

        means, posts, found, drawn = explain.pooled, list[Post](), list[tuple[np.ndarray, np.ndarray]](), []
        monkeypatch.setattr(explain, "pooled", pooled)
        for name in ("plot_space", "plot_similarity"):
            monkeypatch.setattr(explain, name, watch(getattr(explain, name)))
        paths = explain.draw_space(trained, tmp_path, limit)
        assert all(path.is_file() for path in paths)
        assert len({post.id for post in posts}) == count
        assert all(post.id.startswith("val_") for post in posts)
        assert len(drawn) == 2
        for before, after, labels, *_ in drawn:
            assert before is found[0][0]
            assert after is found[0][1]
            assert labels.tolist() == [post.label for post in posts]

    def test_examples_are_toxic_validation_posts(self, trained: Trained) -> None:
        posts = explain.examples(trained, 4)
        assert len(posts) == 4
        assert len(explain.examples(trained, 100)) == 6
        assert all(post in trained.data.corpus.splits["val"] and post.label != 1 and post.rationale for post in posts)
