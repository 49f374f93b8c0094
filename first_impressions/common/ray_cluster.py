"""Ray, for the search, the features and the pre-processing: starting it here, or joining a cluster."""
import logging
import socket

from first_impressions.common.command_line import UserError, usable_cores
from first_impressions.common.experiment import SUITE

# What a task on another machine imports.
SUITE_ENVIRONMENT = {"working_dir": str(SUITE),
                     "excludes": ["/data", "/runs", "/demo", "/.venv", "/.git", "*.npy", "*.pt"]}


def start_ray(address: str | None, environment: dict = SUITE_ENVIRONMENT, **options) -> None:
    """Join the Ray cluster at an address (host:port, ray://host:port or auto); without one start Ray on this machine,
    listening on loopback only.

    environment: what the cluster's processes get; options: of ray.init. Raises UserError, within seconds, if no cluster
    answers or Ray cannot start.
    """
    import ray  # only here: a run on one machine needs no Ray

    # A failed trial costs one line; its traceback stands in its error.txt.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        if address:
            host, _, port = address.rpartition("//")[2].rpartition(":")
            if port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            options |= {"address": address, "runtime_env": environment}
        else:
            options |= {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address:
            raise UserError(f"--ray-address {address}: no Ray cluster answers there ({reason}); start one with `ray "
                            "start --head`, or omit the option and RAY_ADDRESS") from None
        # Its sockets have names of at most 107 bytes, and on a shared machine /tmp/ray is somebody else's.
        raise UserError(f"Ray cannot start in its folder ({reason}); set RAY_TMPDIR to a short folder of your own on "
                        "a local disk, such as RAY_TMPDIR=/tmp/$USER") from None
