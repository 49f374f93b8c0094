"""The training loop and the final training.

    python train.py NUM_EPOCHS EXPERIMENT MODEL FINAL_RUN BATCH_SIZE

    python train.py 60 final FaceResNet29_v1.0 true 128                               training + validation clips
    python train.py 60 trial FaceResNet29_v1.0 false 128                              validates after every epoch
    python train.py 60 final ResNet18_v1.0 true 64 --config runs/search/best_config.json    what the search found
    python train.py 60 final ResNet18_v1.0 true 64 --resume                           goes on after an interruption
    torchrun --nproc_per_node 4 train.py 20 final ResNet50_v1.0 true 256 --cache off  four GPUs (batch size: of each)

FINAL_RUN true trains on training + validation clips for exactly NUM_EPOCHS and never looks at the test clips (evaluate.py
does, once). false trains on the training clips, validates after every epoch and keeps the best epoch.

Writes runs/EXPERIMENT/: args.json, training.csv (one row an epoch), checkpoint_last.pt, checkpoint_best.pt (FINAL_RUN
false) and TensorBoard's event files.
"""
import json
import math
import os
import random
import shlex
import signal
import sys
import time
from pathlib import Path

from command_line import (UserError, folder_options, make_parser, positive_int, progress_bar, run_script, true_or_false,
                          whole_number, written_aside)

import numpy as np
import pandas
import torch
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchmetrics.functional import concordance_corrcoef
from torchvision.utils import make_grid

from dataset import (SPEAKER_REGEX, TRAITS, FaceDataset, Features, cached_features, check_same_crop, chip_loader, describe,
                     epoch_batches, join_splits, load_split, read_chip, split_by_speaker)
from evaluate import predict_faces, scores_of_clips, trait_accuracies, trait_correlations, versions
from model_architectures import (ARCHITECTURES, FaceMemory, architecture_named, autocast_dtype, backbone_key, build_network,
                                 config_keys, default_weights, load_checkpoint, load_network_state, parameter_groups,
                                 pick_device, save_checkpoint)

# What is used where neither the command line nor --config says otherwise.
DEFAULTS = {
    "l1": 1024,                  # first hidden layer of the head
    "l2": 256,                   # second hidden layer
    "l3": 64,                    # third hidden layer (ResNet101_v1.0)
    "dropout": 0.5,              # after each hidden layer
    "heads": 1,                  # heads trained side by side, whose scores are averaged
    "memory": 0.7,               # part of the memory of training faces in the scores (FaceResNet29_v1.0); 0: none
    "lr": 1e-3,                  # highest learning rate of the heads
    "weight_decay": 1e-2,        # of AdamW
    "backbone_lr_factor": 0.1,   # learning rate of the last trained stage of the backbone, as a part of lr
    "layer_decay": 0.7,          # and of each stage before it, as a part of the next one's
    "warmup": 0.1,               # part of the steps in which the learning rate rises; it then falls as a cosine
    "loss": "l1",                # mse, l1, smooth_l1 or ccc
    "mixup": 0.0,                # alpha of the Beta distribution that mixes pairs of samples; 0: none
    "augment": 0.0,              # strength of crops, colour and erasing, 0 to 1 (only where pictures are read every epoch)
    "average": 0.0,              # decay a step of the moving average of the weights; 0: none
    "mirror": True,              # half of the pictures mirrored in training
}
# The columns of TensorBoard's table of hyperparameters; accuracy_test comes from evaluate.py.
HPARAM_FIGURES = ("accuracy_test", "accuracy_mean", "pearson_mean", "loss_train", "loss_valid")
SECONDS_BETWEEN_CHECKPOINTS = float(os.environ.get("SECONDS_BETWEEN_CHECKPOINTS", 30))


# ---------------------------------------------------------------- loss

def ccc_loss(scores, targets):
    """Return 1 - the mean over the traits of Lin's concordance correlation (Biometrics 45, 1989), for B x 5 tensors."""
    return 1 - concordance_corrcoef(scores, targets).mean()


