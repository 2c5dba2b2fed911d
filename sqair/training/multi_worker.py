"""The workers of a job on several machines: their names and addresses in TF_CONFIG, and whether they answer."""

import json
import os
import re
import socket

from data_gen.errors import UserError

CONNECT_SECONDS = 300  # workers of a job may start this far apart

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def read_tf_config() -> tuple[dict[str, str], str]:
    """The names of all workers, such as "worker 0", with their addresses, the chief first; and this one's name."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise UserError(f"--distribute multi_worker needs the environment variable TF_CONFIG, such as {_EXAMPLE}")
    try:
        config = json.loads(text)
        cluster = config["cluster"]
        addresses = {
            f"{job} {i}": address for job in ("chief", "worker") for i, address in enumerate(cluster.get(job, []))
        }
        name = f"{config['task']['type']} {config['task']['index']}"
        if not (
            set(cluster) <= {"chief", "worker"}
            and name in addresses
            and len(set(addresses.values())) == len(addresses)
            and all(re.fullmatch(r"\S+:\d+", address) for address in addresses.values())
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"TF_CONFIG is {text[:300]}; expected different addresses host:port of all workers and the "
            f"index of this one, as in {_EXAMPLE}"
        ) from None
    return addresses, name


def port(address: str) -> int:
    """The port of an address host:port."""
    return int(address.rsplit(":", 1)[1])


def answers(address: str) -> bool:
    """Whether a process listens at an address host:port."""
    try:
        socket.create_connection((address.rsplit(":", 1)[0], port(address)), timeout=5).close()
        return True
    except OSError:
        return False
