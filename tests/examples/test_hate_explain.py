"""The `explain` command: page and pictures, masked words, texts and files, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.hate_speech.__main__ import main
from examples.hate_speech.ablate import CONFIGS
from tests.examples import hate_sets as sets
from tests.examples.hate_runs import SPAN, TINY, fails


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_DEBUG", "")


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
        assert "1 texts of more than 32 tokens cut" in page
        assert "<b>attention</b>" in page
        assert "<b>human</b>" not in page

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
        self, root: Path, tmp_path: Path, words: list[str]
    ) -> None:
        config = ["--config", str(CONFIGS / "encoder_only.yaml"), *words[2:]]
        assert main(["fit", *config, "--trainer.default_root_dir", str(tmp_path)]) == 0
        assert main(["explain", str(tmp_path / "best.ckpt"), "--text", "amber fern", "--space-posts", "0"]) == 0
        page = (tmp_path / "explanation" / "index.html").read_text()
        assert "<b>attention</b>" in page
        assert "<b>gate</b>" not in page

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--file", "nowhere.txt"], "nowhere.txt: no such file"),
            (["--mask-words", "nowhere.txt"], "nowhere.txt: no such file"),
            (["--limit", "none"], "explain: --limit: expected a whole number, got 'none'"),
            (["--scores", "magic"], "explain: --scores: invalid choice: 'magic'"),
            (["--nonsense"], "explain: unrecognized arguments: --nonsense"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, checkpoint: str, wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in fails(capsys, "explain", checkpoint, "--out", str(tmp_path), *wrong)

    def test_file_that_is_not_utf8(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "texts.txt"
        path.write_bytes(b"amber\n\xff\n")
        assert "line 2: expected UTF-8, got the byte 0xff" in fails(capsys, "explain", checkpoint, "--file", str(path))
