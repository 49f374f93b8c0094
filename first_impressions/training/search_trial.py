"""One trial of the search, as Ray Tune runs it, and the progress bar over all of them."""
import functools
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas
import torch
from ray import tune
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from first_impressions.common.command_line import printable, progress_bar
from first_impressions.common.device import Machine, pick_device, seed_everything
from first_impressions.common.experiment import SECONDS_BETWEEN_CHECKPOINTS, TRAINING_TABLE
from first_impressions.common.files import atomic_write
from first_impressions.evaluation.logs import log_epoch
from first_impressions.networks.network import Architecture, build_network
from first_impressions.networks.settings import Plan, Settings, resolve_settings, settle_gp
from first_impressions.networks.weights import load_file
from first_impressions.training.inputs import make_samples
from first_impressions.training.loop import fit, start_training
from first_impressions.training.samples import load_training_and_validation

METRIC = "accuracy_mean"


@dataclass(frozen=True)
class Search:
    """What all trials have in common: plain data, which travels to them."""
    architecture: Architecture
    dataset_of: type[Dataset]     # dataset.FaceDataset: made of a split, a strength of augmentation and a seed
    num_epochs: int
    seed: int
    weights: str
    data_dir: str
    val_split: str
    speaker_regex: str
    machine: Machine    # a trial finds the device itself
    trials_dir: str


@functools.lru_cache(maxsize=1)
def _load_splits(search):
    return load_training_and_validation(search.data_dir, False, search.val_split, search.speaker_regex, search.seed)


@functools.lru_cache(maxsize=1)
def _load_features(search, machine):
    """Return training and validation samples of a frozen network, for all trials that this process runs."""
    seed_everything(search.seed)    # --weights none: each network of this seed has the same random backbone
    network = machine.place(build_network(search.architecture, Settings(memory="none"), search.weights))
    return [make_samples(network, search.dataset_of(split), machine) for split in _load_splits(search)]


def run_trial(trial_config: dict, search: Search) -> None:
    """Train one trial and report every epoch to Ray Tune."""
    seed_everything(search.seed)
    splits = _load_splits(search)
    settings = settle_gp(resolve_settings(trial_config), len(splits[0].labels), search.architecture.has_gp)
    plan = Plan(settings, search.num_epochs, int(trial_config["batch_size"]), search.seed)
    machine = replace(search.machine, device=pick_device(search.machine.wanted))
    network = machine.place(build_network(search.architecture, settings, search.weights))
    if network.frozen:
        samples, validation = _load_features(search, machine)
    else:
        samples, validation = (make_samples(network, search.dataset_of(split, augment, search.seed), machine)
                               for split, augment in zip(splits, (settings.augment, 0.0)))
    saved = None
    if tune.get_checkpoint():
        with tune.get_checkpoint().as_directory() as before:
            saved = load_file(Path(before) / "trial.pt", "a checkpoint of a trial")
    state = start_training(network, samples, plan, saved)
    folder = Path(search.trials_dir) / tune.get_context().get_trial_name()
    folder.mkdir(parents=True, exist_ok=True)
    saved_at = time.monotonic()
    with SummaryWriter(folder, purge_step=state.epoch + 1 if saved else None) as writer:
        for record in fit(state, plan, samples, validation, show_progress=False):
            log_epoch(writer, record)
            writer.flush()
            # Written at every epoch, since the scheduler may end the trial after any.
            with atomic_write(folder / TRAINING_TABLE) as partial:
                pandas.DataFrame(state.history).to_csv(partial, index=False)
            best = max(state.history, key=lambda record: record[METRIC])
            with tempfile.TemporaryDirectory() as directory:
                checkpoint = None
                if state.epoch == plan.num_epochs or time.monotonic() - saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
                    torch.save(state.state_dict(), Path(directory) / "trial.pt")
                    checkpoint, saved_at = tune.Checkpoint.from_directory(directory), time.monotonic()
                tune.report({**record, "best": best}, checkpoint=checkpoint)


class TrialProgress(tune.Callback):
    """A progress bar over the trials, and a line for each that ends."""

    def __init__(self, number_of_trials: int, num_epochs: int, search_dir: Path):
        self.num_epochs = num_epochs
        self.search_dir = search_dir
        self.bar = progress_bar(total=number_of_trials, desc="search", unit="trial")

    def on_trial_complete(self, iteration, trials, trial, **info):
        best, epoch = trial.last_result["best"], trial.last_result["epoch"]
        end = "stopped after" if epoch < self.num_epochs else "of"
        self.bar.write(f"{trial}: best accuracy {best[METRIC]:.4f}, gain {best['gain_mean']:+.4f}, in epoch "
                       f"{best['epoch']}, {end} {epoch}", file=sys.stdout)
        sys.stdout.flush()
        self.bar.update()

    def on_trial_error(self, iteration, trials, trial, **info):
        report = self.search_dir / str(trial) / "error.txt"
        lines = report.read_text(errors="replace").split("\n") if report.exists() else []
        reason = next((line.partition("UserError: ")[2] or line for line in reversed(lines) if line.strip()), "")
        self.bar.write(f"{trial}: failed twice and left out: {printable(reason)[:300]} (see {report})", file=sys.stderr)
        self.bar.update()

    def on_experiment_end(self, trials, **info):
        self.bar.close()
