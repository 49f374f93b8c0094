"""The Gaussian process regression that stands beside the heads of FaceResNet29_v1.0.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.23 and 2.25. The prior mean is the
mean label: similar training clips pull a score towards their labels. It is solved once, without epochs, in two forms:

    exact     keeps the features of every training clip. The covariance of two clips is the sum of two squared
              exponentials, one of all features, for how alike the faces are, and a narrow one of dlib's descriptor, for
              whether they show the same person. What it keeps are descriptors by which people can be recognised.
    centres   keeps some hundred centres, each the mean of many clips of several speakers, and no descriptor: the subset
              of regressors of Quinonero-Candela and Rasmussen (JMLR 6, 2005), section 6.1; also called inducing points
              (Titsias, AISTATS 2009). Time grows with the clips, memory does not.
"""
import warnings

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import nn

from first_impressions.common.constants import TRAITS

# Chosen on folds of ChaLearn's training clips (benchmarks/accuracy.py); the accuracy is flat around all of them.
FEATURE_WIDTH = 4.0     # kernel width: the covariance is 1/e at this mean squared distance per feature
PERSON_WIDTH = 0.08     # the same for the descriptor: below 0.16 to 0.2 dlib takes two faces for one person's
PERSON_PART = 0.5       # variance of the second kernel, if that of the first is 1
MOST_CLIPS = 10_000     # of the exact form: time grows with the third power of the clips
LEAST_CLIPS, LEAST_SPEAKERS = 10, 5     # behind every centre
CLIPS_PER_CENTRE = 20   # on average, at least
ROUNDS = 50             # of k-means, at most
MOST_POINTS = 50_000    # that k-means runs on; the centres are then means of all
CHUNK = 4096            # rows at a time


