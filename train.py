"""The final training of a network.

    python train.py NUM_EPOCHS EXPERIMENT MODEL FINAL_RUN BATCH_SIZE

    python train.py 60 final FaceResNet29_v1.0 true 128                               training + validation clips
    python train.py 60 trial FaceResNet29_v1.0 false 128                              validates after every epoch
    python train.py 60 final ResNet18_v1.0 true 64 --config runs/search/best_config.json    what the search found
    python train.py 60 final ResNet18_v1.0 true 64 --resume                           goes on after an interruption
    python train.py 60 final FaceResNet29_v1.0 true 128 --seeds 3      final_seed0, final_seed1, final_seed2
    torchrun --nproc_per_node 4 train.py 20 final ResNet18_v3.0 true 256              four GPUs (batch size: of each)

FINAL_RUN true trains on training + validation clips for exactly NUM_EPOCHS and never looks at the test clips
(evaluate.py does, once). false trains on the training clips, validates after every epoch and keeps the best epoch.

Writes runs/EXPERIMENT/: args.json, training.csv (one row per epoch), checkpoint_last.pt, checkpoint_best.pt (FINAL_RUN
false), checkpoint_previous.pt, MODEL_CARD.md and TensorBoard's event files.
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
from pathlib import Path

from torch import distributed

from dataset import FaceDataset
from first_impressions.common import experiment
from first_impressions.common.command_line import (
    UserError,
    folder_options,
    make_parser,
    positive_int,
    printable,
    run_script,
    true_or_false,
)
from first_impressions.common.device import Machine, is_main_process, seed_everything, start_processes, world_size
from first_impressions.data.chips import epoch_batches
from first_impressions.data.splits import Split, describe
from first_impressions.evaluation.logs import log_hyperparameters
from first_impressions.evaluation.model_card import write_model_card
from first_impressions.networks.checkpoint import LAST, Checkpoint, read_last, versions
from first_impressions.networks.network import PersonalityNetwork, build_network
from first_impressions.networks.settings import (
    RUN_OPTIONS,
    SETTING_NAMES,
    Plan,
    Settings,
    add_settings_options,
    names_with_effect,
    read_config,
    resolve_settings,
    settle_gp,
)
from first_impressions.training.conformal import calibrate
from first_impressions.training.inputs import make_samples
from first_impressions.training.loop import fit, start_training
from first_impressions.training.run import Record, TrainingRun, Used, accuracy_of
from first_impressions.training.samples import add_run_options, check_batch_size, load_training_and_validation
from model_architectures import ARCHITECTURES, architecture_named


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("num_epochs", metavar="NUM_EPOCHS", type=positive_int, help="passes over the faces")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the folder in --runs-dir")
    parser.add_argument("model", metavar="MODEL", help="one of " + ", ".join(ARCHITECTURES))
    parser.add_argument("final_run", metavar="FINAL_RUN", type=true_or_false, help="true: training + validation clips; "
                        "false: training clips, validated after every epoch")
    parser.add_argument("batch_size", metavar="BATCH_SIZE", type=positive_int,
                        help="clips per step (and process) of a frozen network, faces of a trained one")
    parser.add_argument("--config", metavar="FILE",
                        help="settings found by the search: runs/EXPERIMENT/best_config.json")
    parser.add_argument("--seeds", metavar="N", type=positive_int, help="train N runs one after the other, "
                        "EXPERIMENT_seed0, EXPERIMENT_seed1, ..., from --seed on; with --resume the finished ones stay "
                        "as they are, the others go on or start")
    add_settings_options(parser)
    add_run_options(parser, "training run")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    config = read_config(args.config) if args.config else {}
    found = [f"--{name.replace('_', '-')}={config[name]}" for name in RUN_OPTIONS if config.get(name) is not None]
    args = parser.parse_args([*found, *words])  # the command line wins
    args.found = config
    words = [word for word in words if word != "--resume"]
    args.command = shlex.join(["python", Path(sys.argv[0]).name, *words])
    return args


def settings_of(args: argparse.Namespace) -> Settings:
    """Return what the command line and --config ask for. Raises UserError if this was found for another model."""
    config = args.found
    if config.get("model", args.model) != args.model:
        raise UserError(f"--config {args.config}: was found for {config['model']}, not for {args.model}")
    if "memory_weight" in config and args.memory not in (None, config.get("memory")):
        if is_main_process():
            print(f"note: --config {args.config}: its memory_weight {config['memory_weight']} was found for memory "
                  f"{config.get('memory', 'auto')} and is left out for {args.memory}", file=sys.stderr)
        config = {name: value for name, value in config.items() if name != "memory_weight"}
    return resolve_settings(config, {name: getattr(args, name) for name in SETTING_NAMES})


def load_last(folder: Path) -> Checkpoint | None:
    """Return the checkpoint to go on from: the last one, or if it is damaged the one before; None without any."""
    if not any(folder.glob(experiment.CHECKPOINTS)):
        if is_main_process():
            print(f"note: {folder} contains no checkpoint yet; training starts from the beginning", file=sys.stderr)
        return None
    try:
        path, checkpoint = read_last(folder / LAST)
        if checkpoint.training is None:
            raise UserError(f"{path}: contains no state of a training run")
        return checkpoint
    except UserError as error:
        print(f"warning: {error}; training starts from the beginning", file=sys.stderr)
        return None


def print_dry_run(args: argparse.Namespace, plan: Plan, network: PersonalityNetwork, weights: str, samples: int,
                  folder: Path) -> None:
    """Print what a training run would do; samples: clips or faces."""
    learning = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    steps = len(epoch_batches(samples, plan.batch_size, plan.seed, 0))
    unit = "clips" if network.frozen else "faces"
    print(f"{args.model} with {weights} weights, {learning:,} parameters learn; {plan.num_epochs} epochs of {steps} "
          f"steps of {plan.batch_size} {unit}\n"
          f"settings: {json.dumps(dataclasses.asdict(plan.settings))}\n"
          f"Nothing was written; next: the same command without --dry-run, which writes {folder}")


def train(run: TrainingRun, network: PersonalityNetwork, valid: Split | None, machine: Machine,
          saved: dict | None) -> None:
    """Train, write everything, print the last lines. valid: None in the final run."""
    plan = run.plan
    with run.listen():
        samples = make_samples(network, FaceDataset(run.split, plan.settings.augment, plan.seed), machine)
        validation = make_samples(network, FaceDataset(valid), machine) if valid and is_main_process() else None
        if saved is None and network.frozen and world_size() == 1:
            run.intervals = calibrate(run.architecture, samples, plan, run.record.used.weights, machine)
            if run.intervals is None:
                print("note: too few training clips to estimate the intervals of scores", flush=True)
        state = start_training(network, samples, plan, saved)
        for _ in fit(state, plan, samples, validation, run.after_step):
            run.after_step(state)
    if is_main_process():
        record = state.history[-1]
        if validation is not None:
            record = state.history[state.best["epoch"] - 1]
            print(f"best epoch {record['epoch']}: {accuracy_of(record)} (gain: over always predicting the mean label "
                  "of the training clips)")
        changed = {name: value for name, value in vars(plan.settings).items() if value != getattr(Settings(), name)}
        log_hyperparameters(run.writer, {"model": run.architecture.name, "batch_size": plan.batch_size, **changed},
                            record)
        run.writer.close()
        card = write_model_card(run.folder)
        print(f"checkpoints, training.csv, {card.name} and TensorBoard logs: {run.folder}", flush=True)


def train_experiment(args: argparse.Namespace) -> None:
    """Train one experiment, or say what would be done."""
    folder = experiment.experiment_folder(args.runs_dir, args.experiment)
    architecture = architecture_named(args.model)
    settings = settings_of(args)
    seed_everything(args.seed)
    training, validation = load_training_and_validation(args.data_dir, args.final_run, args.val_split,
                                                        args.speaker_regex, args.seed)
    settings = settle_gp(settings, len(training.labels), architecture.has_gp)
    plan = Plan(settings, args.num_epochs, args.batch_size, args.seed)
    useless = [name for name in SETTING_NAMES if getattr(args, name) is not None
               and name not in names_with_effect(architecture, settings)]
    if useless and is_main_process():
        print("note: without effect here: " + ", ".join("--" + name.replace("_", "-") for name in useless),
              file=sys.stderr)
    samples = check_batch_size(plan.batch_size, training, architecture.frozen)
    weights = args.weights or architecture.kind.default_weights
    network = build_network(architecture, settings, weights)
    used = Used(args.model, args.num_epochs, args.final_run, args.batch_size, args.seed, weights, args.val_split,
                args.cache, args.precision, settings, training.name, training.fingerprint(), world_size())
    writes = is_main_process() and not args.dry_run
    with experiment.open_experiment(folder) if writes else contextlib.nullcontext():
        exists = experiment.has_training(folder)
        if is_main_process():
            experiment.check_experiment(folder / experiment.TRAINING_RECORD, exists, dataclasses.asdict(used), args)
        if args.dry_run:
            print_dry_run(args, plan, network, weights, samples, folder)
            return
        last = load_last(folder) if args.resume else None
        saved = last.training if last else None
        if saved and saved["epoch"] >= args.num_epochs:
            print(f"{folder}: all {args.num_epochs} epochs are done")
            return
        machine = Machine.from_options(args)
        network = machine.place(network)
        record = Record(used, args.command, str(Path(args.data_dir).resolve()), describe(training),
                        training.preprocessing, versions(), args.resume)
        run = TrainingRun(folder, folder, architecture, plan, training, record, last.intervals if last else None)
        if is_main_process():
            run.target = experiment.start_replacement(folder) if exists and not args.resume else folder
            run.start(FaceDataset(training, settings.augment, args.seed), network.kind.input_size, saved)
        train(run, network, validation, machine, saved)


def main(argv=None):
    args = parse_args(argv)
    experiments = [args]
    if args.seeds:
        experiments = [argparse.Namespace(**{**vars(args), "experiment": f"{args.experiment}_seed{seed}", "seed": seed})
                       for seed in range(args.seed, args.seed + args.seeds)]
    start_processes()
    for one in experiments if is_main_process() and not args.resume else ():  # before the first is trained
        folder = experiment.experiment_folder(args.runs_dir, one.experiment)
        experiment.check_experiment(folder / experiment.TRAINING_RECORD, experiment.has_training(folder), {}, one)
    for one in experiments:
        train_experiment(one)
    if is_main_process() and not args.dry_run:
        words = ["python", "evaluate.py", *(one.experiment for one in experiments)]
        print(f"next: {printable(shlex.join(words))}{folder_options(args)}")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
