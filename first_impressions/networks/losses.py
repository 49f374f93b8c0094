"""The losses of a training run, by the names that --loss knows."""
import torch
from torch.nn import functional


def ccc_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return 1 - the mean over the traits of Lin's concordance correlation (Biometrics 45, 1989), for B x 5 tensors.

    A trait that is constant within the batch has no correlation and is left out. Its plain formula is
    nan there, and so would be the gradient of all others.
    """
    target_std, difference = targets.std(0), scores.mean(0) - targets.mean(0)
    covariance = ((scores - scores.mean(0)) * (targets - targets.mean(0))).sum(0) / (len(targets) - 1)
    correlation = 2 * covariance / (scores.var(0) + target_std ** 2 + difference ** 2 + 1e-8)
    varies = (target_std > 1e-6).float()
    return 1 - (correlation * varies).sum() / varies.sum().clamp_min(1)


LOSSES = {"mse": functional.mse_loss, "l1": functional.l1_loss,
          "smooth_l1": lambda scores, targets: functional.smooth_l1_loss(scores, targets, beta=0.1),
          # The concordance of a small batch says little, so the squared error stays in.
          "ccc": lambda scores, targets: 0.1 * ccc_loss(scores, targets) + functional.mse_loss(scores, targets)}