LOSSES = {"mse": functional.mse_loss, "l1": functional.l1_loss,
          "smooth_l1": lambda scores, targets: functional.smooth_l1_loss(scores, targets, beta=0.1),
          # The concordance of a small batch says little, so the squared error stays in.
          "ccc": lambda scores, targets: 0.1 * ccc_loss(scores, targets) + functional.mse_loss(scores, targets)}


# ---------------------------------------------------------------- data

def load_training_and_validation(data_dir, final_run, val_split="official", speaker_regex=SPEAKER_REGEX, seed=0,
                                 quiet=False):
    """Return (training Split, validation Split or None in the final run). Prints what they hold, unless quiet.

    val_split "official" validates on the validation clips; "speaker" joins both and sets aside about a fifth of the clips,
    of speakers that training does not hold.
    """
    training = load_split(data_dir, "train", speaker_regex)
    has_validation = (Path(data_dir) / "valid").is_dir()
    validation = load_split(data_dir, "valid", speaker_regex) if has_validation or val_split == "official" else None
    if final_run or val_split == "speaker":
        training = join_splits(training, validation) if validation else training
        validation = None
    if not final_run and val_split == "speaker":
        training, validation = split_by_speaker(training, 0.2, seed)
    if validation is not None:
        check_same_crop(training, validation)
    if is_main_process() and not quiet:
        for split in (training, validation):
            if split is not None:
                print(describe(split), flush=True)
        if validation is not None:
            known = validation.speakers.isin(set(training.speakers))
            if known.any():
                print(f"warning: {known.sum()} of {len(known)} validation clips show speakers that are in training; "
                      "--val-split speaker validates on unknown ones", file=sys.stderr, flush=True)
    return training, validation


def make_source(network, name, split, settings, device, cache, num_workers, training, seed):
    """Return what the loop reads: Features where the backbone is frozen and no augmentation needs pictures, else a
    FaceDataset."""
    if network.frozen and cache != "off" and not (training and settings["augment"]):
        return cached_features(split, network.features, backbone_key(network, name), device, cache, num_workers=num_workers)
    return FaceDataset(split, training=training, augment=settings["augment"], seed=seed)


def step_random(seed, epoch, step, rank):
    """Return the random generator of one step. It depends only on its arguments, so that a resumed run draws the same."""
    return np.random.default_rng([seed, epoch, step, rank])


def training_steps(source, targets, settings, batch_size, seed, epoch, first_step, device, num_workers, rank, world_size):
    """Yield (step, inputs, targets B x 5) on the device for one epoch, from its first_step on.

    inputs: uint8 chips B x 3 x H x W, or float32 features B x F; mixed-up chips are float32 in [0, 255].
    """
    usable = np.flatnonzero(~source.unreadable) if isinstance(source, Features) else np.arange(len(source))
    batches = epoch_batches(len(usable), batch_size, seed, epoch, rank, world_size)[first_step:]
    batches = [usable[batch] for batch in batches]
    if isinstance(source, Features):
        loaded = ((None, batch) for batch in batches)
    else:
        source.epoch = epoch
        loaded = ((chips, rows.numpy()) for chips, rows in
                  chip_loader(source, [batch.tolist() for batch in batches], num_workers, device))
    for step, (chips, rows) in enumerate(loaded, first_step):
        generator = step_random(seed, epoch, step, rank)
        mirrored = generator.random(len(rows)) < 0.5 if settings["mirror"] else np.zeros(len(rows), dtype=bool)
        if chips is None:
            inputs = source.rows(rows, mirrored).to(device, non_blocking=True)
        else:
            inputs = chips.to(device, non_blocking=True)
            inputs = torch.where(torch.from_numpy(mirrored).to(device).view(-1, 1, 1, 1), inputs.flip(-1), inputs)
        wanted = targets[torch.from_numpy(rows)].to(device, non_blocking=True)
        if settings["mixup"] and len(rows) > 1:
            # Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization (https://arxiv.org/abs/1710.09412).
            part = float(generator.beta(settings["mixup"], settings["mixup"]))
            other = torch.from_numpy(generator.permutation(len(rows))).to(device)
            inputs = part * inputs.float() + (1 - part) * inputs[other].float()
            wanted = part * wanted + (1 - part) * wanted[other]
        # Dropout draws from torch's own generator.
        torch.manual_seed(int(generator.integers(2**62)))
        yield step, inputs, wanted


