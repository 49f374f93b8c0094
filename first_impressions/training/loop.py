"""The loop of a training run: its schedule, state and step. train.py and the search both run it.

    state = start_training(network, samples, plan)
    for record in fit(state, plan, samples, validation):
        ...                                     # the record of each epoch
"""
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from first_impressions.common.command_line import UserError, counted, progress_bar
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import is_main_process, rank, send, world_size
from first_impressions.data.chips import epoch_batches
from first_impressions.evaluation.metrics import accuracies_of_clips, basic_figures, scores_of_clips
from first_impressions.networks.losses import LOSSES
from first_impressions.networks.network import PersonalityNetwork, load_network_state
from first_impressions.networks.principal_components import MOST_ROWS
from first_impressions.networks.settings import Plan, Settings
from first_impressions.training.inputs import score_rows
from first_impressions.training.samples import Samples

# ---------------------------------------------------------------- optimiser and schedule

def warmup_cosine(total_steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at a step: linear warm-up, then a cosine down to 0."""
    warmup_steps = max(1, round(warmup * total_steps))

    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
    return factor


def parameter_groups(network: PersonalityNetwork, settings: Settings) -> list[dict]:
    """Return the optimiser's parameter groups: the heads learn with lr, the last trained stage with lr x
    backbone_lr_factor, each stage before it with layer_decay times the next one's rate. Biases and normalisation layers
    (one-dimensional) are not decayed."""
    parts = [("heads", network.heads, settings.lr)]
    for distance, stage in enumerate(reversed(network.trained)):
        rate = settings.lr * settings.backbone_lr_factor * settings.layer_decay ** distance
        parts.append((stage, network.backbone.get_submodule(stage), rate))
    groups = []
    for name, module, rate in parts:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decay, some in ((settings.weight_decay, [p for p in parameters if p.ndim > 1]),
                            (0.0, [p for p in parameters if p.ndim < 2])):
            if some:
                groups.append({"params": some, "lr": rate, "weight_decay": decay, "name": name})
    return groups


# ---------------------------------------------------------------- state

@dataclass
class TrainingState:
    """The state of a training run as checkpoints store it, so that a resumed one goes on as if never stopped."""
    network: PersonalityNetwork
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    epoch: int = 0                      # epochs done
    step: int = 0                       # steps done of the next one
    loss_sum: torch.Tensor | float = 0.0    # of these steps; on the device, so that no step waits for it
    loss_count: int = 0                 # number of losses in the sum
    history: list = field(default_factory=list)     # the record of each epoch
    best: dict | None = None            # of the best epoch: epoch, accuracy, network

    def state_dict(self) -> dict:
        """Return the state as tensors and plain data."""
        return {**vars(self), "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(), "loss_sum": float(self.loss_sum)}

    def load_state_dict(self, saved: dict) -> None:
        """Take over what state_dict returned, but for the network's own weights, which are loaded before."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        for name in ("epoch", "step", "loss_sum", "loss_count", "history", "best"):
            setattr(self, name, saved[name])


def fit_frozen_parts(network: PersonalityNetwork, samples: Samples, settings: Settings, seed: int) -> None:
    """Fit the closed-form parts to ClipFeatures: the projection, and the Gaussian process if there is one. The samples
    keep what was fitted for the next network with the same settings: the trials of a search have few different ones.
    """
    usable, memory = samples.usable, network.memory
    key = settings.components, seed
    if key not in samples.fitted:
        drawn = np.sort(np.random.default_rng([seed, 1]).permutation(usable)[:MOST_ROWS])
        network.projection.fit(samples.features(drawn), seed)
    network.projection = samples.fitted.setdefault(key, network.projection)
    if memory is None:
        return
    key += settings.memory, settings.noise, settings.centres
    if key not in samples.fitted:
        means, targets = samples.projected(network)[usable, 0], samples.targets[usable]
        if memory.descriptor_size:
            memory.fit_exact(means, targets, settings.noise)
        else:
            speakers = samples.split.speakers.loc[samples.clips[usable]].to_numpy()
            memory.fit_centres(means, targets, speakers, settings.centres, settings.noise, seed)
    network.memory = samples.fitted.setdefault(key, memory)


def start_training(network: PersonalityNetwork, samples: Samples, plan: Plan,
                   saved: dict | None = None) -> TrainingState:
    """Return the state of a new training, or of one to go on with. network: on the machine's device; saved: what
    TrainingState.state_dict returned. Raises UserError if there are too few samples for a step."""
    settings, usable = plan.settings, len(samples.usable)
    if usable < 2 * world_size():
        unit = "clip" if samples.of_clips else "face"
        raise UserError(f"{samples.split.name}: only {counted(usable, unit)} can be read; training needs at least two "
                        "a step")
    total_steps = plan.num_epochs * len(batches_of_epoch(samples, plan, 0))
    optimizer = torch.optim.AdamW(parameter_groups(network, settings), fused=True)
    scheduler = LambdaLR(optimizer, warmup_cosine(total_steps, settings.warmup))
    if saved:
        load_network_state(network, saved["network"], "the saved state of training")
    else:
        # Each head begins by predicting the mean label of the training clips.
        means = torch.tensor([samples.split.labels[trait].mean() for trait in TRAITS], dtype=torch.float32)
        with torch.no_grad():
            for head in network.heads:
                head[-1].bias.copy_(torch.logit(means.clamp(0.01, 0.99)))
        if network.frozen:
            fit_frozen_parts(network, samples, settings, plan.seed)
    state = TrainingState(network, optimizer, scheduler)
    if saved:
        try:
            state.load_state_dict(saved)
        except Exception as error:  # torch raises many kinds, depending on what does not fit
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"the saved state of training does not fit ({reason}); "
                            "start again with --overwrite") from None
    return state


