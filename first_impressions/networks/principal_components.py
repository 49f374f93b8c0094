"""The projection of a frozen backbone's features on the principal components of the training clips."""
import torch
from torch import nn

MOST_ROWS = 10_000  # clips that the components are computed from; larger sets are subsampled, which bounds memory


class PrincipalComponents(nn.Module):
    """Principal components of standardised features (Jolliffe, Principal Component Analysis, 2002, section 2.3).

    Fewer training clips than components leave the last components at zero. scale is the std of all components together:
    dividing each by its own would raise the noise of the last ones to the height of the first.
    """

    def __init__(self, width: int, components: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("axes", torch.randn(width, components) / width ** 0.5)  # until it is fitted
        self.register_buffer("scale", torch.ones(()))

    def fit(self, features: torch.Tensor, seed: int = 0) -> None:
        """Compute the components of the rows of float32 N x F. Randomised (Halko et al. 2011), with a seed."""
        features = features.float().cpu()
        components = min(self.axes.shape[1], len(features) - 1, features.shape[1])
        mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            axes = torch.svd_lowrank((features - mean) / std, components, niter=2)[2]
        self.mean.copy_(mean)
        self.axes.zero_()
        self.axes[:, :components] = axes / std[:, None]
        self.scale.copy_(((features - mean) @ self.axes[:, :components].cpu()).std())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the components, B x K, of features B x F."""
        return (features - self.mean) @ self.axes