# ---------------------------------------------------------------- loop

def is_main_process():
    return not distributed.is_initialized() or distributed.get_rank() == 0


def one_cycle(total_steps, warmup):
    """Return the factor of the learning rate at a step: linear warm-up, then a cosine down to 0."""
    warmup_steps = max(1, round(warmup * total_steps))

    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
    return factor


def start_at_the_mean(network, training):
    """Let every head start from the constant prediction: the mean label of the training clips."""
    means = torch.tensor([training.labels[trait].mean() for trait in TRAITS], dtype=torch.float32).clamp(0.01, 0.99)
    with torch.no_grad():
        for head in network.heads:
            head[-1].bias.copy_(torch.logit(means))


def remember(network, name, training, settings, device, cache, num_workers, seed):
    """Fit the network's memory on faces of the training clips: as many of each clip as there is room for."""
    source = make_source(network, name, training, {**settings, "augment": 0.0}, device, cache, num_workers, False, seed)
    # The clips' first faces come before all second ones, in random order: what there is no room for is spread evenly.
    order = np.random.default_rng([seed, 1]).permutation(len(training.faces))
    turn = training.faces["clip"].iloc[order].groupby(training.faces["clip"].iloc[order]).cumcount().to_numpy()
    rows = np.sort(order[np.argsort(turn, kind="stable")][:FaceMemory.MOST_FACES])
    if isinstance(source, Features):
        rows = rows[~source.unreadable[rows]]
        straight = np.zeros(len(rows), dtype=bool)
        features = (source.rows(rows, straight) + source.rows(rows, ~straight)) / 2
    else:
        parts, read = [], []
        for chips, some in chip_loader(source, [rows[i:i + 64].tolist() for i in range(0, len(rows), 64)], num_workers, device):
            chips = chips.to(device)
            with torch.no_grad():
                parts.append(((network.features(chips) + network.features(chips.flip(-1))) / 2).cpu())
            read.append(some)
        features, rows = torch.cat(parts), torch.cat(read).numpy()
    network.memory.fit(features, training.targets[rows], seed)


def validate(network, source, split, device, num_workers):
    """Return {"loss", "accuracy": {trait: ...}, "pearson": {trait: ...}} per clip, as the challenge measures."""
    scores = predict_faces(network, source, device, num_workers=num_workers)
    clips = scores_of_clips(split.faces["clip"], scores)
    labels = split.labels.loc[clips.index]
    error = torch.from_numpy(scores) - split.targets
    return {"loss": float((error ** 2).nanmean()), "accuracy": trait_accuracies(labels, clips),
            "pearson": trait_correlations(labels, clips)}


class Stopped(Exception):
    """Ctrl-C, SIGTERM or another request to stop came; the state has been saved."""