# ---------------------------------------------------------------- loop

def check_finite(loss: torch.Tensor | float, epoch: int) -> None:
    """Raise UserError if a loss of that epoch, counted from 0, is not finite: the weights are lost."""
    if not math.isfinite(loss):
        raise UserError(f"the loss became {float(loss)} in epoch {epoch + 1}: the weights have grown beyond all "
                        "bounds; take a smaller --lr")


def batches_of_epoch(samples: Samples, plan: Plan, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch, as places in samples.usable, for this process: one batch per step."""
    return epoch_batches(len(samples.usable), plan.batch_size, plan.seed, epoch, rank(), world_size())


def validate(network: PersonalityNetwork, samples: Samples, loss: str, constant: pandas.Series) -> dict[str, float]:
    """Return loss_valid, of all rows together, and accuracy_<trait>, gain_<trait> (over the constant, the mean label of
    the training clips) and pearson_<trait>, per clip as the challenge measures. loss: a key of LOSSES."""
    scores = score_rows(network, samples)
    clips = scores_of_clips(samples.clips, scores)
    if clips.empty:
        raise UserError(f"{samples.split.name}: no score is a number; make faces that cannot be read (they are named "
                        "above) again, or, if the weights have grown beyond all bounds, take a smaller --lr")
    labels = samples.split.labels.loc[clips.index]
    readable = ~np.isnan(scores).any(axis=1)
    figures = {"loss_valid": float(LOSSES[loss](torch.from_numpy(scores[readable]), samples.targets[readable]))}
    table = basic_figures(labels, clips)
    table["gain"] = table["accuracy"] - accuracies_of_clips(labels, 0 * labels + constant).mean()
    for figure in ("accuracy", "gain", "pearson"):
        figures.update(table[figure].add_prefix(f"{figure}_").to_dict())
    return figures


def _change_inputs(samples, settings, rows, inputs, generator):
    """Return (inputs, targets B x 5) of a step: uint8 chips B x 3 x H x W, half of them mirrored, or of the features of
    clips B x 2 x W float32 B x W, of some the one face; mixed-up chips are float32 in [0, 255]."""
    drawn, device = torch.from_numpy(generator.random(len(rows))), inputs.device
    if samples.of_clips:
        inputs = inputs[torch.arange(len(rows), device=device), send((drawn < settings.one_face).long(), device)]
    elif settings.hflip:
        inputs = torch.where(send(drawn < 0.5, device).view(-1, 1, 1, 1), inputs.flip(-1), inputs)
    targets = send(samples.targets[torch.from_numpy(rows)], device)
    if settings.mixup:
        # Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization (https://arxiv.org/abs/1710.09412).
        part = float(generator.beta(settings.mixup, settings.mixup))
        other = torch.from_numpy(generator.permutation(len(rows))).to(device)
        inputs = part * inputs.float() + (1 - part) * inputs[other].float()
        targets = part * targets + (1 - part) * targets[other]
    return inputs, targets


def _take_step(state, parallel, inputs, targets, loss_function):
    """One step of the optimiser on a batch: the mean loss of the heads, its gradient, the schedule."""
    scores = parallel(inputs, of_each_head=True)
    loss = torch.stack([loss_function(of_head, targets) for of_head in scores]).mean()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    state.scheduler.step()
    state.loss_sum = state.loss_sum + loss.detach()
    state.loss_count += 1


def _train_epoch(state, parallel, plan, samples, after_step, show_progress):
    """Take the steps of an epoch that are still to do; return (samples, mean loss over all processes)."""
    loss_function, taken = LOSSES[plan.settings.loss], 0
    batches = batches_of_epoch(samples, plan, state.epoch)
    usable = samples.usable
    state.network.train()
    with progress_bar(total=len(usable), unit="sample", leave=False, desc=f"epoch {state.epoch + 1}/{plan.num_epochs}",
                      initial=min(len(usable), state.step * plan.batch_size * world_size()),
                      disable=None if show_progress and is_main_process() else True) as bar:
        to_read = [usable[batch].tolist() for batch in batches[state.step:]]
        for step, (rows, inputs) in enumerate(samples.batches(state.network, to_read, state.epoch), state.step):
            if len(rows) < 2:  # batch normalisation needs two
                if world_size() > 1:
                    raise UserError("a step's faces cannot be read (named above); make them again, "
                                    "the other processes wait for them")
                continue
            # What is random in a step depends only on its number, so that a resumed run draws the same.
            generator = np.random.default_rng([plan.seed, state.epoch, step, rank()])
            inputs, targets = _change_inputs(samples, plan.settings, rows, inputs, generator)
            torch.manual_seed(int(generator.integers(2**62)))  # dropout draws from torch's own generator
            _take_step(state, parallel, inputs, targets, loss_function)
            state.step = step + 1
            taken += len(targets)
            bar.update(len(targets) * world_size())
            # The last step of an epoch is followed by its validation, and only then is the epoch over.
            if state.step < len(batches) and after_step:
                after_step(state)
    if not state.loss_count:
        raise UserError(f"{samples.split.name}: none of its faces can be read (they are named above); make them again")
    mean_loss = float(state.loss_sum) / state.loss_count
    if world_size() > 1:
        total = torch.tensor(mean_loss, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        mean_loss = float(total) / world_size()
    return taken, mean_loss


def fit(state: TrainingState, plan: Plan, samples: Samples, validation: Samples | None = None,
        after_step: Callable[[TrainingState], None] | None = None, show_progress: bool = True) -> Iterator[dict]:
    """Train up to plan.num_epochs and yield the record of each epoch.

    A record has epoch, loss_train, seconds, samples_per_second, the learning rates, and with validation (in the main
    process only) what validate returns. after_step(state) is called between any two steps of an epoch. Raises UserError
    if the loss is not finite.
    """
    parallel: nn.Module = state.network
    if world_size() > 1:
        device = state.network.mean.device
        parallel = DistributedDataParallel(state.network, device_ids=[device.index] if device.type == "cuda" else None)
    while state.epoch < plan.num_epochs:
        started = time.monotonic()
        taken, mean_loss = _train_epoch(state, parallel, plan, samples, after_step, show_progress)
        check_finite(mean_loss, state.epoch)
        seconds = max(time.monotonic() - started, 1e-9)
        record = {"epoch": state.epoch + 1, "loss_train": mean_loss, "seconds": seconds,
                  "samples_per_second": taken * world_size() / seconds}
        # The optimiser's own rates are by now those of the next step.
        factor = state.scheduler.lr_lambdas[0](state.scheduler.last_epoch - 1)
        record.update({f"learning_rate_{group['name']}": group["initial_lr"] * factor
                       for group in state.optimizer.param_groups})
        if validation is not None and is_main_process():
            record.update(validate(state.network, validation, plan.settings.loss, samples.split.labels.mean()))
            if state.best is None or record["accuracy_mean"] > state.best["accuracy"]:
                network = {key: value.detach().cpu().clone() for key, value in state.network.state_dict().items()}
                state.best = {"epoch": state.epoch + 1, "accuracy": record["accuracy_mean"], "network": network}
        state.history.append(record)
        state.epoch, state.step, state.loss_sum, state.loss_count = state.epoch + 1, 0, 0.0, 0
        yield record
