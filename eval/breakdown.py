"""How much log-likelihood a predicted frame loses by each kind of latent: position, scale, appearance or presence.

    python -m eval.breakdown --run runs/rsqair_in_0 --data data/balls4mass64.h5 --split validation --out breakdown.json

The last of T frames is predicted in one pass and inferred in another one with the same noise, so that both follow the
same objects up to the frame before. The prediction is then decoded again with one kind of its latents replaced by the
inferred ones of the same object (by its id), which shows how many nats that kind costs. Also printed: the share of
standard deviations at their floor of 0.01, and, if the relation has attention between objects, its mean by distance.
`--without_relation prior` takes the relation away from an input of a trained model, and `--exchange_others` relates
every object to those of another sequence: what does the model owe to the relation, and to the objects there are?
"""

from data_gen.console import parse, progress, run_module
from data_gen.errors import UserError
from data_gen.files import begins, check_output, fingerprint, output_path, to_json
from eval.options import Breakdown as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.breakdown", lambda: parse(Arguments, "eval.breakdown"))

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import attrs
import numpy as np
import tensorflow as tf

from eval import geometry, metrics
from eval.predict import generator, infer, load, noise_seed
from eval.truth import Source, Truth
from relational.relation import Relation, Relations
from sqair import spatial_transformer
from sqair.model import SQAIR, Forward, resample
from sqair.runs.folder import versions
from sqair.runs.loading import checkpoint_fingerprint
from sqair.timestep import pick

_KIND = begins("a file of eval.breakdown", '{\n "breakdown":')
_FLOOR = 0.011  # standard deviations are softplus(x) + 0.01
_DISTANCES = (0, 10, 15, 20, 30, np.inf)
_TAKEN_OF_WHERE = {  # by kind: which of where's numbers (two scales, two shifts) are replaced
    "position": [False, False, True, True],
    "scale": [True, True, False, False],
    "appearance": [False, False, False, False],
}


class Objects(NamedTuple):
    """The objects of one frame of B sequences: what [B, N, D], where [B, N, 4], presence, object_id [B, N]."""

    what: np.ndarray
    where: np.ndarray
    presence: np.ndarray
    object_id: np.ndarray


def replace(predicted: Objects, inferred: Objects, kind: str) -> Objects:
    """The predicted objects with one kind of latent taken from the inferred object of the same id.

    Args:
      predicted, inferred: of the same frame.
      kind: position (the shift of `where`), scale (its scale), appearance (`what`), or presence: the inferred
        frame's objects, with the predicted latents where there are some.

    Returns:
      `Objects`; an object without a partner keeps its latents (presence: if it was not predicted, the inferred ones).

    Raises:
      KeyError: an unknown kind.
    """
    if kind == "presence":
        own, other = inferred, predicted
    else:
        own, other = predicted, inferred
    same = (own.object_id[..., :, None] == other.object_id[..., None, :]) & (own.object_id[..., :, None] >= 0)
    found = same.any(-1)[..., None]
    what, where = (np.where(found, same @ getattr(other, name), getattr(own, name)) for name in ("what", "where"))
    if kind == "presence":
        return own._replace(what=what, where=where)
    taken = _TAKEN_OF_WHERE[kind]
    return own._replace(what=what if kind == "appearance" else own.what, where=np.where(taken, where, own.where))


def remove_relation(model: SQAIR, inputs: Sequence[str]) -> None:
    """Sets the weights of the relation's inputs to zero, in place.

    Args:
      model: with a relation.
      inputs: of `--relation_inputs`: prior (of propagation), rnn (over the slots), where (the head of positions).

    Raises:
      UserError: the relation is no input of one of them.
    """
    propagate = model.sequence.timestep.propagate
    layers = {
        "prior": propagate.prior.rnn.inputs,
        "rnn": propagate.core.rnn.inputs,
        "where": propagate.core.where_head.mlp.layers[0],
    }
    for name in inputs:
        if "gamma" not in layers[name].w:
            given = ", ".join(place for place, layer in layers.items() if "gamma" in layer.w)
            raise UserError(
                f"--without_relation {name}: "
                + (f"this run's relation is no input of it; it is one of {given}" if given else "the run has none")
            )
        layers[name].w["gamma"].assign(tf.zeros_like(layers[name].w["gamma"]))