def fit(network, name, training, validation, settings, num_epochs, batch_size, seed, device, cache="float16", num_workers=0,
        state=None, on_epoch=None, on_save=None, stop_requested=lambda: False, show_progress=True):
    """Train a network and return its history, a list of one dict an epoch.

    training, validation (or None): Splits. state: what on_save was given by an interrupted run, to go on from there.
    on_epoch(record): called after every epoch; record has epoch, loss_train, seconds, samples_per_second, the learning
    rates, and with validation loss_valid, accuracy_<trait>, pearson_<trait>. on_save(state, network): called at least every
    SECONDS_BETWEEN_CHECKPOINTS between steps, at the end, and before Stopped is raised because stop_requested() said so;
    network is what would be used (the moving average where there is one).
    """
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    loss_function = LOSSES[settings["loss"]]
    source, validation_source = None, None
    for turn in (True, False):
        # With several processes the first one makes the cached features, the others then find them.
        if (rank == 0) == turn:
            source = make_source(network, name, training, settings, device, cache, num_workers, True, seed)
        if world_size > 1:
            distributed.barrier()
    if validation is not None and rank == 0:
        validation_source = make_source(network, name, validation, settings, device, cache, num_workers, False, seed)
    targets = training.targets
    usable = len(source) - (int(source.unreadable.sum()) if isinstance(source, Features) else 0)
    if usable < 2 * world_size or batch_size < 2:
        raise UserError(f"BATCH_SIZE {batch_size} with {usable} faces: training needs at least two faces a step")
    steps_per_epoch = len(epoch_batches(usable, batch_size, seed, 0, rank, world_size))

    optimizer = torch.optim.AdamW(parameter_groups(network, settings["lr"], settings["weight_decay"],
                                                   settings["backbone_lr_factor"], settings["layer_decay"]), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(num_epochs * steps_per_epoch, settings["warmup"]))
    history, first_epoch, first_step, loss_sum, best = [], 0, 0, 0.0, None
    if state:
        load_network_state(network, state["network"], "the saved state of training")
    else:
        start_at_the_mean(network, training)
        if network.memory is not None:
            remember(network, name, training, settings, device, cache, num_workers, seed)
    average = None
    if settings["average"]:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings["average"]), use_buffers=True)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if average:
            average.load_state_dict(state["average"])
        history, first_epoch, first_step = state["history"], state["epoch"], state["step"]
        loss_sum, best = state["loss_sum"], state["best"]
    used = average.module if average else network
    parallel = network
    if world_size > 1:
        parallel = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    saved_at = time.monotonic()

    def save(epoch, step):
        if on_save and rank == 0:
            on_save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                     "average": average.state_dict() if average else None, "history": history, "epoch": epoch, "step": step,
                     "loss_sum": loss_sum, "best": best}, used)

    for epoch in range(first_epoch, num_epochs):
        network.train()
        started, samples = time.monotonic(), 0
        with progress_bar(total=usable, initial=min(usable, first_step * batch_size * world_size), unit="face",
                          desc=f"epoch {epoch + 1}/{num_epochs}", leave=False,
                          disable=None if show_progress and rank == 0 else True) as bar:
            for step, inputs, wanted in training_steps(source, targets, settings, batch_size, seed, epoch, first_step, device,
                                                       num_workers, rank, world_size):
                scores = parallel(inputs, of_each_head=True)
                loss = torch.stack([loss_function(of_head, wanted) for of_head in scores]).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
                if average:
                    average.update_parameters(network)
                loss_sum += float(loss.detach())
                samples += len(wanted)
                bar.update(len(wanted) * world_size)
                # The last step of an epoch is followed by its validation, and only then is the epoch over.
                if step + 1 < steps_per_epoch:
                    if _any_process(stop_requested(), device):
                        save(epoch, step + 1)
                        raise Stopped
                    if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                        save(epoch, step + 1)
                        saved_at = time.monotonic()
        mean_loss = torch.tensor(loss_sum / steps_per_epoch, dtype=torch.float64, device=device)
        if world_size > 1:
            distributed.all_reduce(mean_loss)
            mean_loss /= world_size
        if not math.isfinite(float(mean_loss)):
            raise UserError(f"the loss became {float(mean_loss)} in epoch {epoch + 1}; take a smaller --lr")
        seconds = max(time.monotonic() - started, 1e-9)
        record = {"epoch": epoch + 1, "loss_train": float(mean_loss), "seconds": seconds,
                  "samples_per_second": samples * world_size / seconds}
        for group in optimizer.param_groups:
            record[f"learning_rate_{group['name']}"] = group["lr"]
        if validation is not None and rank == 0:
            figures = validate(used, validation_source, validation, device, num_workers)
            record["loss_valid"] = figures["loss"]
            for measure in ("accuracy", "pearson"):
                record.update({f"{measure}_{trait}": value for trait, value in figures[measure].items()})
            if best is None or record["accuracy_mean"] > best["accuracy"]:
                best = {"epoch": epoch + 1, "accuracy": record["accuracy_mean"],
                        "network": {key: value.detach().cpu().clone() for key, value in used.state_dict().items()}}
        history.append(record)
        first_step, loss_sum = 0, 0.0
        stop = _any_process(stop_requested(), device) and epoch + 1 < num_epochs
        if stop or epoch + 1 == num_epochs or time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            save(epoch + 1, 0)
            saved_at = time.monotonic()
        if rank == 0 and on_epoch:
            on_epoch(record)
        if stop:
            raise Stopped
    return history


