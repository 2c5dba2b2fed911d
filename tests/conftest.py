"""Tests compute as the training command does, so that the same numbers come twice."""

from sqair.config import TrainConfig
from sqair.train import use_machine

use_machine(TrainConfig())
