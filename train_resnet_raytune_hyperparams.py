"""Search the hyperparameters of a network with Ray Tune.

    python train_resnet_raytune_hyperparams.py NUM_TRIALS NUM_EPOCHS EXPERIMENT MODEL

    python train_resnet_raytune_hyperparams.py 20 30 search FaceResNet29_v1.0        minutes on a CPU
    python train_resnet_raytune_hyperparams.py 50 20 search ResNet18_v3.0 --gpus-per-trial 0.5
    python train_resnet_raytune_hyperparams.py 20 30 search FaceResNet29_v1.0 --resume    finishes an interrupted search
    python train_resnet_raytune_hyperparams.py 200 30 search ResNet50_v1.0 --ray-address auto    on a running cluster

What is searched stands in the variable `config` at the top of this script; every trial draws from it. Trials that fall
behind the others are stopped early. The best trial is the one with the highest mean accuracy per clip on the validation
clips over all of its epochs. Writes runs/EXPERIMENT/: best_config.json (for train.py --config), trials.csv (one row a
trial), search_args.json, and search/<trial>/ with each trial's TensorBoard logs and checkpoints.
"""
import errno
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

# Ray's own event files would carry other tags than those of train.py, and its usage report would leave the machine.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if "RAY_ADDRESS" not in os.environ and not any(word.startswith("--ray-address") for word in sys.argv):
    # Ray alone on this machine then listens on 127.0.0.1 only, on Linux as it does elsewhere; read when it is imported.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from command_line import (UserError, disk_error, folder_options, make_parser, positive_int, progress_bar,  # noqa: E402
                          run_script, written_aside)

import pandas  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

from dataset import cached_features  # noqa: E402
from evaluate import versions  # noqa: E402
from model_architectures import (ARCHITECTURES, architecture_named, autocast_dtype, backbone_key, build_network,  # noqa: E402
                                 config_keys, default_weights, load_file, pick_device, save_checkpoint)
from train import (DEFAULTS, add_data_options, check_experiment, experiment_folder, fit,  # noqa: E402
                   load_training_and_validation, log_epoch, log_hyperparameters, seed_everything, settled)

# The search space: a key of train.py's DEFAULTS or batch_size, and what it is drawn from. A network that has no use for a
# key (l3 is of ResNet101_v1.0 alone) does without it; a key that is not here keeps its default.
config = {
    "l1": tune.choice([256, 512, 1024]),
    "l2": tune.choice([64, 128, 256]),
    "l3": tune.choice([16, 32, 64]),
    "dropout": tune.uniform(0.2, 0.6),
    "lr": tune.loguniform(2e-4, 3e-3),
    "weight_decay": tune.loguniform(1e-4, 1e-1),
    "batch_size": tune.choice([64, 128, 256]),
    "loss": tune.choice(["mse", "l1", "smooth_l1", "ccc"]),
    "mixup": tune.choice([0.0, 0.2, 0.4]),
}

METRIC = "accuracy_mean"
ROOM_NEEDED = 1_000_000  # bytes; with less than that on the disk an error of Ray's is one of the disk
# The memory of faces has no hyperparameters: without it a trial is faster and shows better what the others do.
WITHOUT_MEMORY = {"memory": 0.0}


def space_of(model):
    """Return the part of the search space that this network has a use for."""
    shaping = {"l1", "l2", "l3", "dropout", "heads", "memory"}
    return {key: value for key, value in config.items() if key not in shaping or key in config_keys(model)}


def example_of(value):
    """Return one of the values that an entry of the search space stands for: a tune domain, a grid or a plain value."""
    if isinstance(value, dict) and "grid_search" in value:
        return value["grid_search"][0]
    return value.sample() if hasattr(value, "sample") else value


def short_name(trial):
    """Return the name of a trial and its folder, which TensorBoard shows in full: its number in the search."""
    return f"trial_{trial.trial_id.rsplit('_', 1)[-1]}"