class ExchangedOthers:
    """A relation, with the other objects of another sequence in place of an object's own neighbours.

    Object i of particle p is related to the objects j != i of particle p - K, which belongs to the sequence before in
    the batch, or is its last. If that changes no prediction, the model makes nothing of which other objects there are.
    """

    def __init__(self, relation: Relation, k_particles: int):
        """Args: relation: to ask. k_particles: K.

        Raises:
          UserError: the relation has one gamma or one memory for all objects of a particle.
        """
        if relation.one_gamma or (relation.memory_size and not relation.memory_follows_objects):
            raise UserError(
                "--exchange_others: this run's relation has one gamma or memory for all objects; expected a run of "
                "IN or rmc_slots"
            )
        self.relation, self.k_particles = relation, k_particles

    def __getattr__(self, name: str) -> Any:
        return getattr(self.relation, name)

    def __call__(self, states: tf.Tensor, presence: tf.Tensor, memory: tf.Tensor) -> Relations:
        """See `Relation`; the attention is that between the sequence's own objects."""
        own = states, presence[..., None], memory
        other = [tf.roll(x, self.k_particles, 0) for x in own]
        found = []
        for mine in tf.unstack(tf.eye(states.shape[1])[..., None]):
            mixed = [mine * x + (1.0 - mine) * y for x, y in zip(own, other)]
            found.append(self.relation(mixed[0], mixed[1][..., 0], mixed[2]))
        return Relations(
            gamma=tf.stack([x.gamma[:, i] for i, x in enumerate(found)], 1),
            memory=tf.stack([x.memory[:, i] for i, x in enumerate(found)], 1),
            attention=self.relation(states, presence, memory).attention,
        )


def _objects(forward: Forward, uniform: tf.Tensor, what: tf.Tensor, where: tf.Tensor) -> Objects:
    """The last frame's objects of one particle per sequence; what, where: [T, P, N, d]."""
    drawn = (
        resample(forward, x[-1:], uniform)[0].numpy() for x in (what, where, forward.presence, forward.frame.object_id)
    )
    return Objects(*drawn)


def _likelihoods(model: SQAIR, truth: Truth, objects: Objects) -> dict[str, np.ndarray]:
    """log p(x | z) of the last frame in nats, [B]: of all pixels, and of those of colliding objects."""
    decoded = model.decoder(*(tf.constant(x, tf.float32)[None] for x in objects[:3]))
    canvas = spatial_transformer.rows_to_image(decoded.canvas, model.config.image_size[2])[0].numpy()
    pixels = metrics.gaussian_log_likelihood(truth.frames[:, -1], canvas, model.config.output_std, canvas.ndim == 4)
    found = {"data_ll": pixels.sum((-2, -1))}
    if truth.collisions is not None:
        found["relational_ll"] = metrics.masked_sum(pixels, truth.collisions[:, -1])
    return found


