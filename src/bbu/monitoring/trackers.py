"""Prepare W&B and TensorBoard: they write into the output folder, ask nothing, and never end or delay a run."""

from __future__ import annotations

import os
import secrets
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bbu.config import Config
from bbu.training.distributed import is_main

PROBE_SECONDS = 5.0


def place_trackers(config: Config) -> None:
    """Let trackers write into the output folder; before transformers builds them, TensorBoard's reads it there."""
    if "tensorboard" in config.training.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(config.output_dir) / "tensorboard"))
    if "wandb" in config.training.report_to:
        os.environ.setdefault("WANDB_DIR", config.output_dir)
        os.environ.setdefault("WANDB_PROJECT", "bbu")
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)


def ready_wandb(config: Config, run_id: str | None = None) -> str | None:
    """Choose W&B's run, and its mode: it logs offline if it has no account or network. Before training starts it.

    A run that is offline lies in ``<output_dir>/wandb`` and is uploaded later by ``wandb sync``.

    Args:
        run_id: of the W&B run that a resumed run continues; None = a new one.

    Returns:
        The id of the W&B run; None without W&B.
    """
    if "wandb" not in config.training.report_to:
        return None
    run_id = os.environ.setdefault("WANDB_RUN_ID", run_id or secrets.token_hex(4))
    os.environ.setdefault("WANDB_RESUME", "allow")
    if "WANDB_MODE" in os.environ or not is_main():
        return run_id
    if "WANDB_API_KEY" not in os.environ and not Path("~/.netrc").expanduser().is_file():
        os.environ["WANDB_MODE"] = "offline"
    elif why := _why_not_online(config):
        os.environ["WANDB_MODE"] = "offline"
        print(f"W&B: {why}; logging offline into {config.output_dir}/wandb (wandb sync uploads it)", file=sys.stderr)
    return run_id


def _why_not_online(config: Config) -> str:
    """Why W&B cannot be used over the network; empty if it can: then its run has begun."""
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urllib.request.urlopen(address, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer, whatever it says
    except (OSError, ValueError) as error:
        return f"{address} cannot be reached ({' '.join(str(error).split())})"
    import wandb

    options: dict[str, Any] = {"project": os.environ["WANDB_PROJECT"], "name": config.name, "dir": config.output_dir}
    try:  # begun here, where an error of the account is still harmless; transformers goes on with the run
        wandb.init(**options)
    except Exception as error:  # its errors share no base class
        wandb.init(**options, mode="offline")  # it has read its environment already
        return f"{address} refuses this run ({' '.join(str(error).split())})"
    return ""
