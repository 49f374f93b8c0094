"""Search the hyperparameters of a network with Ray Tune.

    python train_resnet_raytune_hyperparams.py NUM_TRIALS NUM_EPOCHS EXPERIMENT MODEL

    python train_resnet_raytune_hyperparams.py 20 30 search FaceResNet29_v1.0        minutes on a CPU
    python train_resnet_raytune_hyperparams.py 50 20 search ResNet18_v3.0 --gpus-per-trial 0.5
    python train_resnet_raytune_hyperparams.py 20 30 search FaceResNet29_v1.0 --resume    finishes an interrupted search
    python train_resnet_raytune_hyperparams.py 20 30 search FaceResNet29_v1.0 --space mine.json    a space in a file
    python train_resnet_raytune_hyperparams.py 200 30 search ResNet50_v1.0 --ray-address auto    on a running cluster

What is searched stands in the variable `config` below, or in a file of the same form that an update does not touch:
{"lr": {"loguniform": [2e-4, 3e-3]}, "l1": {"choice": [256, 512]}, "batch_size": 128}. Trials that fall behind the
others are stopped early. The best trial is the one with the highest mean accuracy per clip on the validation
clips over all of its epochs. Writes runs/EXPERIMENT/: best_config.json (for train.py --config), trials.csv (one row per
trial), search_args.json, and search/<trial>/ with each trial's TensorBoard logs and checkpoints.
"""
# ruff: noqa: E402  (config comes before the other imports, since users edit it)
import first_impressions.common.startup  # noqa: F401  (before Ray)

import numpy as np  # noqa: F401  (for a config of your own: tune.sample_from(lambda _: 2 ** np.random.randint(2, 9)))
from ray import tune

from first_impressions.networks.losses import LOSSES

# The search space: a setting (train.py --help explains them) or batch_size, and what each trial draws it from, or a
# constant. A network that does not use a key (l3 is of ResNet101_v1.0 alone) ignores it; a key that is not here
# keeps its default.
config = {
    "l1": tune.choice([256, 512, 1024]),            # one of these
    "l2": tune.choice([64, 128, 256]),
    "l3": tune.choice([16, 32, 64]),
    "dropout": tune.uniform(0.2, 0.6),              # any number in between
    "lr": tune.loguniform(2e-4, 3e-3),              # the same, as likely between 2e-4 and 4e-4 as between 4e-4 and 8e-4
    "weight_decay": tune.loguniform(1e-4, 1e-1),
    "batch_size": tune.choice([64, 128, 256]),
    "loss": tune.choice(list(LOSSES)),              # all that train.py --loss knows; or ["l1", "mse"]
    "mixup": tune.choice([0.0, 0.2, 0.4]),
    "components": tune.choice([256, 512]),
    "memory": "auto",                               # a constant; "centres": what you may publish
    "memory_weight": tune.uniform(0.2, 0.9),
    "noise": tune.choice([0.2, 0.3, 0.5]),
}

import argparse
import contextlib
import dataclasses
import errno
import functools
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pandas
import ray
import torch
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.variant_generator import generate_variants
from torch.utils.tensorboard import SummaryWriter

from dataset import FaceDataset
from first_impressions.common import experiment
from first_impressions.common.command_line import (
    UserError,
    disk_error,
    folder_options,
    leave_closed_terminal,
    make_parser,
    pass_over,
    positive_int,
    run_script,
)
from first_impressions.common.device import Machine, pick_device, seed_everything
from first_impressions.common.files import atomic_write
from first_impressions.common.ray_cluster import start_ray
from first_impressions.data.splits import Split
from first_impressions.evaluation.logs import log_hyperparameters
from first_impressions.networks.checkpoint import versions
from first_impressions.networks.network import PersonalityNetwork, build_network
from first_impressions.networks.settings import names_with_effect, resolve_settings, settle_gp
from first_impressions.training.inputs import make_samples
from first_impressions.training.samples import add_run_options, load_training_and_validation, number_of_samples
from first_impressions.training.search_space import describe_entry, number_of_trials, read_space, space_for
from first_impressions.training.search_trial import METRIC, Search, TrialProgress, run_trial
from model_architectures import ARCHITECTURES, architecture_named

ROOM_NEEDED = 1_000_000  # bytes; with less than that on the disk an error of Ray's is one of the disk
TRIALS_DIR, OLD_SEARCH = "search", ".search.old"
TRIALS_TABLE, BEST_CONFIG = "trials.csv", "best_config.json"


