"""Adaptive semantic recalibration: gates on the tokens of a text.

Every module takes tokens ``(B, T, H)``, such as the hidden states of a language model, with a mask ``(B, T)``, True =
real, and returns tokens of the same shape, channel by channel multiplied by a gate. Masked tokens are never read, come
out as zeros, and change no real token. :class:`~mmrobust.ASRM` is the original, one gate for all tokens of a text; the
others give each token a gate of its own, start as the identity and do the same in training and evaluation.
"""

from ._gate import CalibratedTokens
from .contrastive import ContrastiveASRM
from .position import PositionAwareASRM
from .span import SpanAwareASRM
from .uniform import ASRM

__all__ = ["ASRM", "CalibratedTokens", "ContrastiveASRM", "PositionAwareASRM", "SpanAwareASRM"]