def _any_process(flag, device):
    """Return True in every process as soon as the flag is set in one."""
    if not distributed.is_initialized():
        return flag
    votes = torch.tensor(float(flag), device=device)
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return bool(votes)


# ---------------------------------------------------------------- results

def log_epoch(writer, record):
    """Write an epoch's record to TensorBoard; training and search use the same tags."""
    for key, value in record.items():
        if key not in ("epoch", "seconds"):
            measure, _, rest = key.partition("_")
            tag = f"learning_rate/{key.removeprefix('learning_rate_')}" if key.startswith("learning_rate") else f"{measure}/{rest}"
            tag = "speed/samples_per_second" if key == "samples_per_second" else tag
            writer.add_scalar(tag, value, record["epoch"])


def log_pictures(writer, split, network, settings, seed):
    """Write a grid of 32 training chips to TensorBoard as the network sees them: after augmentation, scaled to its input."""
    dataset = FaceDataset(split, training=True, augment=settings["augment"], seed=seed)
    rows = random.Random(seed).sample(range(len(dataset)), min(32, len(dataset)))
    chips, _ = dataset.__getitems__(rows)
    if len(chips):
        size = (network.input_size, network.input_size)
        writer.add_image("chips/training", make_grid(functional.interpolate(chips.float() / 255, size, mode="bilinear",
                                                                            antialias=True).clamp(0, 1), nrow=8))


def log_hyperparameters(writer, model, settings, batch_size, record):
    """Write a run's settings and last or best figures to TensorBoard's table of hyperparameters."""
    values = {"model": model, "batch_size": batch_size,
              **{key: value for key, value in settings.items() if isinstance(value, (int, float, str, bool))}}
    # TensorBoard takes the columns of the first run it reads for all runs, so each names all of them, also those that it has
    # no figure for; evaluate.py adds the accuracy on the test clips to the runs that it measures.
    for summary in hparams(values, dict.fromkeys((f"hparam/{name}" for name in HPARAM_FIGURES), 0.0)):
        writer.file_writer.add_summary(summary)
    for name in HPARAM_FIGURES:
        if record.get(name) is not None:
            writer.add_scalar(f"hparam/{name}", record[name], record["epoch"])


def constant_of(split):
    """Return {trait: mean label} of the clips a network was trained on: the baseline of every evaluation."""
    return {trait: float(split.labels[trait].mean()) for trait in TRAITS}


def checkpoint_content(name, settings, training, network_state, metrics, epoch):
    """Return all that evaluate.py and predict.py need of a trained network."""
    return {"architecture": name, "config": {key: settings[key] for key in config_keys(name)}, "traits": list(TRAITS),
            "preprocessing": training.preprocessing, "constant": constant_of(training), "network": network_state,
            "metrics": metrics, "epoch": epoch, "trained_on": training.name, "clips": list(training.labels.index),
            "speakers": sorted(set(training.speakers))}


# ---------------------------------------------------------------- settings

def read_config(path):
    """Return the settings in a JSON file as written by the search. Raises UserError for unknown keys or damage."""
    try:
        config = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; the search writes runs/EXPERIMENT/best_config.json") from None
    except ValueError as error:
        raise UserError(f"--config {path}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"--config {path}: is no dictionary of settings")
    unknown = sorted(config.keys() - DEFAULTS.keys() - {"batch_size", "model"})
    if unknown:
        raise UserError(f"--config {path}: does not know {', '.join(unknown)}; known are {', '.join(DEFAULTS)}")
    return config


def settled(config, given):
    """Return all settings: the defaults, over them the configuration, over it what the command line gave."""
    settings = {**DEFAULTS, **{key: value for key, value in config.items() if key in DEFAULTS},
                **{key: value for key, value in given.items() if value is not None}}
    for key, default in DEFAULTS.items():
        value = settings[key]
        wrong = type(value) is not type(default) and not (isinstance(default, float) and type(value) is int)
        if wrong or (isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0)):
            raise UserError(f"{key}: {value!r} is not a {type(default).__name__} of at least 0")
    if settings["loss"] not in LOSSES:
        raise UserError(f"loss: {settings['loss']!r} is unknown; known are {', '.join(LOSSES)}")
    for key in ("warmup", "augment", "memory"):
        if settings[key] > 1:
            raise UserError(f"{key}: {settings[key]} is more than 1")
    if settings["average"] >= 1:
        raise UserError(f"average: {settings['average']} is not below 1")
    return settings


