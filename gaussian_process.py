"""The Gaussian process regression that stands beside the heads of FaceResNet29_v1.0."""
import torch
from torch import nn

from face_resnet29 import DESCRIPTOR_SIZE
from labels import TRAITS


class GaussianProcess(nn.Module):
    """Gaussian process regression, also called kernel ridge regression: similar training faces pull a score towards their labels.

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.23 and 2.25. The prior mean is the
    mean label. The covariance of two faces is the sum of two squared exponentials: one of all standardised features, for
    how alike the faces are, and a narrow one of dlib's descriptor, for whether they show the same person. It is solved
    once, without epochs. The faces it keeps are part of the checkpoint: the README says what that means for the people
    they show.
    """

    # Chosen on folds of ChaLearn's training clips (benchmarks/accuracy.py); the accuracy is flat around all of them.
    COMPONENTS = 512         # principal components in which all features are compared; more gave nothing
    FEATURE_WIDTH = 4.0      # kernel width: the covariance is 1/e at this mean squared distance per feature
    PERSON_WIDTH = 0.08      # the same for the descriptor: below 0.16 to 0.2 dlib takes two faces for one person's
    PERSON_PART = 0.5        # variance of the second part, where that of the first is 1
    NOISE = 0.3              # variance of the noise in a label
    MOST_FACES = 10_000      # time grows with the third power: about 20 s on two cores, 2 GB of memory

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.allocate(0, self.COMPONENTS)

    def allocate(self, faces: int, components: int) -> None:
        """Make room for that many faces; those kept before are dropped."""
        for name, shape in {"centre": (self.width,), "projection": (self.width, components), "faces": (faces, components),
                            "descriptors": (faces, DESCRIPTOR_SIZE), "weights": (faces, len(TRAITS)),
                            "constant": (len(TRAITS),)}.items():
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, features: torch.Tensor, targets: torch.Tensor, seed: int = 0) -> None:
        """Keep N faces. features: float32 N x F, mean of the picture's and its mirror image's; targets: float32 N x 5."""
        features, targets = features.cpu().float(), targets.cpu().float()
        device = self.centre.device
        components = min(self.COMPONENTS, *features.shape)
        self.allocate(len(features), components)
        self.centre = features.mean(0)
        std = features.std(0, correction=0).clamp_min(1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            axes = torch.svd_lowrank((features - self.centre) / std, components, niter=2)[2]
        self.projection = (axes / std[:, None]).contiguous()
        self.faces = (features - self.centre) @ self.projection
        self.descriptors = features[:, -DESCRIPTOR_SIZE:].contiguous()
        self.constant = targets.mean(0)
        covariance = self.covariance(self.faces, self.descriptors).double()
        covariance.diagonal().add_(self.NOISE)
        factor = torch.linalg.cholesky(covariance)
        self.weights = torch.cholesky_solve((targets - self.constant).double(), factor).float()
        self.to(device)

    def covariance(self, faces: torch.Tensor, descriptors: torch.Tensor) -> torch.Tensor:
        """Return the covariance, M x N, of M faces (components, descriptors) and the N kept ones."""
        return (torch.exp(-squared_distances(faces, self.faces) / (self.FEATURE_WIDTH * self.width))
                + self.PERSON_PART * torch.exp(-squared_distances(descriptors, self.descriptors) / self.PERSON_WIDTH))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the scores B x 5 in [0, 1] of features B x F."""
        covariance = self.covariance((features - self.centre) @ self.projection, features[:, -DESCRIPTOR_SIZE:])
        return (self.constant + covariance @ self.weights).clamp(0, 1)


def squared_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the squared Euclidean distances, M x N, of the rows of M x D and N x D."""
    # Not torch.cdist, which has no form in ONNX.
    products = first @ second.T
    return ((first ** 2).sum(1)[:, None] + (second ** 2).sum(1)[None] - 2 * products).clamp_min(0)
