"""The shared encoder: two LSTMs that read a sequence from both ends."""

import torch
from torch import nn


class BidirectionalEncoder(nn.Module):
    """Word vectors, then a forward and a backward LSTM of D/2 units each.

    The backward LSTM reads each sequence reversed within its own length, so that padding, which follows the
    real tokens in both directions, never reaches a state of a real token.
    """

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        self.table = nn.Embedding(vocab_size, dim)
        self.forward_lstm = nn.LSTM(dim, dim // 2, batch_first=True)
        self.backward_lstm = nn.LSTM(dim, dim - dim // 2, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the state of each token: forward after reading it joined to backward after reading it.

        Shapes: ids int64 (B, T), mask bool (B, T) -> (B, T, D); states at padding mean nothing.
        """
        vectors = self.table(ids)  # (B, T, D)
        ahead, _ = self.forward_lstm(vectors)
        positions = torch.arange(ids.shape[1], device=ids.device)
        mirror = (mask.sum(1, keepdim=True) - 1 - positions).clamp(min=0)[..., None]  # (B, T, 1)
        behind, _ = self.backward_lstm(vectors.gather(1, mirror.expand_as(vectors)))
        behind = behind.gather(1, mirror.expand_as(behind))
        return torch.cat([ahead, behind], dim=-1)
