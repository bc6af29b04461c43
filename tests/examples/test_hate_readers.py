"""The readers of the hate-speech pipeline: every format, what they leave out and say, bad files, the real sets."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.hate_speech.posts import ranges_from_offsets, ranges_from_words
from examples.hate_speech.readers import Corpus, DataError, read_corpus
from tests.examples import hate_sets as sets


def sizes(corpus: Corpus) -> list[int]:
    return [len(posts) for posts in corpus.splits.values()]


def error_of(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_corpus(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- formats


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_hatexplain_lines(tmp_path: Path, suffix: str) -> None:
    corpus = read_corpus(sets.write_hatexplain(tmp_path, suffix))
    assert (corpus.name, corpus.classes) == ("hatexplain", ("hatespeech", "normal", "offensive"))
    assert (sizes(corpus), corpus.notes) == ([24, 9, 12], ())
    post = corpus.splits["test"][0]
    assert post.words == tuple(post.text.split())
    assert post.rationale is not None
    assert [post.text[slice(*one)] for one in post.rationale] == [post.words[0], post.words[2]]
    assert corpus.splits["test"][1].rationale == ()
    assert post.targets == ("Lakes",)  # two annotators; one is too few, and "None" is no group
    assert corpus.splits["train"][0].targets == ()


def test_neighbouring_words_become_one_range() -> None:
    words = ["amber", "birch", "cedar", "fern"]
    assert ranges_from_words(words, [1, 1, 0, 1]) == ((0, 11), (18, 22))
    assert ranges_from_words([], []) == ranges_from_offsets([]) == ()
    assert ranges_from_offsets([7, 2, 1, 8, 4]) == ((1, 3), (4, 5), (7, 9))


@pytest.mark.parametrize("change", [{"rationale_source": "none"}, {"rationale_union": None}])
def test_unknown_rationale_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    sets.write_hatexplain(tmp_path)
    entries = [sets.entry(i, "train") for i in range(3)]
    sets.write(tmp_path / "train.jsonl", sets.json_lines([entries[0] | change, *entries[1:]]))
    corpus = read_corpus(tmp_path)
    assert corpus.splits["train"][0].rationale is None
    assert corpus.splits["train"][1].rationale == ()


def test_sources_of_rationales_are_noted(tmp_path: Path) -> None:
    sets.write_hatexplain(tmp_path)
    sources = ["none", "word_set", "word_set", "exact"]
    entries = [sets.entry(i, "train") | {"rationale_source": source} for i, source in enumerate(sources)]
    sets.write(tmp_path / "train.jsonl", sets.json_lines(entries))
    first, second = read_corpus(tmp_path).notes
    assert first == "1 training posts with an unknown rationale"
    assert second.startswith("2 training rationales rebuilt from sets of words")


def test_published_hatexplain(tmp_path: Path) -> None:
    corpus = read_corpus(sets.write_published(tmp_path))
    assert (corpus.name, sizes(corpus)) == ("hatexplain", [3, 3, 3])
    assert [post.label for post in corpus.splits["test"]] == [0, 1, 2]
    toxic, normal = corpus.splits["train"][:2]
    assert toxic.words is not None
    assert toxic.rationale is not None
    assert [toxic.text[slice(*one)] for one in toxic.rationale] == [toxic.words[0], toxic.words[2]]  # any annotator
    assert normal.rationale == ()
    assert toxic.targets == ("Lakes",)


def test_published_posts_without_majority_are_left_out(tmp_path: Path) -> None:
    posts = {f"p{i}": sets.published(i) for i in range(15)}
    posts["p0"] = sets.published(0, ["normal", "hatespeech", "offensive"])
    posts["p6"] = sets.published(6) | {"rationales": []}
    corpus = read_corpus(sets.write_published(tmp_path, posts))
    assert sizes(corpus) == [4, 5, 5]
    assert corpus.notes == ("1 posts without a majority label left out",)
    assert corpus.splits["val"][1].rationale is None  # toxic, and nobody marked anything: unknown


def test_hateval(tmp_path: Path) -> None:
    corpus = read_corpus(sets.write_hateval(tmp_path))
    assert (corpus.name, corpus.classes, sizes(corpus)) == ("hateval", ("not-hate", "hate"), [8, 4, 8])
    post = corpus.splits["train"][1]
    assert (post.id, post.text, post.label) == ("1", f"{sets.text(1)}, said", 1)
    assert post.rationale is None


def test_hateval_rows_without_label_are_left_out_and_counted(tmp_path: Path) -> None:
    sets.write_hateval(tmp_path)
    path = tmp_path / "hateval2019_en_train.csv"
    # A text broken in two by a line break, and an empty label: neither is "not hateful".
    path.write_text(path.read_text() + "90,amber birch\nand cedar,1,0,0\n91,fern grove,,,\n92,kelp,1.0,0,0\n")
    corpus = read_corpus(tmp_path)
    assert len(corpus.splits["train"]) == 9
    assert corpus.splits["train"][-1].label == 1
    assert corpus.notes == (
        "hateval2019_en_train.csv: 1 row without a label left out (lines 12)",
        "hateval2019_en_train.csv: 2 rows with too few cells left out (lines 10, 11)",
    )


def test_davidson_folds(tmp_path: Path) -> None:
    sets.write_davidson(tmp_path)
    tests = set[str]()
    for fold in range(5):
        corpus = read_corpus(tmp_path, fold=fold)
        assert (corpus.name, corpus.classes) == ("davidson", ("hate", "offensive", "neither"))
        names = [{post.id for post in posts} for posts in corpus.splits.values()]
        assert len(set.union(*names)) == sum(map(len, names)) == 60
        assert all(int(name) // 3 % 5 == fold for name in names[2])
        assert Counter(post.label for post in corpus.splits["val"]) == {0: 2, 1: 2, 2: 2}  # a tenth of 16, rounded
        assert read_corpus(tmp_path, fold=fold) == corpus
        tests |= names[2]
    assert len(tests) == 60


def test_published_davidson(tmp_path: Path) -> None:
    header = ",count,hate_speech,offensive_language,neither,class,tweet"
    lines = [f'{i},3,0,0,3,{i % 3},"{sets.text(i)}"' for i in range(45)]
    sets.write(tmp_path / "labeled_data.csv", "\n".join([header, *lines, ""]))
    parts = [read_corpus(tmp_path, fold=fold) for fold in range(5)]
    assert all(Counter(post.label for post in part.splits["test"]) == {0: 3, 1: 3, 2: 3} for part in parts)
    assert {post.id for part in parts for post in part.splits["test"]} == {str(i) for i in range(45)}


def test_tweeteval_text_files(tmp_path: Path) -> None:
    corpus = read_corpus(sets.write_tweeteval(tmp_path))
    assert (corpus.name, corpus.classes, sizes(corpus)) == ("tweeteval", ("not-hate", "hate"), [24, 9, 12])
    assert corpus.splits["train"][3] == ("train-3", f"{sets.text(3)} ", 1, None, None, ())


def test_tweeteval_breaks_lines_at_newlines_only(tmp_path: Path) -> None:
    sets.write_tweeteval(tmp_path)
    sets.write(tmp_path / "val_text.txt", "amber\u2028birch\r\nfern\x85grove\n")
    sets.write(tmp_path / "val_labels.txt", "0\r\n1")
    assert [post.text for post in read_corpus(tmp_path).splits["val"]] == ["amber\u2028birch", "fern\x85grove"]


def test_tweeteval_table(tmp_path: Path) -> None:
    rows = ["train,0,amber", "train,1,birch", "val,1,cedar", "test,0,fern"]
    corpus = read_corpus(sets.write(tmp_path / "set.csv", "\ufeffsplit,label,text\n" + "\n".join(rows)))
    assert (corpus.name, sizes(corpus)) == ("tweeteval", [2, 1, 1])


def test_toxic_spans(tmp_path: Path) -> None:
    corpus = read_corpus(sets.write_spans(tmp_path))
    assert (corpus.name, corpus.classes, sizes(corpus)) == ("toxic_spans", ("toxic",), [2, 1, 1])
    assert [post.rationale for post in corpus.splits["train"]] == [((0, 5), (6, 11)), ()]
    assert corpus.splits["val"][0].rationale == ((0, 5), (8, 9))  # published: single offsets


def test_published_toxic_spans(tmp_path: Path) -> None:
    for name in ("train", "trial", "test"):
        sets.write(tmp_path / f"tsd_{name}.csv", 'spans,text\n"[0, 1, 2]",fern grove\n')
    corpus = read_corpus(tmp_path)
    assert [posts[0].rationale for posts in corpus.splits.values()] == [((0, 3),)] * 3


# --- kept, and reported


def test_empty_texts_are_kept_and_reported(tmp_path: Path) -> None:
    sets.write_tweeteval(tmp_path)
    path = tmp_path / "train_text.txt"
    path.write_text(path.read_text().replace(f"{sets.text(5)} \n", "\n").replace(f"{sets.text(8)} \n", "  \n"))
    corpus = read_corpus(tmp_path)
    assert len(corpus.splits["train"]) == 24
    assert corpus.notes == ("2 empty texts kept (train 2)",)


def test_fold_of_an_official_split_is_noted(tmp_path: Path) -> None:
    assert read_corpus(sets.write_tweeteval(tmp_path), fold=2).notes == (
        "fold 2 has no effect: tweeteval has an official split",
    )


def test_class_without_training_row_is_noted(tmp_path: Path) -> None:
    sets.write_hatexplain(tmp_path, train=2)
    assert read_corpus(tmp_path).notes == ("no training row of the class offensive",)


def test_lone_surrogates_are_replaced_one_for_one(tmp_path: Path) -> None:
    sets.write_hatexplain(tmp_path)
    odd = sets.entry(0) | {"id": "\ud83d", "tokens": ["fern\ud83d", "kelp", "\ude00"], "rationale_union": [0, 1, 0]}
    sets.write(tmp_path / "val.jsonl", json.dumps(odd))
    post = read_corpus(tmp_path).splits["val"][0]
    assert (post.id, post.text) == ("\ufffd", "fern\ufffd kelp \ufffd")
    assert post.rationale == ((6, 10),)


# --- bad input


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        raw = (root / name).read_bytes()
        assert old.encode() in raw
        (root / name).write_bytes(raw.replace(old.encode(), new.encode("latin-1"), 1))

    return change


def put(name: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


HATEVAL = "hateval2019_en_train.csv"
HATEVAL_ERRORS: list[tuple[Callable[[Path], Any], str]] = [
    (replace(HATEVAL, sets.text(1), "\xff"), f"{HATEVAL}: line 3: expected UTF-8, got the byte 0xff"),
    (replace(HATEVAL, 'said",1', 'said",2'), f"{HATEVAL}: line 3: expected a label of 0, 1, got '2'"),
    (replace(HATEVAL, 'said",1', 'said",yes'), "line 3: expected a label of 0, 1, got 'yes'"),
    (replace(HATEVAL, 'said",1', 'said",-1'), "line 3: expected a label of 0, 1, got '-1'"),
    (replace(HATEVAL, "text", "tweets"), "expected a column 'text', found id, tweets, HS, TR, AG"),
    (replace(HATEVAL, "HS", "TR"), f"{HATEVAL}: line 1: expected different column names, got id, text, TR, TR, AG"),
    (put(HATEVAL, ""), f"{HATEVAL}: expected rows, the file is empty"),
    (put(HATEVAL, "\n \n"), f"{HATEVAL}: expected rows, the file is empty"),
    (put(HATEVAL, "id,text,HS,TR,AG\n"), f"{HATEVAL}: expected rows below the header, found none"),
    (put(HATEVAL, "id,text,HS\n1,fern,1\n2,kelp,1\n"), "expected at least two classes in train, all 2 rows are 'hate'"),
    (put(HATEVAL, "id,text,HS\n1,fern, kelp,1\n"), f"{HATEVAL}: line 2: expected 3 cells as in the header, got 4"),
    (put(HATEVAL, 'id,text,HS\n1,"fern,1\n2,kelp,1\n'), f"{HATEVAL}: line 2: expected CSV (unexpected end of data)"),
    (
        put(HATEVAL, "id,text,HS\n1,fern,\n"),
        f"found val, test ({HATEVAL}: 1 row without a label left out (lines 2))",
    ),
    (put("other_train.csv", "id,text,HS\n1,fern,1\n"), "expected one file of 'train'"),
    (
        put("more.csv", "id,text,HS\n1,fern,1\n"),
        "more.csv: expected one of train, dev, trial, val, test in the file nam",
    ),
    (put("spans.csv", "split,spans,text\n"), "spans.csv: expected rows below the header"),
    (put("spans.csv", "split,spans,text\ntest,[],fern\n"), "expected the files of one corpus"),
    (
        lambda root: (root / "hateval2019_en_dev.csv").unlink(),
        "expected labelled rows of train, val and test, found train, test",
    ),
]


@pytest.mark.parametrize(("change", "message"), HATEVAL_ERRORS)
def test_hateval_errors(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    sets.write_hateval(tmp_path)
    change(tmp_path)
    assert message in error_of(tmp_path)


def changed(**values: Any) -> Callable[[Path], Any]:
    """Replace values of the second validation post; ``...`` removes the key."""

    def change(root: Path) -> None:
        second = {key: value for key, value in (sets.entry(1) | values).items() if value is not ...}
        sets.write(root / "val.jsonl", sets.json_lines([sets.entry(0), second]))

    return change


HATEXPLAIN_ERRORS: list[tuple[Callable[[Path], Any], str]] = [
    (changed(rationale_union=[0, 1]), "val.jsonl: line 2: expected a rationale of 4 marks, one per token, got 2"),
    (changed(rationale_union=[0, 1, 2, 0]), "val.jsonl: line 2: expected a rationale of 0 and 1"),
    (changed(rationale_union="0100"), "line 2: expected a rationale of 4 marks, got str"),
    (changed(label=3), "val.jsonl: line 2: expected a label of 0, 1, 2, got 3"),
    (changed(label=True), "line 2: expected a label of 0, 1, 2, got True"),
    (changed(label=...), "line 2: expected the key 'label', found id, tokens"),
    (changed(tokens="fern"), "line 2: expected a list of tokens, got str"),
    (changed(tokens=["fern", 1]), "line 2: expected tokens to be text"),
    (changed(targets=["Lakes"]), "line 2: expected a list of targets per annotator, got str"),
    (put("val.jsonl", '{"id": 1,\n'), "val.jsonl: line 1: expected JSON"),
    (put("val.jsonl", "\n[]\n"), "val.jsonl: line 2: expected a JSON object, got list"),
    (put("val.jsonl", "[" * 100_000), "val.jsonl: line 1: expected JSON"),
    (put("val.jsonl", b"{}\n\xe9"), "val.jsonl: line 2: expected UTF-8, got the byte 0xe9"),
    (put("val.jsonl", ""), "val.jsonl: expected rows, the file is empty"),
    (lambda root: (root / "val.jsonl").unlink(), "val.jsonl: no such file, plain or as .gz"),
]


@pytest.mark.parametrize(("change", "message"), HATEXPLAIN_ERRORS)
def test_hatexplain_errors(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    sets.write_hatexplain(tmp_path)
    change(tmp_path)
    assert message in error_of(tmp_path)


def published_with(**values: Any) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        sets.write_published(root, {f"p{i}": sets.published(i) | (values if i == 3 else {}) for i in range(9)})

    return change


PUBLISHED_ERRORS: list[tuple[Callable[[Path], Any], str]] = [
    (published_with(rationales=[[1]]), "dataset.json: post p3: expected a rationale of 6 marks, one per token, got 1"),
    (
        published_with(annotators=[{"label": "odd"}]),
        "post p3: expected a label of hatespeech, normal, offensive, got 'o",
    ),
    (published_with(annotators={}), "post p3: annotators: expected a list of objects, got dict"),
    (put("dataset.json", "{}"), "dataset.json: expected the post 'p0', which post_id_divisions.json names, found none"),
    (put("dataset.json", "[]"), "dataset.json: expected a JSON object, got list"),
    (put("dataset.json", '{"p0": 1}'), "post p0: expected an object with the keys annotators, rationales, post_tokens"),
    (put("post_id_divisions.json", "{}"), "post_id_divisions.json: train: expected a list of post ids, got no list"),
]


@pytest.mark.parametrize(("change", "message"), PUBLISHED_ERRORS)
def test_published_hatexplain_errors(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    sets.write_published(tmp_path)
    change(tmp_path)
    assert message in error_of(tmp_path)


SPANS_ERRORS = [
    ("[[0, 40]]", "line 2: expected a list of offsets or [start, end) ranges within the 10 characters of the text"),
    ("[[3, 3]]", "line 2: expected a list"),
    ("[-1]", "line 2: expected a list"),
    ("[true]", "line 2: expected a list"),
    ("[1.5]", "line 2: expected a list"),
    ("[[1, 2, 3]]", "line 2: expected a list"),
    ("none", "line 2: expected a list"),
    ("{}", "line 2: expected a list"),
]


@pytest.mark.parametrize(("spans", "message"), SPANS_ERRORS)
def test_toxic_spans_errors(tmp_path: Path, spans: str, message: str) -> None:
    path = sets.write(tmp_path / "spans.csv", f'split,spans,text\ntrain,"{spans}",fern grove\n')
    assert message in error_of(path)


def test_other_errors(tmp_path: Path) -> None:
    assert "no such file or folder" in error_of(tmp_path / "nothing")
    assert "expected the files of one corpus" in error_of(tmp_path)
    sets.write(tmp_path / "a" / "table.csv", "name,words\n1,fern\n")
    assert "found table.csv with the columns name, words" in error_of(tmp_path / "a")
    sets.write_davidson(tmp_path / "b")
    for fold in (-1, 5):
        assert f"fold: expected 0 to 4, got {fold}" in error_of(tmp_path / "b", fold=fold)
    (tmp_path / "b" / "davidson.csv.gz").write_bytes(gzip.compress(b"id,fold,label,text\n" * 99)[:-9])
    assert "davidson.csv.gz: expected a whole gzip file" in error_of(tmp_path / "b")
    (tmp_path / "b" / "davidson.csv.gz").write_bytes(b"plain")
    assert "davidson.csv.gz: expected a whole gzip file" in error_of(tmp_path / "b")
    sets.write(tmp_path / "c" / "davidson.csv", "fold,label,text\n0,0,fern\n7,1,kelp\n")
    assert "davidson.csv: line 3: expected a fold of 0, 1, 2, 3, 4, got '7'" in error_of(tmp_path / "c")


def test_tweeteval_errors(tmp_path: Path) -> None:
    sets.write_tweeteval(tmp_path)
    sets.write(tmp_path / "val_labels.txt", "0\n1\n")
    assert "val_labels.txt: expected 9 lines as in val_text.txt, got 2" in error_of(tmp_path)
    sets.write(tmp_path / "val_labels.txt", "0\n" * 8 + "hate\n")
    assert "val_labels.txt: line 9: expected a label of 0, 1, got 'hate'" in error_of(tmp_path)
    sets.write(tmp_path / "mapping.txt", "1\thate\n")
    assert "mapping.txt: expected lines of number, tab, name" in error_of(tmp_path)
    path = sets.write(tmp_path / "set.csv", "split,label,text\nextra,1,fern\n")
    assert "set.csv: line 2: expected a split of train, val, trial, dev, test, got 'extra'" in error_of(path)


# --- the real sets, with the counts of their READMEs


def class_counts(corpus: Corpus) -> dict[str, list[int]]:
    size = len(corpus.classes)
    return {part: [Counter(p.label for p in posts)[c] for c in range(size)] for part, posts in corpus.splits.items()}


def test_real_hatexplain(mmrobust_data: Path) -> None:
    corpus = read_corpus(mmrobust_data / "hatexplain")
    counts = {"train": [4748, 6251, 4384], "val": [593, 781, 548], "test": [594, 782, 548]}
    assert class_counts(corpus) == counts
    assert sum(post.rationale is None for post in corpus.splits["train"]) == 2457
    assert "2457 training posts with an unknown rationale" in corpus.notes
    toxic = [post for post in corpus.splits["test"] if post.label != 1]
    assert len(toxic) == sum(bool(post.rationale) for post in corpus.splits["test"]) == 1142
    marked = [len(" ".join(p.text[a:b] for a, b in p.rationale or ()).split()) for p in toxic]
    assert round(sum(marked) / len(marked), 1) == 8.9
    assert any("Women" in post.targets for post in corpus.splits["test"])


def test_real_davidson(mmrobust_data: Path) -> None:
    corpora = [read_corpus(mmrobust_data / "davidson", fold=fold) for fold in range(5)]
    assert all(sum(sizes(corpus)) == 24783 for corpus in corpora)
    total = sum((Counter(post.label for post in corpus.splits["test"]) for corpus in corpora), Counter())
    assert total == {0: 1430, 1: 19190, 2: 4163}


def test_real_tweeteval(mmrobust_data: Path) -> None:
    corpus = read_corpus(mmrobust_data / "tweeteval_hate")
    assert class_counts(corpus) == {"train": [5217, 3783], "val": [573, 427], "test": [1718, 1252]}


def test_real_toxic_spans(mmrobust_data: Path) -> None:
    corpus = read_corpus(mmrobust_data / "toxic_spans")
    assert sizes(corpus) == [7939, 690, 2000]
    assert [sum(not post.rationale for post in posts) for posts in corpus.splits.values()] == [485, 43, 394]
