"""Small heads on codes: a land-cover class, or whether a patch is cloud, from few labels.

`fit_linear` is multinomial logistic regression by L-BFGS with weight decay, on standardised features: deterministic, no
learning rate. `fit_whole` trains an encoder together with its head. Both return a function from patches to scores.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Scores = Callable[[Tensor], Tensor]


class Linear(nn.Module):
    """Standardised features (n, k) -> scores (n, classes)."""

    def __init__(self, features: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("deviation", features.std(dim=0).clamp(min=1e-4))
        self.linear = nn.Linear(features.shape[1], classes)
        nn.init.zeros_(self.linear.weight)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear((features - self.mean) / self.deviation)
        return out


def fit_linear(features: Tensor, labels: Tensor, classes: int, decay: float = 1e-2) -> Linear:
    """A head on fixed features (n, k)."""
    head = Linear(features, classes)
    optimiser = torch.optim.LBFGS(head.linear.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(head(features), labels) + decay * (head.linear.weight**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return head


def fit_whole(encode: nn.Module, patches: Tensor, labels: Tensor, classes: int, steps: int, seed: int) -> Scores:
    """An encoder (a module with `encode`) fine-tuned, or trained from where it is, together with a new head."""
    whole = deepcopy(encode)
    with torch.no_grad():
        features = whole.encode(patches).flatten(1)
    head = fit_linear(features, labels, classes)
    optimiser = torch.optim.Adam([*whole.parameters(), *head.linear.parameters()], lr=1e-3, fused=True)
    random = torch.Generator().manual_seed(seed)
    whole.train()
    for _ in range(steps):
        rows = torch.randint(len(patches), (min(64, len(patches)),), generator=random)
        loss = F.cross_entropy(head(whole.encode(patches[rows]).flatten(1)), labels[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    whole.eval()
    return lambda x: head(whole.encode(x).flatten(1))


def balanced_accuracy(scores: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over classes of the share that is recognised: every class counts the same, however rare."""
    found = scores.argmax(dim=1)
    shares = [(found[labels == c] == c).float().mean() for c in range(classes) if (labels == c).any()]
    return float(torch.stack(shares).mean())


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative: the area under the ROC curve (ties count a half)."""
    order = scores.double().argsort()
    ordered = scores[order]
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    for value in ordered.unique():
        same = scores == value
        if int(same.sum()) > 1:
            ranks[same] = ranks[same].mean()
    ones = int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(scores) - ones)))