def run_trial(trial_config, options):
    """Train one trial and report every epoch to Ray Tune. options: what is common to all trials, plain data."""
    torch.set_num_threads(max(1, int(options["cpus_per_trial"])))
    settings = settled({**WITHOUT_MEMORY, **{key: value for key, value in trial_config.items() if key != "batch_size"}}, {})
    seed_everything(options["seed"])
    training, validation = load_training_and_validation(options["data_dir"], False, options["val_split"],
                                                        options["speaker_regex"], options["seed"], quiet=True)
    device = pick_device()
    network = build_network(options["model"], settings, options["weights"]).to(device)
    network.compute_dtype = autocast_dtype(options["precision"], device)
    state, unreported = None, []
    if tune.get_checkpoint():
        with tune.get_checkpoint().as_directory() as before:
            state = load_file(Path(before) / "trial.pt", "a checkpoint of a trial")
    folder = Path(options["search_dir"]) / tune.get_context().get_trial_name()
    folder.mkdir(parents=True, exist_ok=True)
    writer = SummaryWriter(folder, purge_step=state["epoch"] + 1 if state else None)
    history = list(state["history"]) if state else []

    def on_save(state, _):
        if state["step"] == 0:
            unreported[:] = [state]

    def on_epoch(record):
        history.append(record)
        log_epoch(writer, record)
        writer.flush()
        # Written at every epoch, since the scheduler may end the trial after any.
        with written_aside(folder / "training.csv") as aside:
            pandas.DataFrame(history).to_csv(aside, index=False)
        best = max(history, key=lambda record: record[METRIC])
        figures = {**record, "best_accuracy": best[METRIC], "best_pearson": best["pearson_mean"], "best_epoch": best["epoch"]}
        if not unreported:
            tune.report(figures)
            return
        with tempfile.TemporaryDirectory() as aside:
            save_checkpoint(Path(aside) / "trial.pt", unreported.pop())
            tune.report(figures, checkpoint=tune.Checkpoint.from_directory(aside))

    fit(network, options["model"], training, validation, settings, options["num_epochs"], trial_config["batch_size"],
        options["seed"], device, options["cache"], options["num_workers"], state, on_epoch, on_save, show_progress=False)
    writer.close()


class TrialProgress(tune.Callback):
    """A progress bar over the trials, and a line for each that ends."""

    def __init__(self, number_of_trials, num_epochs, search_dir):
        self.num_epochs = num_epochs
        self.search_dir = search_dir
        self.bar = progress_bar(total=number_of_trials, desc="search", unit="trial")

    def on_trial_complete(self, iteration, trials, trial, **info):
        figures = trial.last_result
        self.bar.write(f"{trial}: best accuracy {figures['best_accuracy']:.4f} in epoch {figures['best_epoch']}, "
                       f"{'stopped after' if figures['epoch'] < self.num_epochs else 'of'} {figures['epoch']}", file=sys.stdout)
        sys.stdout.flush()
        self.bar.update()

    def on_trial_error(self, iteration, trials, trial, **info):
        self.bar.write(f"{trial}: failed twice and left out, see {self.search_dir}/{trial}/error.txt", file=sys.stderr)
        self.bar.update()

    def on_experiment_end(self, trials, **info):
        self.bar.close()


# ---------------------------------------------------------------- results

def trial_table(results, num_epochs):
    """Return one row a trial, the best first: trial, status, best_accuracy, best_epoch, epochs, and its configuration.

    status: finished, stopped early (by ASHA, behind others), unfinished (the search was interrupted) or failed.
    """
    rows = []
    for result in results:
        figures = result.metrics or {}
        status = ("failed" if result.error else "unfinished" if not figures.get("done")
                  else "finished" if figures["epoch"] >= num_epochs else "stopped early")
        rows.append({"trial": Path(result.path).name, "status": status, "best_accuracy": figures.get("best_accuracy"),
                     "best_pearson": figures.get("best_pearson"), "best_epoch": figures.get("best_epoch"),
                     "epochs": figures.get("epoch"), **(result.config or {})})
    return pandas.DataFrame(rows).sort_values(["best_accuracy", "trial"], ascending=[False, True], na_position="last")


