"""A training run's folder: its record, checkpoints and logs, and the signals that end it between two steps."""
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from first_impressions.common import experiment
from first_impressions.common.command_line import leave_closed_terminal
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import any_process, is_main_process
from first_impressions.common.files import atomic_write
from first_impressions.data.labels import quantiles_of
from first_impressions.data.splits import Split
from first_impressions.evaluation.logs import log_epoch, log_pictures
from first_impressions.networks.checkpoint import BEST, LAST, PREVIOUS, Checkpoint, Intervals
from first_impressions.networks.network import Architecture
from first_impressions.networks.settings import Plan, Settings
from first_impressions.training.loop import TrainingState, check_finite


@dataclass(frozen=True)
class Used:
    """The arguments of a training run, which --resume must repeat."""
    model: str
    num_epochs: int
    final_run: bool
    batch_size: int
    seed: int
    weights: str
    val_split: str
    cache: str
    precision: str
    settings: Settings
    training: str       # name of the split
    data: str           # its fingerprint
    processes: int


@dataclass(frozen=True)
class Record:
    """The content of args.json."""
    used: Used
    command: str
    data_dir: str
    training_data: str
    preprocessing: dict
    versions: dict
    resumed: bool


@dataclass
class TrainingRun:
    """The folder of a training run and what is written there."""
    folder: Path
    target: Path                # folder, or the one beside the old training's files until the first checkpoint is there
    architecture: Architecture
    plan: Plan
    split: Split
    record: Record
    intervals: Intervals | None = None  # of the scores
    stopped_by: int | None = None       # the signal that asked for the end
    has_begun: bool = False             # there is something to save
    writer: SummaryWriter | None = None
    saved_at: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Note Ctrl-C, SIGTERM and SIGHUP in this block: training then ends between two steps, with its state saved."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
                  if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}  # ignored under nohup
        try:
            yield
        except KeyboardInterrupt as error:
            if is_main_process():
                state = ("all is saved" if error.args else "what was done since the last checkpoint is lost"
                         if self.stopped_by else "training has not begun")
                print(f"\n{state}; go on with the same command"
                      + (" and --resume" if self.target == self.folder else ""), file=sys.stderr)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, _):
        leave_closed_terminal()
        if number == signal.SIGINT and (self.stopped_by or not self.has_begun):
            raise KeyboardInterrupt  # nothing to save yet, or asked twice
        self.stopped_by = number

    def start(self, dataset: Dataset, input_size: int, saved: dict | None) -> None:
        """Write args.json and what TensorBoard shows of the start. dataset: the training faces, as the network sees
        them when they are scaled to its input_size."""
        record = asdict(self.record)
        with atomic_write(self.target / experiment.TRAINING_RECORD) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")
        # A kill may have come between a checkpoint and its log: the last epoch is logged anew.
        self.writer = SummaryWriter(self.target, purge_step=saved["epoch"] if saved else None)
        if saved and saved["history"]:
            log_epoch(self.writer, saved["history"][-1])
        if not saved:
            used = json.dumps(record["used"], indent=2)
            self.writer.add_text("command", f"`{self.record.command}`\n\n```\n{used}\n```")
            log_pictures(self.writer, dataset, input_size, self.plan.seed)

    def save(self, state: TrainingState) -> None:
        """Write the checkpoints; the first ones of a training run that replaces another one put it in its place."""
        check_finite(state.loss_sum, state.epoch)
        self.saved_at = time.monotonic()
        if not is_main_process():
            return
        if (self.target / LAST).exists():
            os.replace(self.target / LAST, self.target / PREVIOUS)
        labels = self.split.labels
        last = Checkpoint(
            self.architecture, self.plan.settings, self.split.preprocessing, state.network.state_dict(),
            {trait: float(labels[trait].mean()) for trait in TRAITS}, list(labels.index),
            sorted(set(self.split.speakers)), self.split.name, state.epoch, state.history[-1] if state.history else {},
            self.intervals, state.state_dict(), label_quantiles=quantiles_of(labels),
            neuroticism_is_stability=self.split.is_chalearn, speaker_regex=self.split.speaker_regex,
            weights=self.record.used.weights)
        last.save(self.target / LAST)
        if state.best:
            epoch = state.best["epoch"]
            replace(last, network=state.best["network"], epoch=epoch, metrics=state.history[epoch - 1],
                    training=None).save(self.target / BEST)
        if self.target != self.folder:
            self.writer.close()
            experiment.finish_replacement(self.folder)
            self.target = self.folder
            self.writer = SummaryWriter(self.target)

    def after_step(self, state: TrainingState) -> None:
        """Save if it is time or the training ends, then log an epoch that has ended. Raises KeyboardInterrupt, with all
        saved, in every process as soon as one of them was asked to stop."""
        self.has_begun = True
        is_last = state.epoch == self.plan.num_epochs
        stop = any_process(self.stopped_by is not None) and not is_last
        if stop or is_last or time.monotonic() - self.saved_at > experiment.SECONDS_BETWEEN_CHECKPOINTS:
            self.save(state)
        if state.step == 0 and is_main_process():
            self.log(state.history)
        if stop:
            raise KeyboardInterrupt(self.stopped_by or signal.SIGTERM)

    def log(self, history: list[dict]) -> None:
        """Write training.csv and the last epoch's record."""
        record = history[-1]
        with atomic_write(self.target / experiment.TRAINING_TABLE) as partial:
            pandas.DataFrame(history).to_csv(partial, index=False)
        log_epoch(self.writer, record)
        self.writer.flush()
        text = f"epoch {record['epoch']}/{self.plan.num_epochs}: loss {record['loss_train']:.5f}"
        if "accuracy_mean" in record:
            text += f", {accuracy_of(record)}, Pearson r {record['pearson_mean']:.3f}"
        print(f"{text}, {record['samples_per_second']:.0f} samples/s", flush=True)


def accuracy_of(record: dict) -> str:
    """Return the accuracy of an epoch's record as text; it never stands without its gain over the constant."""
    return f"validation accuracy {record['accuracy_mean']:.4f}, gain {record['gain_mean']:+.4f}"
