"""Errors in TF_CONFIG, and missing workers, before training over replicas begins.

`tests/system/test_replicas.py` has the training.
"""

import json
import re
import socket

import pytest

from data_gen.errors import UserError
from sqair.training import multi_worker, replicas
from tests.train_helpers import free_ports


@pytest.mark.parametrize(
    "tf_config, message",
    [
        (None, "needs the environment variable TF_CONFIG"),
        ("{", "TF_CONFIG is {; expected"),
        ("[]", "expected different addresses"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}}', "the index of this one"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}', "the index of this one"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "different addresses"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "host:port"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:2"]}, "task": {"type": "ps", "index": 0}}', "TF_CONFIG is"),
    ],
)
def test_a_wrong_tf_config_is_one_line(monkeypatch, tf_config, message):
    if tf_config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(UserError, match=re.escape(message)):
        replicas.Distribution("multi_worker")


def test_a_worker_that_never_comes_is_named(monkeypatch):
    ports = free_ports(2)
    monkeypatch.setattr(multi_worker, "CONNECT_SECONDS", 1)
    monkeypatch.setenv(
        "TF_CONFIG",
        json.dumps(
            {
                "cluster": {"chief": [f"localhost:{ports[0]}"], "worker": [f"localhost:{ports[1]}"]},
                "task": {"type": "worker", "index": 0},
            }
        ),
    )
    with pytest.raises(UserError, match=rf"no answer from chief 0 \(localhost:{ports[0]}\)"):
        replicas.Distribution("multi_worker")


def test_a_port_in_use_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        monkeypatch.setenv(
            "TF_CONFIG", json.dumps({"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}})
        )
        with pytest.raises(UserError, match=rf"worker 0 \({address}\): cannot listen"):
            replicas.Distribution("multi_worker")
