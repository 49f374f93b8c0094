"""Environment of a script: the system, variables that PyTorch and Ray read when imported, Ctrl-C during the imports.

The scripts import this module before all others.
"""
import os
import signal
import sys
from pathlib import Path

# Windows has neither: closing the terminal and Ctrl-C in the worker processes would need other ways there.
if not (hasattr(signal, "SIGHUP") and hasattr(signal, "pthread_sigmask")):
    print("This suite runs on Linux and macOS. On Windows use the Windows Subsystem for Linux: run `wsl --install` "
          "once, then everything in its terminal (https://learn.microsoft.com/windows/wsl/install).", file=sys.stderr)
    sys.exit(2)
# PyTorch's threads wait by spinning, which is ten times slower as soon as another program wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What PyTorch has not yet written for Apple's GPUs is computed on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
# Ray Tune's own event files would carry other tags than train.py's, and its usage report would leave the machine.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if "RAY_ADDRESS" not in os.environ and not any(word.startswith("--ray-address") for word in sys.argv):
    # Ray alone on this machine then listens on 127.0.0.1 only, on Linux as it does elsewhere.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _end_quietly(kind, error, trace):
    """Catch Ctrl-C while the libraries are still being imported, which takes seconds: before run_script can."""
    cause = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"\n{Path(sys.argv[0]).name}: stopped by Ctrl-C", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _end_quietly
