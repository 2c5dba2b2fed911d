"""The console commands of an installation (pyproject.toml): each runs `python -m MODULE`."""

import functools
import os
import runpy

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as run.sh has it

_module = functools.partial(runpy.run_module, run_name="__main__", alter_sys=True)

train = functools.partial(_module, "sqair.train")
likelihood = functools.partial(_module, "eval.likelihood")
predict = functools.partial(_module, "eval.predict")
tables = functools.partial(_module, "eval.tables")
figures = functools.partial(_module, "eval.figures")
page = functools.partial(_module, "eval.page")
models = functools.partial(_module, "eval.models")
paper = functools.partial(_module, "eval.paper")
export = functools.partial(_module, "sqair.export")
compare_original = functools.partial(_module, "eval.compare_original")
breakdown = functools.partial(_module, "eval.breakdown")
benchmark = functools.partial(_module, "eval.benchmark")
bouncing_balls = functools.partial(_module, "data_gen.bouncing_balls")
moving_mnist = functools.partial(_module, "data_gen.moving_mnist")
import_videos = functools.partial(_module, "data_gen.import_videos")
