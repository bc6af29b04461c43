"""What the tests of the hate-speech commands share: a configuration on a tiny encoder, and failing commands."""

from __future__ import annotations

from functools import partial

from examples.hate_speech.__main__ import main
from examples.hate_speech.ablate import CONFIGS
from tests.examples import failing

SPAN = str(CONFIGS / "span_aware.yaml")
TINY = ["--data.encoder", "tiny", "--data.max_tokens", "32", "--data.cache", "null", "--trainer.accelerator", "cpu"]


fails = partial(failing.fails, main)