def write_results(folder, model, table, space, options):
    """Write trials.csv and best_config.json, and each trial's settings into TensorBoard's table of hyperparameters."""
    table.to_csv(folder / "trials.csv", index=False)
    best = table.iloc[0]
    chosen = {key: best[key].item() if hasattr(best[key], "item") else best[key] for key in space}
    (folder / "best_config.json").write_text(json.dumps({"model": model, **chosen}, indent=2) + "\n")
    for row in table[table["best_accuracy"].notna()].to_dict("records"):
        trial_dir = Path(options["search_dir"]) / row["trial"]
        writer = SummaryWriter(trial_dir)
        values = {key: row[key] for key in space if key != "batch_size"}
        history = pandas.read_csv(trial_dir / "training.csv").set_index("epoch", drop=False)
        log_hyperparameters(writer, model, {**DEFAULTS, **WITHOUT_MEMORY, **values}, row["batch_size"],
                            history.loc[int(row["best_epoch"])].to_dict())
        writer.close()


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("num_trials", metavar="NUM_TRIALS", type=positive_int, help="configurations tried")
    parser.add_argument("num_epochs", metavar="NUM_EPOCHS", type=positive_int, help="epochs of a trial that is not stopped")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the folder in --runs-dir")
    parser.add_argument("model", metavar="MODEL", help="one of " + ", ".join(ARCHITECTURES))
    parser.add_argument("--resume", action="store_true", help="finish an interrupted search of the same command")
    parser.add_argument("--overwrite", action="store_true", help="replace a search of the same name")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done; write nothing")
    parser.add_argument("--grace-period", type=positive_int, help="epochs before a trial may be stopped (default: a quarter "
                        "of NUM_EPOCHS)")
    cluster = parser.add_argument_group("resources")
    cluster.add_argument("--cpus-per-trial", type=float, default=1, help="CPU cores of a trial")
    cluster.add_argument("--gpus-per-trial", type=float, help="GPUs of a trial, also a part of one (default: 1 where there "
                         "is a GPU)")
    cluster.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS"),
                         help="a running Ray cluster, or `auto` (default: RAY_ADDRESS, else this machine alone)")
    add_data_options(parser)
    return parser.parse_args(argv)


def start_ray(address, source_dir):
    """Start Ray on this machine, listening on loopback only, or join a cluster and hand it this folder's scripts."""
    # A failed trial costs one line here; its traceback stands in its error.txt.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={
            "working_dir": str(source_dir), "excludes": ["/data", "/runs", "/demo", "/.venv", "/.git", "*.npy", "*.pt"]})
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def prepare_folder(folder, used, args):
    """Return True where a search is to be resumed; else clear the folder for a new one and note its settings."""
    record = folder / "search_args.json"
    if record.exists() and args.resume:
        return tune.Tuner.can_restore(str(folder / "search"))
    if args.resume:
        print(f"note: {folder} holds no search yet; a new one is started", file=sys.stderr)
    if record.exists():
        for name in ("search_args.json", "trials.csv", "best_config.json"):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "search", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"used": used, "versions": versions()}, indent=2) + "\n")
    return False