def short_name(trial) -> str:
    """Return the name of a trial and its folder, which TensorBoard shows in full: its number in the search."""
    return f"trial_{trial.trial_id.rsplit('_', 1)[-1]}"


# ---------------------------------------------------------------- results

def trial_table(results: tune.ResultGrid, num_epochs: int) -> pandas.DataFrame:
    """Return one row per trial, the best first: trial, status, best_accuracy, best_gain over the constant,
    best_pearson, best_epoch, epochs, and its configuration.

    status: finished, stopped early (by ASHA, behind others), unfinished (the search was interrupted) or failed.
    """
    rows = []
    for result in results:
        figures = result.metrics or {}
        status = ("failed" if result.error else "unfinished" if not figures.get("done")
                  else "finished" if figures["epoch"] >= num_epochs else "stopped early")
        best = figures.get("best", {})
        rows.append({"trial": Path(result.path).name, "status": status, "best_accuracy": best.get(METRIC),
                     "best_gain": best.get("gain_mean"), "best_pearson": best.get("pearson_mean"),
                     "best_epoch": best.get("epoch"), "epochs": figures.get("epoch"), **(result.config or {})})
    return pandas.DataFrame(rows).sort_values(["best_accuracy", "trial"], ascending=[False, True], na_position="last")


def write_results(folder: Path, results: tune.ResultGrid, table: pandas.DataFrame, space: dict, found: dict) -> None:
    """Write trials.csv, best_config.json with what was found, and TensorBoard's table of what varied."""
    with atomic_write(folder / TRIALS_TABLE) as partial:
        table.to_csv(partial, index=False)
    with atomic_write(folder / BEST_CONFIG) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")
    varying = [key for key, value in space.items() if hasattr(value, "sample") or isinstance(value, dict)]
    for result in results:
        if "best" in (result.metrics or {}):
            with SummaryWriter(folder / TRIALS_DIR / Path(result.path).name) as writer:
                log_hyperparameters(writer, {key: result.config[key] for key in varying}, result.metrics["best"])


def best_config(search: Search, table: pandas.DataFrame, space: dict, number_of_clips: int) -> dict:
    """Return all that train.py --config needs to repeat the best trial: its settings, resolved for a training set of
    this size, and what they were found with."""
    best = table.iloc[0]
    settings = resolve_settings({key: best[key] for key in space})
    settings = settle_gp(settings, number_of_clips, search.architecture.has_gp)
    return {"model": search.architecture.name, "weights": search.weights, "val_split": search.val_split,
            "speaker_regex": search.speaker_regex, "seed": search.seed, "batch_size": int(best["batch_size"]),
            **{name: getattr(settings, name) for name in names_with_effect(search.architecture, settings)}}


def print_results(args: argparse.Namespace, table: pandas.DataFrame, splits: tuple[Split, Split], trials: int) -> bool:
    """Print the best trials and what to run next; return whether all have ended. Raises UserError if all failed."""
    unfinished = int((table["status"] == "unfinished").sum()) + max(0, trials - len(table))
    failed, early = (int((table["status"] == status).sum()) for status in ("failed", "stopped early"))
    place, ended = Path(args.runs_dir) / args.experiment, table[table["best_accuracy"].notna()]
    if ended.empty and not unfinished:
        raise UserError(f"no trial gave a result; the reasons are in {place / TRIALS_DIR}/*/error.txt")
    if not ended.empty:
        best, (training, validation) = table.iloc[0], splits
        print(f"\n{ended.head(10).to_string(index=False, float_format='{:.4g}'.format)}\n\n"
              f"best: {best['trial']} with accuracy {best['best_accuracy']:.4f}, gain {best['best_gain']:+.4f} (over "
              f"always predicting the mean label of {training.name}), on {validation.name} in epoch "
              f"{int(best['best_epoch'])}; {early} trials stopped early, {failed} failed, {unfinished} are unfinished\n"
              f"table, best configuration and logs: {place}")
    if unfinished:
        print("next: the same command with --resume finishes the rest")
        return False
    frozen = architecture_named(args.model).frozen
    batch_size = min(int(best["batch_size"]), sum(number_of_samples(split, frozen) for split in splits))
    words = ["python", "train.py", args.num_epochs, "final", args.model, "true", batch_size, "--config",
             place / BEST_CONFIG]
    print(f"next: {shlex.join(map(str, words))}{folder_options(args)}")
    return True


# ---------------------------------------------------------------- the search

