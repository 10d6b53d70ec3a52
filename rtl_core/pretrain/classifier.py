"""The shared classifier: an encoder and a linear layer over the labels of tokens, of sequences or of pairs."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.batches import Batch, Sequences, groups
from rtl_core.training import Loss, device, to_device


class Classifier(nn.Module):
    """Names the label of each `token`, of each `sequence` by the mean of its states, or of each `pair` of them.

    A batch of pairs holds all first sequences, then all second ones, with targets for both halves alike.
    Source (features of a pair): Conneau et al. 2017, section 3.1 (u, v, |u - v|, u * v).
    """

    def __init__(
        self, encoder: nn.Module, dim: int, n_labels: int, unit: str = "sequence", dropout: float = 0.0
    ):
        super().__init__()
        self.encoder, self.unit = encoder, unit
        self.output = nn.Linear(4 * dim if unit == "pair" else dim, n_labels)
        self.dropout = nn.Dropout(dropout)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Returns the scores of the labels. Shapes: (B, T) -> (n, n_labels), n tokens, sequences or pairs."""
        states = self.encoder(batch.inputs, batch.mask)  # (B, T, D)
        if self.unit == "token":
            return self.output(self.dropout(states[batch.mask]))
        means = (states * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
        if self.unit == "pair":
            first, second = means.chunk(2)
            means = torch.cat([first, second, (first - second).abs(), first * second], dim=1)
        return self.output(self.dropout(means))

    def targets(self, batch: Batch) -> torch.Tensor:
        """Returns the labels that `logits` scores. Shape (n,)."""
        if self.unit == "token":
            return batch.targets[batch.mask]
        return batch.targets.chunk(2)[0] if self.unit == "pair" else batch.targets

    def loss(self, batch: Batch, state=None) -> Loss:
        """Returns the summed cross-entropy of the batch's labels."""
        targets = self.targets(batch)
        return Loss(F.cross_entropy(self.logits(batch), targets, reduction="sum"), len(targets))


def paired(both: Sequences, order=None):
    """Yields batches of pairs; `both` holds all first sequences, then all second ones. Shapes: labels (2 n,)."""
    half = len(both) // 2
    for group in groups(2 * np.maximum(both.lengths[:half], both.lengths[half:]), order):
        yield both.take(np.concatenate([group, group + half]))


@torch.no_grad()
def predictions(model: Classifier, batches, allowed=None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best label, of those `allowed` (None: any), and the true one, in the order of the batches.

    Shapes: allowed, label numbers; returns int64 (n,), int64 (n,).
    """
    model.eval()
    found, true = [], []
    for batch in (to_device(batch, device()) for batch in batches):
        logits = model.logits(batch)
        if allowed is not None:
            barred = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
            barred[list(allowed)] = False
            logits = logits.masked_fill(barred, -torch.inf)
        found.append(logits.argmax(1).cpu().numpy())
        true.append(model.targets(batch).cpu().numpy())
    return np.concatenate(found), np.concatenate(true)


def accuracies(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Returns the share of labels that are right, and that of the most frequent one."""
    majority = float(np.bincount(true).max() / len(true))
    return {"accuracy": float(np.mean(found == true)), "majority_accuracy": majority}