def canvases(model: SQAIR, truth: Truth, rng: np.random.Generator) -> tuple[dict[str, Objects], Forward, tf.Tensor]:
    """The last frame's objects by variant, the inferred pass, and the uniform noise [B] that draws its particle."""
    obs, seed = tf.constant(truth.frames.swapaxes(0, 1)), noise_seed(rng)
    n_frames, batch = obs.shape[:2]
    uniform = tf.constant(rng.random(batch, np.float32))
    predicted, inferred = (infer(model, obs, seed, first) for first in (n_frames - 1, None))
    k = predicted.log_weights.shape[1]
    weights = tf.reshape(tf.reduce_sum(predicted.log_weights_per_frame[:-1], 0), [batch, k])
    predicted, inferred = predicted._replace(log_weights=weights), inferred._replace(log_weights=weights)
    first, last = (_objects(x, uniform, x.latents.what, x.latents.where) for x in (predicted, inferred))
    selection = predicted.frame.selection[..., : predicted.frame.prior.where_loc.shape[2]]  # propagated ones only
    means = _objects(
        predicted,
        uniform,
        *(pick(selection, x) for x in (predicted.frame.prior.what_loc, predicted.frame.prior.where_loc)),
    )
    ways = {"predicted": first, "predicted, means of the prior": means}
    for kind in ("position", "scale", "appearance", "presence"):
        ways[f"predicted, {kind} inferred"] = replace(first, last, kind)
    ways["predicted, position and scale inferred"] = replace(replace(first, last, "position"), last, "scale")
    return ways | {"inferred": last}, inferred, uniform


def deviations(forward: Forward) -> dict[str, np.ndarray]:
    """Standard deviations of the present propagated objects after the first frame: [objects, d] by distribution."""
    present = forward.frame.propagated.presence[1:, ..., 0].numpy() > 0
    of = {
        "posterior of where": forward.frame.propagated.where_scale,
        "prior of where": forward.frame.prior.where_scale,
        "posterior of what": forward.frame.propagated.what_scale,
        "prior of what": forward.frame.prior.what_scale,
    }
    return {name: scale[1:].numpy()[present] for name, scale in of.items()}


def attended(model: SQAIR, forward: Forward, uniform: tf.Tensor) -> np.ndarray | None:
    """Attention between objects against their distance, of one particle per sequence.

    Returns:
      [pairs, 2]: distance in pixels between the windows' centres, and attention (mean over heads), of every ordered
      pair of present objects; None if the rows of attention are not the objects.
    """
    attention, presence = forward.frame.attention, forward.presence
    if attention.shape.rank != 5 or attention.shape[-1] != presence.shape[-1]:
        return None
    attention, presence, where = (
        resample(forward, x, uniform).numpy() for x in (tf.reduce_mean(attention, 2), presence, forward.latents.where)
    )
    centre = geometry.centres_from_where(where, model.config.image_size[:2])[:-1]
    distance = np.linalg.norm(centre[..., :, None, :] - centre[..., None, :, :], axis=-1)
    pairs = (presence[:-1, :, :, None] * presence[:-1, :, None] > 0) & ~np.eye(presence.shape[-1], dtype=bool)
    return np.stack([distance[pairs], attention[1:][pairs]], -1)


def evaluate(model: SQAIR, source: Source, batch_size: int, seed: int, advance=lambda n: None) -> dict[str, Any]:
    """Splits the last frame's loss by kind of latent.

    Args:
      model: with any number of particles.
      source: opened for this model.
      batch_size: B.
      seed: of the noise, which depends on the batches too.
      advance: called with the number of sequences after each batch.

    Returns:
      loss: for each variant of the objects, the mean data_ll (and relational_ll) in nats per frame; deviations: median
      and share at the floor; attention: rows of (distance from, to in pixels, pairs, mean attention), or None.
    """
    sums: dict[str, dict[str, float]] = {}
    scales: dict[str, list[np.ndarray]] = {}
    pairs: list[np.ndarray] = []
    for number, (size, truth) in enumerate(source.batches(batch_size)):
        ways, inferred, uniform = canvases(model, truth, generator(seed, number, 0))
        for way, objects in ways.items():
            for name, value in _likelihoods(model, truth, objects).items():
                row = sums.setdefault(way, {})
                row[name] = row.get(name, 0.0) + value[:size].sum() / source.n_sequences
        for name, value in deviations(inferred).items():
            scales.setdefault(name, []).append(value)
        found = attended(model, inferred, uniform)
        pairs += [] if found is None else [found]
        advance(size)
    by_distance = None
    if pairs:
        distance, attention = np.concatenate(pairs).T
        inside = [(low, high, (distance >= low) & (distance < high)) for low, high in zip(_DISTANCES, _DISTANCES[1:])]
        by_distance = [
            [
                low,
                None if np.isinf(high) else high,
                int(chosen.sum()),
                float(attention[chosen].mean()) if chosen.any() else None,
            ]
            for low, high, chosen in inside
        ]
    return {
        "loss": sums,
        "deviations": {
            name: {"median": float(np.median(values)), "at_floor": float(np.mean(values < _FLOOR))}
            for name, values in ((name, np.concatenate(parts)) for name, parts in scales.items())
        },
        "attention": by_distance,
    }