def settle_trials(folder: Path) -> None:
    """Remove an old search if the new one that is to replace it has a result; else put it back."""
    old = folder / OLD_SEARCH
    if not old.is_dir():
        return
    if list((folder / TRIALS_DIR).glob(f"*/{experiment.TRAINING_TABLE}")):
        for name in (TRIALS_TABLE, BEST_CONFIG):
            (folder / name).unlink(missing_ok=True)
    else:
        shutil.rmtree(folder / TRIALS_DIR, ignore_errors=True)
        # The trials last: a kill in between must not take them for new ones.
        for name in (experiment.SEARCH_RECORD, TRIALS_DIR):
            if (old / name).exists():
                os.replace(old / name, folder / name)
    shutil.rmtree(old)


def prepare_folder(folder: Path, record: dict, args: argparse.Namespace) -> bool:
    """Return True if a search is to be resumed; else note the settings of a new one. An old one stays for the time."""
    if args.resume and (folder / experiment.SEARCH_RECORD).exists():
        return tune.Tuner.can_restore(str(folder / TRIALS_DIR))
    if args.resume:
        print(f"note: {folder} contains no search yet; a new one is started", file=sys.stderr)
    for name in (TRIALS_DIR, experiment.SEARCH_RECORD):
        if (folder / name).exists():
            (folder / OLD_SEARCH).mkdir(exist_ok=True)
            os.replace(folder / name, folder / OLD_SEARCH / name)
    with atomic_write(folder / experiment.SEARCH_RECORD) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    return False


