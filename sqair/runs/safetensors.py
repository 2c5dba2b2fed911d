"""A model to share: its weights as safetensors, its flags as config.json, and a model card, README.md for people and
card.json for programs.

Tensors carry our variables' names (`sqair/decoder/mlp/linear_0/w`); the training step is in the file's metadata.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from data_gen.errors import UserError
from data_gen.files import begins, to_json
from relational.registry import find_relation
from sqair.config import NO_RELATION, Config, load_flags, model_name, model_titles, to_flags
from sqair.model import SQAIR
from sqair.runs.values import make_model

WEIGHTS, CONFIG, CARD, FACTS = "model.safetensors", "config.json", "README.md", "card.json"
FILES = (CARD, FACTS, CONFIG, WEIGHTS)  # the weights last: they make the folder a model
_CARD_HEAD = "---\nlibrary_name: r-sqair\n"
# Files that may be replaced are of these kinds.
KINDS = {
    CARD: begins("a card of such a model", _CARD_HEAD),
    CONFIG: begins("the configuration of such a model", '{\n "n_steps_per_image"'),
    FACTS: begins("the facts of such a model", '{\n "run"'),
}


def tensor_names(model: SQAIR) -> dict[str, tf.Variable]:
    """Name -> trainable variable."""
    return {v.name.split(":")[0]: v for v in model.trainable_variables}


def save(folder: pathlib.Path, config: Config, model: SQAIR, told: Mapping[str, Any]) -> None:
    """Writes the four files.

    Args:
      folder: where to.
      config, model: what is saved.
      told: what the card tells, JSON values. Always: run, checkpoint, step, all_steps (including those of the runs
        that this one was started from), recipe, seed, data, data_sha256; if known, what `folder.facts` returns, and
        table and check of `eval.models`.
    """
    step, all_steps = told["step"], told["all_steps"]
    tensors = {name: np.asarray(v.numpy()) for name, v in tensor_names(model).items()}
    metadata = {"format": "tf", "step": str(step), "earlier_steps": str(all_steps - step)}
    # Not save_file: its files can be read by their owner only, whatever the umask.
    try:
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, metadata))
    except OSError as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be written ({error.strerror})") from None
    (folder / CONFIG).write_text(json.dumps(to_flags(config), indent=1) + "\n")
    (folder / FACTS).write_text(to_json(told))
    (folder / CARD).write_text(_card(config, model, told))


def load(folder: pathlib.Path) -> tuple[Config, SQAIR, int, int]:
    """Loads a model.

    Returns:
      Its configuration, the model, its training step, and the earlier steps that this does not count.

    Raises:
      UserError: a file is missing or damaged, or the tensors are not those of the configuration.
    """
    path = folder / WEIGHTS
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder / CONFIG}: no such file; it says which model {WEIGHTS} is of")
    config, _ = load_flags(folder / CONFIG)
    with open(path, "rb"):  # a lack of permission is no damage
        pass
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            found = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in names}
            steps = [(file.metadata() or {}).get(name, "0") for name in ("step", "earlier_steps")]
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({str(error)[:200]})") from None
    for step in steps:
        if not (step.isascii() and step.isdigit() and len(step) < 19):
            raise UserError(f"{path}: its metadata give the step as {step[:40]!r}, expected a number")
    model = make_model(config.model, sum(math.prod(shape) for _, shape in found.values()), str(path))
    variables = tensor_names(model)
    wrong = _differences(variables, found)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not fit {folder / CONFIG}: {'; '.join(wrong[:3])}{more}")
    for name, value in safetensors.numpy.load_file(path).items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name} is not finite")
        variables[name].assign(value)
    return config, model, int(steps[0]), int(steps[1])


def _differences(variables: dict[str, tf.Variable], found: dict[str, tuple[str, list[int]]]) -> list[str]:
    wrong = []
    for name, variable in variables.items():
        expected = ("F32", variable.shape.as_list())
        if name not in found:
            wrong.append(f"{name} is missing")
        elif (found[name][0], list(found[name][1])) != expected:
            wrong.append(f"{name} is {found[name][0]} {list(found[name][1])}, expected F32 {expected[1]}")
    return wrong + [f"{name[:80]} has no place in the model" for name in found if name not in variables]


def _card(config: Config, model: SQAIR, told: Mapping[str, Any]) -> str:
    relation = config.model.relation
    title = model_titles()[model_name(relation)]
    what = "objects move on their own" if relation == NO_RELATION else find_relation(relation).summary
    parameters = sum(v.shape.num_elements() for v in model.trainable_variables)
    step, all_steps = told["step"], told["all_steps"]
    earlier = f", {all_steps - step:,} of them in the runs that this one was started from" if all_steps > step else ""
    minutes = (
        f" in {told['minutes']:.0f} minutes ({told['processor_minutes']:.0f} of a processor core)"
        if ("minutes" in told)
        else ""
    )
    sha256 = f", SHA-256 {told['data_sha256']}" if told["data_sha256"] else ""
    how = [f"seed {told['seed']}"] + [f"recipe `{told['recipe']}`"] * bool(told["recipe"])
    if "commit" in told:
        how.append(f"commit {told['commit']}" + " and changes on top of it" * told["uncommitted_changes"])
    if "machine" in told:
        how.append(f"machine: {told['machine']}")
    return f"""{_CARD_HEAD}\