def add_recipe_options(parser):
    """Add an option for each of DEFAULTS; without a default here, so that --config can say otherwise."""
    group = parser.add_argument_group("recipe (the command line wins over --config)")
    helps = {"l1": "first hidden layer of the head", "l2": "second hidden layer", "l3": "third hidden layer",
             "dropout": "after each hidden layer", "heads": "heads whose scores are averaged",
             "memory": "part of the memory of training faces in the scores (FaceResNet29_v1.0 only), 0: none",
             "lr": "highest learning rate",
             "weight_decay": "of AdamW", "backbone_lr_factor": "learning rate of the last trained stage, as a part of --lr",
             "layer_decay": "and of each stage before it, as a part of the next one's",
             "warmup": "part of the steps in which the learning rate rises", "loss": "one of " + ", ".join(LOSSES),
             "mixup": "alpha of mixup, 0: none", "augment": "strength of crops, colour and erasing, 0 to 1",
             "average": "decay a step of the weights' moving average, 0: none", "mirror": "half of the pictures mirrored"}
    for key, default in DEFAULTS.items():
        kind = true_or_false if isinstance(default, bool) else type(default)
        group.add_argument("--" + key.replace("_", "-"), dest=key, type=kind, metavar=kind.__name__.upper(),
                           help=f"{helps[key]} (default: {str(default).lower() if isinstance(default, bool) else default})")


def add_data_options(parser):
    """Add the options on data and machine that search and training share."""
    data = parser.add_argument_group("data")
    data.add_argument("--data-dir", default="data", help="data folder")
    data.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    data.add_argument("--val-split", choices=("official", "speaker"), default="official",
                      help="validate on the validation clips, or on a fifth of all clips, of speakers not in training")
    data.add_argument("--speaker-regex", default=SPEAKER_REGEX, help="its first group is the speaker in a clip's name")
    data.add_argument("--weights", help="of the backbone: imagenet, dlib, none or the path of a state dict (default: dlib "
                      "for FaceResNet29, else imagenet)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto",
                         help="of the backbone; auto: bfloat16 where the device computes in it")
    machine.add_argument("--cache", choices=("float16", "float32", "off"), default="float16",
                         help="keep the features of a frozen backbone on disk, in this type")
    machine.add_argument("--num-workers", type=whole_number, default=0, help="processes that read pictures")
    machine.add_argument("--seed", type=whole_number, default=0, help="of everything random")


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("num_epochs", metavar="NUM_EPOCHS", type=positive_int, help="passes over the faces")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the folder in --runs-dir")
    parser.add_argument("model", metavar="MODEL", help="one of " + ", ".join(ARCHITECTURES))
    parser.add_argument("final_run", metavar="FINAL_RUN", type=true_or_false, help="true: training + validation clips; "
                        "false: training clips, validated after every epoch")
    parser.add_argument("batch_size", metavar="BATCH_SIZE", type=positive_int, help="faces a step (and process)")
    parser.add_argument("--config", metavar="FILE", help="settings found by the search: runs/EXPERIMENT/best_config.json")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the same command")
    parser.add_argument("--overwrite", action="store_true", help="replace a training of the same name")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done; write nothing")
    add_recipe_options(parser)
    add_data_options(parser)
    return parser.parse_args(argv)


def experiment_folder(runs_dir, experiment):
    """Return the Path of an experiment. Raises UserError for a name that would leave the folder of the experiments."""
    if not experiment or experiment in (".", "..") or "/" in experiment or "\\" in experiment or experiment.startswith("-"):
        raise UserError(f"EXPERIMENT {experiment!r}: give a plain name; its folder is made in {runs_dir}")
    return Path(runs_dir) / experiment