def make_tuner(args: argparse.Namespace, search: Search, space: dict, resume: bool) -> tune.Tuner:
    """Return the Tuner of a new or of an interrupted search."""
    there, gpus = ray.cluster_resources(), args.gpus_per_trial
    if gpus is None:
        gpus = float(search.machine.wanted in ("auto", "cuda") and there.get("GPU", 0) > 0)
    trainable = tune.with_resources(tune.with_parameters(run_trial, search=search),
                                    {"cpu": min(args.cpus_per_trial, there.get("CPU", 1)), "gpu": gpus})
    if resume:
        return tune.Tuner.restore(search.trials_dir, trainable, resume_unfinished=True, param_space=space)
    grace_period = min(args.num_epochs, args.grace_period or max(1, args.num_epochs // 4))
    return tune.Tuner(
        trainable, param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=args.num_trials, reuse_actors=True, trial_name_creator=short_name,
            trial_dirname_creator=short_name,
            search_alg=tune.search.basic_variant.BasicVariantGenerator(random_state=args.seed),
            scheduler=ASHAScheduler(time_attr="epoch", metric=METRIC, mode="max", max_t=args.num_epochs,
                                    grace_period=grace_period, reduction_factor=3)),
        run_config=tune.RunConfig(
            name=TRIALS_DIR, storage_path=str(Path(search.trials_dir).parent), verbose=0,
            callbacks=[TrialProgress(number_of_trials(args.num_trials, space), args.num_epochs,
                                     Path(args.runs_dir, args.experiment, TRIALS_DIR))],
            failure_config=tune.FailureConfig(max_failures=1), checkpoint_config=tune.CheckpointConfig(num_to_keep=2)))


def device_of_trials(args: argparse.Namespace) -> str:
    """Return which device the trials shall look for: on a cluster, whose machines may have others than this one, what
    was asked for, else the one that can be used here. Raises UserError if the one that was asked for cannot."""
    name, _, number = args.device.partition(":")
    if args.ray_address:
        return name
    if number:  # Ray hands all GPUs out that the variable shows, by their numbers in there
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        shown = shown[int(number):][:1] if shown != [""] else [number]
        os.environ["CUDA_VISIBLE_DEVICES"] = "".join(shown) or "-1"
    return pick_device(name).type


def _stop_as_by_ctrl_c(stopped, number, _):
    """Handler of SIGTERM and SIGHUP: Tune ends a search in good order at Ctrl-C."""
    leave_closed_terminal()
    stopped.append(number)
    os.kill(os.getpid(), signal.SIGINT)


def run_search(args: argparse.Namespace, search: Search, network: PersonalityNetwork, space: dict, record: dict,
               splits: tuple[Split, Split]) -> None:
    """Run all trials, write and print the results. Holds the experiment's folder."""
    folder = Path(search.trials_dir).parent
    # What every trial would compute for itself is computed here, once: the features of a backbone that none trains.
    if network.frozen and args.cache != "off" and search.weights != "none":
        machine = dataclasses.replace(search.machine, device=pick_device(search.machine.wanted),
                                      ray_address=args.ray_address)
        for split in splits:
            make_samples(machine.place(network), FaceDataset(split), machine)
    start_ray(args.ray_address)
    stopped = []
    for number in (signal.SIGTERM, signal.SIGHUP):  # in place of Ray's handlers
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, functools.partial(_stop_as_by_ctrl_c, stopped))
    resume = prepare_folder(folder, record, args)
    try:
        results = make_tuner(args, search, space, resume).fit()
    except Exception as error:
        # Ray reports a full disk as whatever then went wrong.
        if disk_error(error) is None and shutil.disk_usage(folder).free < ROOM_NEEDED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, pass_over)  # only the results are still to be written
        settle_trials(folder)
    table = trial_table(results, args.num_epochs)
    if table["best_accuracy"].notna().any():
        found = best_config(search, table, space, len(splits[0].labels))
        write_results(folder, results, table, space, found)
    ray.shutdown()
    if not print_results(args, table, splits, number_of_trials(args.num_trials, space)):
        raise KeyboardInterrupt(*stopped[:1])


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("num_trials", metavar="NUM_TRIALS", type=positive_int, help="configurations tried")
    parser.add_argument("num_epochs", metavar="NUM_EPOCHS", type=positive_int,
                        help="epochs of a trial that is not stopped")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the folder in --runs-dir")
    parser.add_argument("model", metavar="MODEL", help="one of " + ", ".join(ARCHITECTURES))
    parser.add_argument("--space", metavar="FILE.json", help="the search space (default: config of this script)")
    parser.add_argument("--grace-period", type=positive_int,
                        help="epochs before a trial may be stopped (default: a quarter of NUM_EPOCHS)")
    cluster = parser.add_argument_group("resources")
    cluster.add_argument("--cpus-per-trial", type=float, default=1, help="CPU cores of a trial")
    cluster.add_argument("--gpus-per-trial", type=float,
                         help="GPUs of a trial, also a part of one (default: 1 if there is a GPU)")
    add_run_options(parser, "search")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    architecture = architecture_named(args.model)
    folder = experiment.experiment_folder(args.runs_dir, args.experiment).resolve()
    space = space_for(architecture, *((read_space(args.space), f"--space {args.space}") if args.space else
                                      (config, "the variable config")))
    example = resolve_settings(next(generate_variants(space))[1])
    weights = args.weights or architecture.kind.default_weights
    if Path(weights).exists():
        weights = str(Path(weights).resolve())
    splits = load_training_and_validation(args.data_dir, False, args.val_split, args.speaker_regex, args.seed)
    used = {"model": args.model, "num_trials": args.num_trials, "num_epochs": args.num_epochs, "seed": args.seed,
            "weights": weights, "val_split": args.val_split, "grace_period": args.grace_period,
            "config": {key: describe_entry(value) for key, value in space.items()},
            "data": splits[0].fingerprint()}
    example = settle_gp(example, len(splits[0].labels), architecture.has_gp)
    seed_everything(args.seed)
    network = build_network(architecture, example, weights)
    trials = number_of_trials(args.num_trials, space)
    if trials > args.num_trials:
        print(f"note: grid_search tries all of its values: {trials} trials, {args.num_trials} with each of them",
              file=sys.stderr)
    with contextlib.nullcontext() if args.dry_run else experiment.open_experiment(folder):
        if not args.dry_run:
            settle_trials(folder)   # of a search that was killed
        record = folder / experiment.SEARCH_RECORD
        experiment.check_experiment(record, record.exists(), used, args)
        if args.dry_run:
            drawn_from = "\n".join(f"  {key}: {value}" for key, value in used["config"].items())
            print(f"{trials} trials of {args.model} with {weights} weights, at most {args.num_epochs} epochs "
                  f"each; drawn from\n{drawn_from}\n"
                  f"Nothing was written; next: the same command without --dry-run, which writes "
                  f"{Path(args.runs_dir, args.experiment)}")
            return
        machine = Machine(torch.device("cpu"), args.precision, args.cache, args.num_workers,
                          wanted=device_of_trials(args))
        search = Search(architecture, FaceDataset, args.num_epochs, args.seed, weights,
                        str(Path(args.data_dir).resolve()), args.val_split, args.speaker_regex, machine,
                        str(folder / TRIALS_DIR))
        run_search(args, search, network, space, {"used": used, "versions": versions()}, splits)


if __name__ == "__main__":
    run_script(main)
