"""The original's names: every trainable number of ours is one of the original's, under every flag."""

import itertools

import numpy as np
import pytest

from data_gen.errors import UserError
from sqair.model import SQAIR
from sqair.runs import original
from sqair.runs.values import read_values
from tests.model_helpers import SMALL, busy_model, small_config
from tests.reference.redraw import variable_shapes


def gather(model):
    return {
        name: original.gather_original(columns, [c.variable.numpy() for c in columns])
        for name, columns in original.original_names(model).items()
    }


FLAGS = [
    dict(transition=a, time_transition=b, prior_transition=c)
    for a, b, c in itertools.product(["VanillaRNN", "GRU"], repeat=3)
] + [
    dict(prop_prior_type="rw"),
    dict(prop_prior_type="guided"),
    dict(disc_prior_type="geom"),
    dict(rec_where_prior=False),
    dict(masked_glimpse=False),
    dict(mean_image=False),
    dict(n_what=16),
    dict(image_shape=(9, 11, 3)),
    dict(n_steps_per_image=1),
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(map(str, flags.values())))
def test_names_cover_every_element_once_and_go_there_and_back(flags):
    model, other = busy_model(**flags), busy_model(seed=2, **flags)
    names = original.original_names(model)
    seen = {id(v): np.zeros(v.shape, int) for v in model.trainable_variables}
    for columns in names.values():
        for c in columns:
            part = seen[id(c.variable)] if c.stop is None else seen[id(c.variable)][..., c.start : c.stop]
            part += 1
    assert all((count == 1).all() for count in seen.values())

    values = gather(model)
    for name, columns in names.items():
        assert list(values[name].shape) == original.original_shape(columns), name
    assert sum(value.size for value in values.values()) == sum(v.numpy().size for v in model.trainable_variables)
    original.assign_original(original.original_names(other), values)
    for ours, expected in zip(other.trainable_variables, model.trainable_variables):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("recording, flags", [("balls", dict(n_what=5, n_steps_per_image=4)), ("mnist_default", {})])
def test_names_and_shapes_are_the_recorded_checkpoints(recording, flags):
    model = SQAIR(type(SMALL)(**flags))
    ours = {name: original.original_shape(columns) for name, columns in original.original_names(model).items()}
    constants = {name: list(np.shape(value)) for name, value in original.original_constants(model).items()}
    assert len(ours) == 105
    assert {**ours, **constants} == variable_shapes(recording)


def names_of(**flags):
    return set(original.original_names(SQAIR(small_config(**flags))))


@pytest.mark.parametrize(
    "flags, gone",
    [
        (dict(disc_prior_type="geom"), ["step_prior_bias", "step_prior_timestep_bias", "discovery/discover/mlp/"]),
        (dict(rec_where_prior=False), ["recurrent_normal_impl"]),
        (dict(masked_glimpse=False), ["air_encoder/mlp"]),
        (dict(mean_image=False), ["air_decoder/Variable"]),
        (dict(n_what=16), ["gaussian_from_param_vec/linear"]),
    ],
)
def test_variables_that_flags_take_away(flags, gone):
    everything, left = names_of(), names_of(**flags)
    assert left < everything
    assert everything - left == {name for name in everything if any(part in name for part in gone)}
    assert all(any(part in name for name in everything) for part in gone)


@pytest.mark.parametrize(
    "kind, scope", [("rw", "random_walk_propagate_prior"), ("guided", "guided_walk_propagate_prior")]
)
def test_scope_of_the_walk_priors(kind, scope):
    renamed = {name.replace("propagation/propagate_prior/", f"propagation/{scope}/") for name in names_of()}
    assert names_of(prop_prior_type=kind) == renamed


@pytest.mark.parametrize("relation", ["in", "rmc", "rmc_slots"])
def test_relational_variables_have_no_names(relation):
    model = SQAIR(small_config(relation=relation))
    named = {id(c.variable) for columns in original.original_names(model).values() for c in columns}
    rest = [v.name for v in model.trainable_variables if id(v) not in named]
    assert names_of(relation=relation) == names_of()
    assert sum("w_gamma" in name for name in rest) == 3
    plain = {v.name for v in SQAIR(small_config()).trainable_variables}
    assert not plain & set(rest)


@pytest.fixture()
def checkpoint(tmp_path):
    """A checkpoint under the original's names, with what a training run adds: slots and the global step."""
    model = busy_model()
    values = {
        **gather(model),
        **original.original_constants(model),
        "global_step": np.int64(7),
        "beta1_power": np.float32(0.9),
    }
    values.update({f"{name}/RMSProp": value for name, value in gather(model).items()})
    return model, values, str(tmp_path / "model.ckpt-7")


def test_load(checkpoint):
    model, values, prefix = checkpoint
    original.write_original(prefix, values)
    other = busy_model(seed=2)
    loaded = original.load_original(other, prefix)
    assert set(loaded) == set(values) and loaded["global_step"] == 7
    for ours, expected in zip(other.trainable_variables, model.trainable_variables):
        np.testing.assert_array_equal(ours, expected)


def test_misfits_are_named_and_nothing_is_assigned(checkpoint):
    _, values, prefix = checkpoint
    name = "decoder/air_decoder/decoder/mlp/linear/b"
    spoilt = {
        f"{name} is missing": {k: v for k, v in values.items() if k != name},
        f"{name} has shape \\[31\\], the flags ask for \\[32\\]": {**values, name: np.zeros(31, np.float32)},
        "some/layer/w has no place": {**values, "some/layer/w": np.zeros(3, np.float32)},
        "output_std is 1, the flags ask for 0.54": {**values, "decoder/air_decoder/output_std": np.float32(1)},
    }
    for message, wrong in spoilt.items():
        original.write_original(prefix, wrong)
        model = busy_model(seed=2)
        before = [v.numpy() for v in model.trainable_variables]
        with pytest.raises(UserError, match=f"does not fit the flags: .*{message}"):
            original.load_original(model, prefix)
        for ours, expected in zip(model.trainable_variables, before):
            np.testing.assert_array_equal(ours, expected)


def test_newest_checkpoint_is_found_by_number(tmp_path):
    for name in ("model.ckpt-9.index", "model.ckpt-10.index", "model.ckpt-x.index", "checkpoint"):
        (tmp_path / name).touch()
    assert original.latest_original(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    with pytest.raises(UserError, match="no original checkpoint"):
        original.latest_original(str(tmp_path / "elsewhere"))


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "model.ckpt-1.index").write_bytes(b"junk" * 100)
    for prefix, message in (("model.ckpt-1", "damaged"), ("model.ckpt-2", "no such checkpoint")):
        with pytest.raises(UserError, match=message):
            read_values(str(tmp_path / prefix))
