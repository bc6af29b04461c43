"""Quality inside of the variational model: what the flags say, what pushes, and what fitting needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrobust import ModalityCorruption, VariationalFusionClassifier
from mmrobust.models._inputs import InputReader
from mmrobust.models._variational_parts import spoilt_rows

SIZES = {"z": 3, "s": 4}  # "s" is a sequence
B, T = 8, 5
NAN = float("nan")


def batch(count: int = B, seed: int = 0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {"z": torch.randn(count, 3, generator=source), "s": torch.randn(count, T, 4, generator=source)}


def build(quality: str = "scale", fit: bool = True, **options: Any) -> VariationalFusionClassifier:
    torch.manual_seed(0)
    model = VariationalFusionClassifier(
        SIZES, 6, **{"num_classes": 3, "num_heads": 2, "sequences": ["s"], "quality": quality, **options}
    )
    if fit:
        model.fit_quality(batch(100, 1))
        for parameter in model.quality.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def flags(inputs: dict[str, Tensor], targets: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Tensor:
    x = InputReader("flags", SIZES, ["s"]).read(inputs, None, masks, fill=False)
    return spoilt_rows(x, list(targets.values()))


def difference(model: VariationalFusionClassifier, weight: float, *args: Any, **kwargs: Any) -> Tensor:
    """Return what the quality term adds to the auxiliary loss."""
    found = []
    for used in (0.0, weight):
        model.quality_weight = used
        torch.manual_seed(0)
        found.append(model(*args, **kwargs).aux_loss)
    return found[1] - found[0]


class TestFlags:
    def test_clean_inputs_raise_none(self) -> None:
        clean = batch()
        assert not flags(clean, clean).any()
        assert not flags(clean, {name: x.clone() for name, x in clean.items()}).any()

    def test_spoilt_ones_raise_exactly_theirs(self) -> None:
        clean, spoilt = batch(), {name: x.clone() for name, x in batch().items()}
        spoilt["z"][2, 1] += 1e-6
        spoilt["s"][5, 3, 0] = 0.0
        spoilt["s"][6] = 0.0
        want = torch.zeros(B, 2, dtype=torch.bool)
        want[2, 0] = want[5, 1] = want[6, 1] = True
        assert torch.equal(flags(spoilt, clean), want)

    def test_padding_raises_none(self) -> None:
        clean, mask = batch(), torch.ones(B, T, dtype=torch.bool)
        mask[:, 3:] = False
        spoilt = {"z": clean["z"], "s": torch.where(mask.unsqueeze(-1), clean["s"], NAN)}
        assert not flags(spoilt, clean, {"s": mask}).any()
        spoilt["s"][1, 0, 0] += 1.0
        assert flags(spoilt, clean, {"s": mask}).nonzero().tolist() == [[1, 1]]

    def test_corruption_raises_what_it_spoils(self) -> None:
        clean = batch(200)
        spoilt = ModalityCorruption(0.4)(clean)
        want = torch.stack([(spoilt[name] != clean[name]).flatten(1).any(1) for name in SIZES], dim=1)
        assert torch.equal(flags(spoilt, clean), want)
        assert 0.3 < want.float().mean() < 0.5

    def test_a_lower_precision_of_the_input_raises_none(self) -> None:
        clean = batch()
        assert not flags({name: x.bfloat16() for name, x in clean.items()}, clean).any()

    def test_wrong_shape(self) -> None:
        clean = batch()
        with pytest.raises(ValueError, match=r"VariationalFusionClassifier: expected targets\[0\]"):
            build(reconstruction_weight=0.0)(clean, targets={"z": clean["z"][:1]})


class TestTraining:
    @pytest.mark.parametrize("quality", ["scale", "replace"])
    def test_the_term_is_the_cross_entropy_of_the_flags(self, quality: str) -> None:
        clean = batch()
        spoilt = {"z": clean["z"], "s": torch.where(torch.arange(B).reshape(B, 1, 1) < 3, 0.0, clean["s"])}
        model = build(quality)
        logvar = model.quality([spoilt["z"], spoilt["s"]])
        want = torch.stack([torch.zeros(B), (torch.arange(B) < 3).float()], dim=1)
        added = difference(model, 0.7, spoilt, targets=clean)
        torch.testing.assert_close(added, 0.7 * F.binary_cross_entropy(1 - (-logvar).exp(), want))

    def test_no_term_without_targets_and_none_in_eval(self) -> None:
        assert difference(build(), 0.7, batch()) == 0
        assert difference(build().eval(), 0.7, batch(), targets=batch()) == 0

    def test_with_clean_targets_nothing_pushes_a_log_variance_up(self) -> None:
        """No flag is raised, so the term only asks for low log-variances."""
        clean, model = batch(), build(fit=False)
        model.fit_quality(batch(100, 1))
        difference(model, 1.0, clean, targets=clean).backward()
        assert all(head[2].bias.grad > 0 for head in model.quality.heads)  # a step against it lowers them

    @pytest.mark.parametrize("absence", ["exclude", "zero_fill"])
    def test_what_is_absent_or_dropped_does_not_count(self, absence: str) -> None:
        """Neither inputs nor targets are read where nothing is, although zero filling encodes zeros in its place."""
        model, clean = build(absence=absence, attention="none"), batch()
        present = torch.tensor([[True, False], [True, True]] * (B // 2))
        mask = torch.arange(T).expand(B, T) < 3
        added = {}
        for fill in (0.0, 7.0, NAN):
            there = {"z": present[:, :1], "s": (mask & present[:, 1:]).unsqueeze(-1)}
            targets = {name: torch.where(there[name], x, fill) for name, x in clean.items()}
            added[fill] = difference(model, 1.0, targets, present, {"s": mask}, targets)
        assert added[0.0] > 0
        assert torch.equal(added[0.0], added[7.0]) and torch.equal(added[0.0], added[NAN])
        logvar = model.quality([clean["z"], clean["s"]], None, [None, mask])[present]
        torch.testing.assert_close(added[0.0], logvar.mean())

    def test_dropped_modalities_do_not_count(self) -> None:
        model, clean = build(modality_dropout=1.0), batch()
        torch.manual_seed(0)
        kept = model(clean).present
        assert not kept.all(1).any()
        added = difference(model, 1.0, clean, targets=clean)
        torch.testing.assert_close(added, model.quality([clean["z"], clean["s"]])[kept].mean())


class TestFusion:
    def test_what_becomes_of_the_stds(self) -> None:
        plain, x = build("none", fit=False).eval(), batch()
        for mode in ("scale", "replace"):
            model = build(mode).eval()
            missing = model.load_state_dict(plain.state_dict(), strict=False)
            assert not missing.unexpected_keys and all(key.startswith("quality.") for key in missing.missing_keys)
            factor = (0.5 * model.quality([x["z"], x["s"]])).exp().unsqueeze(-1)
            want = factor.expand(B, 2, 6) if mode == "replace" else plain(x).std * factor
            torch.testing.assert_close(model(x).std, want)
            torch.testing.assert_close(model(x).mu, plain(x).mu)
            torch.testing.assert_close(model(x).weights, plain.fusion(plain(x).mu, want).weights)

    def test_stds_are_not_those_of_the_published_dropout(self) -> None:
        """Zero filling tells the fusion 1e6 for what was dropped; the output keeps what the encoders said."""
        model = build("none", fit=False, absence="zero_fill", modality_dropout=1.0, attention="none")
        assert model(batch()).std.max() < 100

    def test_an_unfitted_head_changes_nothing(self) -> None:
        plain, model, x = build("none", fit=False).eval(), build("scale", fit=False).eval(), batch()
        model.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(model(x).logits, plain(x).logits)


class TestFit:
    def test_a_model_without_quality_says_so(self) -> None:
        with pytest.raises(
            RuntimeError, match="VariationalFusionClassifier: expected a model with quality, got quality='none'"
        ):
            build("none", fit=False).fit_quality(batch())

    def test_a_frozen_model_has_to_be_taught(self) -> None:
        """Untaught and frozen, the weights would be equal for ever, and nothing would say so."""
        with pytest.raises(RuntimeError, match="expected teach=True with freeze_quality=True, got quality"):
            build(fit=False, freeze_quality=True).fit_quality(batch(40))

    def test_fitting_reads_what_forward_reads(self) -> None:
        """By name and in any order, without what is absent; a modality that is left out altogether is named."""
        x, present = batch(40), torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) < 0.7
        mask = torch.rand(40, T, generator=torch.Generator().manual_seed(1)) < 0.7
        there = {"z": present[:, :1], "s": (mask & present[:, 1:]).unsqueeze(-1)}
        model, same = build(fit=False), build(fit=False)
        model.fit_quality({name: torch.where(there[name], x[name], NAN) for name in ("s", "z")}, present, {"s": mask})
        same.quality.fit([x["z"], x["s"]], present, [None, mask])
        for name, value in model.state_dict().items():
            assert torch.equal(value, same.state_dict()[name]), name
        with pytest.raises(ValueError, match=r"expected features\['z'\] with a present row"):
            model.fit_quality({"s": x["s"]})
        with pytest.raises(ValueError, match="VariationalFusionClassifier: expected the keys of inputs"):
            model.fit_quality({"smell": x["s"]})

    def test_options(self) -> None:
        with pytest.raises(ValueError, match="expected quality to be one of 'none', 'scale', 'replace', got 'on'"):
            build("on")
        with pytest.raises(ValueError, match="expected quality_weight"):
            build(quality_weight=-1.0)