def main(argv=None):
    args = parse_args(argv)
    architecture = architecture_named(args.model)
    if args.resume and args.overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one")
    folder = experiment_folder(args.runs_dir, args.experiment).resolve()
    space = space_of(args.model)
    unknown = [key for key in space if key not in DEFAULTS and key != "batch_size"]
    if unknown or "batch_size" not in space:
        raise UserError(f"the variable config holds {', '.join(unknown) or 'no batch_size'}; known are batch_size, "
                        f"{', '.join(DEFAULTS)}")
    weights = args.weights or default_weights(architecture.backbone)
    if Path(weights).exists():
        weights = str(Path(weights).resolve())
    training, validation = load_training_and_validation(args.data_dir, False, args.val_split, args.speaker_regex, args.seed)
    used = {"model": args.model, "num_trials": args.num_trials, "num_epochs": args.num_epochs, "seed": args.seed,
            "weights": weights, "val_split": args.val_split, "grace_period": args.grace_period,
            "config": {key: f"{type(value).__name__} {value.domain_str}" if hasattr(value, "domain_str") else repr(value)
                       for key, value in space.items()},
            "data": training.fingerprint()}

    # What every trial would find out for itself is found out here, once: unfit weights, and the features of a backbone
    # that no trial trains.
    example = {**DEFAULTS, **{key: example_of(value) for key, value in space.items()}}
    seed_everything(args.seed)
    network = build_network(args.model, example, weights)
    check_experiment(folder / "search_args.json", (folder / "search_args.json").exists(), used, args)
    if args.dry_run:
        print(f"{args.num_trials} trials of {args.model} with {weights} weights, at most {args.num_epochs} epochs each; "
              f"drawn from\n" + "\n".join(f"  {key}: {value}" for key, value in used["config"].items())
              + f"\nNothing was written; next: the same command without --dry-run, which writes {folder}")
        return 0
    resume = prepare_folder(folder, used, args)
    if weights == "none" and network.frozen:
        # Random numbers are as good as any others only if all trials share them.
        weights = str(folder / "random_weights.pt")
        if not Path(weights).exists():
            torch.save(network.backbone.state_dict(), weights)
        network = build_network(args.model, example, weights)
    if network.frozen and args.cache != "off":
        device = pick_device()
        network = network.to(device)
        network.compute_dtype = autocast_dtype(args.precision, device)
        for split in (training, validation):
            cached_features(split, network.features, backbone_key(network, args.model), device, args.cache,
                            num_workers=args.num_workers)
    del network

    start_ray(args.ray_address, Path(__file__).resolve().parent)
    gpus = args.gpus_per_trial if args.gpus_per_trial is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    cpus = min(args.cpus_per_trial, ray.cluster_resources().get("CPU", 1))
    options = {"model": args.model, "num_epochs": args.num_epochs, "seed": args.seed, "weights": weights,
               "data_dir": str(Path(args.data_dir).resolve()), "val_split": args.val_split,
               "speaker_regex": args.speaker_regex, "precision": args.precision, "cache": args.cache,
               "num_workers": args.num_workers, "cpus_per_trial": cpus, "search_dir": str(folder / "search")}
    trainable = tune.with_resources(tune.with_parameters(run_trial, options=options), {"cpu": cpus, "gpu": gpus})
    grace_period = min(args.num_epochs, args.grace_period or max(1, args.num_epochs // 4))
    if resume:
        tuner = tune.Tuner.restore(str(folder / "search"), trainable, resume_unfinished=True, param_space=space)
    else:
        tuner = tune.Tuner(
            trainable, param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=args.num_trials, reuse_actors=True, trial_name_creator=short_name, trial_dirname_creator=short_name,
                search_alg=tune.search.basic_variant.BasicVariantGenerator(random_state=args.seed),
                scheduler=ASHAScheduler(time_attr="epoch", metric=METRIC, mode="max", max_t=args.num_epochs,
                                        grace_period=grace_period, reduction_factor=3)),
            run_config=tune.RunConfig(
                name="search", storage_path=str(folder), verbose=0,
                callbacks=[TrialProgress(args.num_trials, args.num_epochs, str(folder / 'search'))],
                failure_config=tune.FailureConfig(max_failures=1), checkpoint_config=tune.CheckpointConfig(num_to_keep=2)))
    try:
        results = tuner.fit()
    except Exception as error:
        # Ray reports a full disk as whatever then went wrong.
        if disk_error(error) is None and shutil.disk_usage(folder).free < ROOM_NEEDED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        raise
    table = trial_table(results, args.num_epochs)
    if table["best_accuracy"].notna().any():
        write_results(folder, args.model, table, space, options)
    ray.shutdown()
    unfinished = int((table["status"] == "unfinished").sum()) + max(0, args.num_trials - len(table))
    failed = table[table["status"] == "failed"]
    early = int((table["status"] == "stopped early").sum())
    if not table["best_accuracy"].notna().any():
        if unfinished:
            print("stopped before any trial had a result; next: the same command with --resume goes on")
            return 130
        raise UserError(f"no trial gave a result; the reasons are in {folder / 'search'}/*/error.txt")
    print(f"\n{table[table['best_accuracy'].notna()].head(10).to_string(index=False, float_format='{:.4g}'.format)}\n")
    best = table.iloc[0]
    print(f"best: {best['trial']} with accuracy {best['best_accuracy']:.4f} on {validation.name} in epoch "
          f"{int(best['best_epoch'])}; {early} trials stopped early, {len(failed)} failed, {unfinished} are unfinished")
    print(f"table, best configuration and logs: {Path(args.runs_dir) / args.experiment}")
    if unfinished:
        print("next: the same command with --resume finishes the rest")
        return 130
    batch_size = min(int(best["batch_size"]), len(training.faces) + len(validation.faces))
    print(f"next: python train.py {args.num_epochs} final {args.model} true {batch_size} --config "
          f"{shlex.quote(str(Path(args.runs_dir, args.experiment, 'best_config.json')))}{folder_options(args)}")
    return 0


if __name__ == "__main__":
    run_script(main)