tags: [video, object-centric, unsupervised, tracking]
---
# {title}

A generative model of videos of moving objects. It finds the objects of a first frame, follows them and predicts where
they go; it is trained without labels. In this one {what}.

- {parameters:,} parameters after {all_steps:,} training steps{earlier}{minutes}
- run `{told["run"]}`, checkpoint `{told["checkpoint"]}`; trained on `{told["data"]}`{sha256}
- {", ".join(how)}
- frames of {" x ".join(map(str, config.model.image_shape))} pixels, intensities from 0 to 1, at most \
{config.model.n_steps_per_image} objects per frame
- all flags of the run, its training data among them: `{CONFIG}`
{_figures(told)}
```python
from sqair.runs.loading import load_run

model = load_run("this folder").model
frames = ...                                     # float32 [T, B, height, width]
forward = model(frames, model.draw_noise([0, 0], frames.shape[0], frames.shape[1]))
forward.presence, forward.latents.where          # [T, B * particles, slots], [..., 4]
```
"""


def _figures(told: Mapping[str, Any]) -> str:
    """The part of the card with the model's figures, as far as they are known."""
    lines = []
    if "validation" in told:
        found = told["validation"]
        parts = [
            f"{name} {found[key]:.{digits}f}"
            for key, name, digits in (
                ("iwae_per_frame", "bound (IWAE)", 1),
                ("data_ll", "log p(x|z)", 1),
                ("kl", "KL", 1),
                ("num_step_accuracy", "count accuracy", 3),
            )
            if key in found
        ]
        lines.append(f"- validation at length {found['length']}, nats per frame: {', '.join(parts)}")
    if "table" in told:
        names = list(dict.fromkeys(name for row in told["table"] for name in row["figures"]))
        lines += [
            "",
            "Test sequences, nats per frame (predicted: of the last frame):",
            "",
            "| data | sequences | " + " | ".join(name.replace("_", " ") for name in names) + " |",
            "|---" * (len(names) + 2) + "|",
        ]
        for row in told["table"]:
            cells = ["–" if row["figures"].get(name) is None else f"{row['figures'][name]:.2f}" for name in names]
            lines.append(f"| {row['data_set']} | {row['n_sequences']} | " + " | ".join(cells) + " |")
    if "check" in told:
        lines += ["", f"`python -m eval.models check FOLDER` computes figures recorded in `{FACTS}` again."]
    return "\n".join(lines) + "\n" if lines else ""