def text(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = list(figures["loss"]["predicted"])
    titles = {"data_ll": "log p(x|z)", "relational_ll": "relational"}
    head = [f"Last of {figures['n_frames']} frames, {figures['n_sequences']:,} sequences of {figures['split']}"]
    head.append("nats per frame")
    if figures["without_relation"]:
        head.append(f"the relation is taken away from {' and '.join(figures['without_relation'])}")
    if figures["exchange_others"]:
        head.append("every object is related to those of another sequence")
    lines = [
        "; ".join(head),
        "",
        "| the last frame's objects | " + " | ".join(titles[name] for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    lines += [
        f"| {way} | " + " | ".join(f"{row[name]:.1f}" for name in names) + " |" for way, row in figures["loss"].items()
    ]
    lines += ["", "| standard deviation | median | share at the floor of 0.01 |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['median']:.4f} | {row['at_floor']:.3f} |" for name, row in figures["deviations"].items()
    ]
    if figures["attention"]:
        lines += ["", "| distance of two objects, pixels | pairs | attention |", "|---|---|---|"]
        lines += [
            f"| {low} to {'' if high is None else high} | {n:,} | {'–' if mean is None else f'{mean:.4f}'} |"
            for low, high, n, mean in figures["attention"]
        ]
    return "\n".join(lines)


def main() -> None:
    arguments = parse(Arguments, "eval.breakdown")
    if arguments.out:
        check_output(arguments.out, _KIND, (arguments.data,))
    loaded = load(arguments.run, arguments.checkpoint, arguments.k_particles, arguments.n_slots)
    remove_relation(loaded.model, arguments.without_relation)
    if arguments.exchange_others:
        step = loaded.model.sequence.timestep
        if step.relation is None:
            raise UserError(f"--exchange_others: {arguments.run} has no relation")
        step.relation = cast(Relation, ExchangedOthers(step.relation, arguments.k_particles))
    with (
        Source(
            arguments.data, arguments.split, loaded.model.config.image_size, arguments.n_frames, arguments.n_sequences
        ) as source,
        progress(source.n_sequences, f"step {loaded.step}") as advance,
    ):
        for line in source.describe():
            print(line, file=sys.stderr)
        in_last_batch = (source.n_sequences - 1) % arguments.batch_size + 1
        if arguments.exchange_others and in_last_batch == 1:  # it is filled with copies: there is no other sequence
            raise UserError(
                f"--exchange_others: a batch of one sequence is left ({source.n_sequences:,} sequences, --batch_size "
                f"{arguments.batch_size}); choose another --batch_size or --n_sequences"
            )
        figures = evaluate(loaded.model, source, arguments.batch_size, arguments.seed, advance)
        figures |= {
            name: getattr(arguments, name) for name in ("n_frames", "split", "without_relation", "exchange_others")
        }
        figures["n_sequences"] = source.n_sequences
    print(text(figures))
    if arguments.out:
        content = {
            "breakdown": figures,
            "step": loaded.step,
            "settings": attrs.asdict(attrs.evolve(arguments, out=str(arguments.out))),
            "checkpoint_fingerprint": checkpoint_fingerprint(loaded.source),
            "data_fingerprint": fingerprint(arguments.data),
            "versions": versions(),
        }
        with output_path(arguments.out, _KIND, (arguments.data,)) as temporary:
            temporary.write_text(to_json(content))
        print(f"wrote {arguments.out}")