def check_experiment(record, exists, used, args):
    """Raise UserError where a training or search would replace another one, or go on with other settings.

    record: path of the JSON file whose "used" holds the settings of the experiment in that folder, if it exists; used: the
    settings of now.
    """
    if exists and args.resume:
        try:
            before = json.loads(record.read_text())["used"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{record}: is missing or damaged; start again with --overwrite") from None
        for key, value in used.items():
            was = before.get(key)
            if isinstance(value, dict) and isinstance(was, dict):
                was, value = ({name: some[name] for name in some if was.get(name) != value.get(name)} for some in (was, value))
            if was != value:
                raise UserError(f"--resume: {record.parent} was started with {key} {was!r}, now it is {value!r}; give the same, or "
                                "another EXPERIMENT")
    elif exists and not args.overwrite:
        raise UserError(f"{record.parent}: an experiment of this name exists; choose another EXPERIMENT, or --resume it, or "
                        "--overwrite it")


def _prepare_folder(folder, used, args, command):
    record = folder / "args.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not args.resume:
        for path in [*folder.glob("checkpoint_*.pt"), *folder.glob("events.out.tfevents.*"), folder / "training.csv"]:
            path.unlink(missing_ok=True)
    content = {"used": used, "command": command, "data_dir": str(Path(args.data_dir).resolve()), "versions": versions(),
               "resumed": args.resume}
    record.write_text(json.dumps(content, indent=2) + "\n")


def _load_state(folder):
    """Return the training state to go on from, or None where none was saved yet; a damaged checkpoint falls back to the
    one before it."""
    paths = [path for path in (folder / "checkpoint_last.pt", folder / "checkpoint_previous.pt") if path.exists()]
    for path in paths:
        try:
            content = load_checkpoint(path)
            return content["training"]
        except (UserError, KeyError) as error:
            print(f"warning: {error}; falling back to the checkpoint before it", file=sys.stderr)
    if paths:
        print("warning: no checkpoint is whole; training starts from the beginning", file=sys.stderr)
    elif is_main_process():
        print(f"note: {folder} holds no checkpoint yet; training starts from the beginning", file=sys.stderr)
    return None


def start_processes():
    """Join the other processes where torchrun started this one."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def main(argv=None):
    args = parse_args(argv)
    folder = experiment_folder(args.runs_dir, args.experiment)
    architecture = architecture_named(args.model)
    if args.resume and args.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one")
    config = read_config(args.config) if args.config else {}
    if config.get("model", args.model) != args.model:
        raise UserError(f"--config {args.config}: was found for {config['model']}, not for {args.model}")
    settings = settled(config, {key: getattr(args, key) for key in DEFAULTS})
    if args.memory and "memory" not in config_keys(args.model):
        raise UserError(f"--memory {args.memory}: {args.model} has none; FaceResNet29_v1.0 has")
    if settings["augment"] and not architecture.trained and args.cache != "off" and is_main_process():
        print("note: --augment needs the pictures, so the cached features are not used in training", file=sys.stderr)
    start_processes()
    seed_everything(args.seed)
    training, validation = load_training_and_validation(args.data_dir, args.final_run, args.val_split, args.speaker_regex,
                                                        args.seed)
    if args.batch_size > len(training.faces):
        raise UserError(f"BATCH_SIZE {args.batch_size}: is larger than the {len(training.faces)} faces of {training.name}")
    weights = args.weights or default_weights(architecture.backbone)
    network = build_network(args.model, settings, weights)
    used = {"model": args.model, "num_epochs": args.num_epochs, "final_run": args.final_run, "batch_size": args.batch_size,
            "seed": args.seed, "weights": weights, "val_split": args.val_split, "cache": args.cache,
            "precision": args.precision, "settings": settings, "training": training.name, "data": training.fingerprint(),
            "processes": distributed.get_world_size() if distributed.is_initialized() else 1}
    if is_main_process():  # the others may look when it has already begun to write
        exists = (folder / "args.json").exists() or any(folder.glob("checkpoint_*.pt"))
        check_experiment(folder / "args.json", exists, used, args)
    if args.dry_run:
        learning = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        steps = len(epoch_batches(len(training.faces), args.batch_size, args.seed, 0))
        print(f"{args.model} with {weights} weights, {learning:,} parameters learn; {args.num_epochs} epochs of {steps} steps\n"
              f"settings: {json.dumps(settings)}\n"
              f"Nothing was written; next: the same command without --dry-run, which writes {folder}")
        return 0
    state = _load_state(folder) if args.resume else None
    if state and state["epoch"] >= args.num_epochs:
        print(f"{folder}: all {args.num_epochs} epochs are done; next: python evaluate.py {args.experiment}{folder_options(args)}")
        return 0
    if is_main_process():
        words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--resume"]
        command = shlex.join(["python", Path(sys.argv[0]).name, *words])
        _prepare_folder(folder, used, args, command)
    device = pick_device()
    network = network.to(device)
    network.compute_dtype = autocast_dtype(args.precision, device)

    writer = None
    if is_main_process():
        # A kill may have come between a checkpoint and its log: the last epoch is logged anew.
        writer = SummaryWriter(folder, purge_step=state["epoch"] if state else None)
        if state and state["history"]:
            log_epoch(writer, state["history"][-1])
        if not state:
            writer.add_text("command", f"`{command}`\n\n```\n{json.dumps(used, indent=2)}\n```")
            log_pictures(writer, training, network, settings, args.seed)
    history = list(state["history"]) if state else []

    def on_epoch(record):
        history.append(record)
        with written_aside(folder / "training.csv") as aside:
            pandas.DataFrame(history).to_csv(aside, index=False)
        log_epoch(writer, record)
        text = f"epoch {record['epoch']}/{args.num_epochs}: loss {record['loss_train']:.5f}"
        if validation is not None:
            text += f", validation accuracy {record['accuracy_mean']:.4f}, Pearson r {record['pearson_mean']:.3f}"
        print(f"{text}, {record['samples_per_second']:.0f} faces/s", flush=True)

    def on_save(state, network):
        last = folder / "checkpoint_last.pt"
        if last.exists():
            os.replace(last, folder / "checkpoint_previous.pt")
        metrics = state["history"][-1] if state["history"] else {}
        save_checkpoint(last, {**checkpoint_content(args.model, settings, training, network.state_dict(), metrics,
                                                    state["epoch"]), "training": state})
        if state["best"]:
            best = state["best"]
            save_checkpoint(folder / "checkpoint_best.pt", checkpoint_content(
                args.model, settings, training, best["network"], state["history"][best["epoch"] - 1], best["epoch"]))

    stop = {"signal": None, "possible": False}

    def ask_to_stop(number, _):
        if number == signal.SIGINT and (stop["signal"] or not stop["possible"]):
            raise KeyboardInterrupt  # nothing to save yet, or asked twice
        stop["signal"] = number

    def stop_requested():
        stop["possible"] = True
        return stop["signal"] is not None

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    try:
        fit(network, args.model, training, validation, settings, args.num_epochs, args.batch_size, args.seed, device,
            args.cache, args.num_workers, state, on_epoch, on_save, stop_requested)
    except Stopped:
        if is_main_process():
            print(f"stopped by {'Ctrl-C' if stop['signal'] == signal.SIGINT else 'SIGTERM'}, all is saved; go on with the same "
                  "command and --resume", file=sys.stderr)
        return 128 + stop["signal"]
    finally:
        if writer:
            writer.flush()
    if is_main_process():
        if validation is not None:
            best = max(history, key=lambda record: record["accuracy_mean"])
            print(f"best epoch {best['epoch']}: validation accuracy {best['accuracy_mean']:.4f}")
        log_hyperparameters(writer, args.model, settings, args.batch_size,
                            best if validation is not None else history[-1])
        writer.close()
        print(f"checkpoints, training.csv and TensorBoard logs: {folder}\n"
              f"next: python evaluate.py {args.experiment}{folder_options(args)}")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    run_script(main)