class GaussianProcess(nn.Module):
    """Regression of rows B x (components + descriptor) to scores B x 5, in the form "exact" or "centres". width: number
    of features that the components stand for. descriptor_size: 0 in the form with centres."""

    def __init__(self, width: int, components: int, descriptor_size: int):
        super().__init__()
        self.width, self.components, self.descriptor_size = width, components, descriptor_size
        self.allocate(0)

    def allocate(self, points: int) -> None:
        """Make room for this many points; those kept before are dropped."""
        device = self.points.device if hasattr(self, "points") else None
        for name, shape, dtype in (("points", (points, self.components), torch.float32),
                                   ("descriptors", (points, self.descriptor_size), torch.float32),
                                   ("weights", (points, len(TRAITS)), torch.float32),
                                   ("constant", (len(TRAITS),), torch.float32),
                                   ("clips", (points,), torch.int64), ("speakers", (points,), torch.int64)):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

    def fit_exact(self, rows: torch.Tensor, targets: torch.Tensor, noise: float) -> None:
        """Keep the features, float32 N x (components + descriptor), with targets float32 N x 5. noise: variance of the
        noise in a label, if that of the first kernel is 1."""
        self.allocate(len(rows))
        self.points.copy_(rows[:, :self.components])
        self.descriptors.copy_(rows[:, self.components:self.components + self.descriptor_size])
        self.clips.fill_(1)
        self.speakers.fill_(1)
        self.constant.copy_(targets.mean(0))
        covariance = self.covariance(rows.to(self.points.device)).cpu().double()
        covariance.diagonal().add_(noise)
        factor = torch.linalg.cholesky(covariance)
        self.weights.copy_(torch.cholesky_solve((targets.cpu() - targets.cpu().mean(0)).double(), factor).float())

    def fit_centres(self, rows: torch.Tensor, targets: torch.Tensor, speakers: np.ndarray, number: int, noise: float,
                    seed: int = 0) -> None:
        """Keep at most this many centres of the features, float32 N x (components + ...), with targets float32 N x 5.

        speakers: the speaker of each row. Each centre is the mean of at least LEAST_CLIPS rows of LEAST_SPEAKERS
        speakers; there may be none.
        """
        points = rows[:, :self.components].cpu()
        number = min(number, len(rows) // CLIPS_PER_CENTRE)
        centres, clips, speakers_of_centre = find_centres(points, speakers, number, seed)
        self.allocate(len(centres))
        self.points.copy_(centres)
        self.clips.copy_(clips)
        self.speakers.copy_(speakers_of_centre)
        self.constant.copy_(targets.mean(0))
        difference = (targets.cpu() - targets.cpu().mean(0)).double()
        left = torch.zeros(len(centres), len(centres), dtype=torch.float64)
        right = torch.zeros(len(centres), len(TRAITS), dtype=torch.float64)
        for start in range(0, len(points), CHUNK):
            covariance = self.covariance(points[start:start + CHUNK].to(self.points.device)).cpu().double()
            left += covariance.T @ covariance
            right += covariance.T @ difference[start:start + CHUNK]
        of_centres = self.covariance(self.points).cpu().double()
        of_centres.diagonal().add_(1e-6)
        self.weights.copy_(torch.linalg.solve(left + noise * of_centres, right).float())

    def covariance(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the covariance, B x M, of rows B x (components + descriptor) and the M points that are kept."""
        distances = squared_distances(rows[:, :self.components], self.points)
        covariance = torch.exp(-distances / (FEATURE_WIDTH * self.width))
        if not self.descriptor_size:
            return covariance
        descriptors = rows[:, self.components:self.components + self.descriptor_size]
        return covariance + PERSON_PART * torch.exp(-squared_distances(descriptors, self.descriptors) / PERSON_WIDTH)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the scores B x 5 in [0, 1] of rows B x (components + descriptor)."""
        return (self.constant + self.covariance(rows) @ self.weights).clamp(0, 1)


def squared_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the squared Euclidean distances, M x N, of the rows of M x D and N x D."""
    # Not torch.cdist, which ONNX does not support.
    products = first @ second.T
    return ((first ** 2).sum(1)[:, None] + (second ** 2).sum(1)[None] - 2 * products).clamp_min(0)


def _nearest(points, centres):
    return torch.cat([squared_distances(points[start:start + CHUNK], centres).argmin(1)
                      for start in range(0, len(points), CHUNK)])


def find_centres(points: torch.Tensor, speakers: np.ndarray, number: int,
                 seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (centres M x K, clips of each, speakers of each) of points N x K by k-means (Lloyd, IEEE
    Transactions on Information Theory 28, 1982).

    A centre of fewer than LEAST_CLIPS points or LEAST_SPEAKERS speakers is given up, the poorest first, and its points
    go to the nearest others, so M may be smaller than number, and 0.
    """
    none = torch.zeros(0, points.shape[1]), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    if number < 1:
        return none
    codes = np.unique(speakers, return_inverse=True)[1]
    drawn = points[torch.from_numpy(np.random.default_rng(seed).permutation(len(points))[:MOST_POINTS])].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of centres without points, which are given up below
        centres = torch.from_numpy(kmeans2(drawn, drawn[:number], ROUNDS, minit="matrix")[0])
    while len(centres):
        nearest = _nearest(points, centres)
        clips = torch.bincount(nearest, minlength=len(centres))
        means = torch.zeros_like(centres).index_add_(0, nearest, points) / clips.clamp_min(1)[:, None]
        pairs = np.unique(np.stack([nearest.numpy(), codes]), axis=1)[0]
        speakers_of_centre = torch.from_numpy(np.bincount(pairs, minlength=len(centres)))
        poor = (clips < LEAST_CLIPS) | (speakers_of_centre < LEAST_SPEAKERS)
        if not poor.any():
            return means, clips, speakers_of_centre
        # The poorer half at once, at least one: their points may make others rich enough.
        order = torch.argsort(torch.where(poor, clips, clips.max() + 1), stable=True)
        given_up = order[:max(1, int(poor.sum()) // 2)]
        kept = torch.ones(len(centres), dtype=torch.bool)
        kept[given_up] = False
        centres = means[kept]
    return none
