"""Flags: writing and reading, the original's files, and errors."""

import json

import attrs
import pytest

from data_gen.errors import UserError
from sqair.config import PRESETS, Config, ModelConfig, TrainConfig, from_flags, load_flags, to_flags

OTHER = Config(
    ModelConfig(
        n_steps_per_image=4,
        n_what=5,
        masked_glimpse=False,
        transition="GRU",
        prop_prior_type="guided",
        disc_prior_type="geom",
        rec_where_prior=False,
        scale_prior="-1,2.5",
        output_std=0.5,
        image_shape=(40, 30, 3),
        mean_image=False,
        relation="rmc",
        relation_inputs=("rnn", "where"),
    ),
    TrainConfig(batch_size=7, opt="adam", schedule="", learning_rate=3e-4, target="iwae", eval_on_train=False),
)


@pytest.mark.parametrize("config", [Config(), OTHER, *PRESETS.values()])
def test_there_and_back_through_json(config):
    flags = json.loads(json.dumps(to_flags(config)))
    assert from_flags(flags) == (config, []) and flags == to_flags(config)
    assert set(flags) == {f.name for part in (ModelConfig, TrainConfig) for f in attrs.fields(part)}


def test_every_field_is_read():
    """No field is lost: a change of any one of them is read back."""
    flags, other = to_flags(Config()), to_flags(OTHER)
    for name in flags:
        if other[name] != flags[name] and name != "relation_inputs":
            config, _ = from_flags({name: json.loads(json.dumps(other[name]))})
            assert to_flags(config) == {**flags, name: other[name]}, name


def test_flags_of_the_release(tmp_path):
    """As the released program wrote them: numbers as floats, and unknown keys."""
    path = tmp_path / "flags.json"
    path.write_text(
        json.dumps(
            {
                "batch_size": 32.0,
                "n_steps_per_image": 3.0,
                "scale_prior": -2.0,
                "n_what": 50.0,
                "output_std": 0.3,
                "train_itr": 2000000.0,
                "learning_rate": 1e-05,
                "schedule": "4,6,10",
                "eval_on_train": True,
                "k_particles": 5,
                "gpu": "0",
                "run_name": "mnist",
                "input_type": "mlp",
                "debug": False,
                "l2": 0,
            }
        )
    )
    config, unknown = load_flags(path)
    assert unknown == ["debug", "gpu", "input_type", "run_name"]
    assert config == Config()
    for part in (config.model, config.train):
        for field in attrs.fields(type(part)):
            assert type(getattr(part, field.name)) is type(field.default), field.name
    assert config.model.scale_prior_values == [-2.0]


def test_missing_flags_keep_the_base():
    config, _ = from_flags({"n_what": 9}, OTHER)
    assert config == attrs.evolve(OTHER, model=attrs.evolve(OTHER.model, n_what=9))


@pytest.mark.parametrize(
    "flag, value",
    [
        ("n_what", 5.5),
        ("n_what", "5"),
        ("n_what", True),
        ("n_what", None),
        ("n_what", [5]),
        ("n_what", float("nan")),
        ("output_std", "wide"),
        ("output_std", False),
        ("masked_glimpse", 1),
        ("masked_glimpse", "True"),
        ("transition", 3.5),
        ("image_shape", 50),
        ("image_shape", [50, "50"]),
        ("relation_inputs", "rnn"),
        ("n_what", 0),
        ("n_units", -1),
        ("k_particles", 0),
        ("glimpse_size", 1),
        ("step_success_prob", 1.0),
        ("output_std", 0.0),
        ("output_std", float("inf")),
        ("scale_prior", "1,2,3"),
        ("scale_prior", "small"),
        ("image_shape", [50]),
        ("image_shape", [50, 0]),
        ("image_shape", [50, 50, 0]),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("l2", -1.0),
        ("eval_size_fraction", 1.5),
        ("seed", -1),
        ("train_itr", -1),
        ("disc_step_bias", float("inf")),
    ],
)
def test_wrong_values_are_named(flag, value):
    with pytest.raises(UserError, match=flag):
        from_flags({flag: value})


@pytest.mark.parametrize(
    "flag, value, choices",
    [
        ("transition", "LSTM", "VanillaRNN, GRU"),
        ("prop_prior_type", "walk", "rnn, rw, guided"),
        ("opt", "lion", "rmsprop, adam, sgd, momentum"),
        ("disc_prior_type", "poisson", "cat, geom"),
        ("relation", "gnn", "none, in, rmc, rmc_slots"),
        ("target", "elbo", "vimco, vimco_textbook, iwae"),
        ("relation_inputs", ["rnn", "what"], "prior, rnn, where"),
    ],
)
def test_wrong_choices_are_named(flag, value, choices):
    wrong = value[-1] if isinstance(value, list) else value
    with pytest.raises(UserError, match=f"{flag} must be one of {choices}, got {wrong}"):
        from_flags({flag: value})


def test_relation_without_inputs_is_refused():
    with pytest.raises(UserError, match="relation_inputs"):
        from_flags({"relation": "in", "relation_inputs": []})


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a JSON file"),
        ("[1]", "list"),
        ('"n_what"', "str"),
        ('{"n_what": -1}', "n_what"),
        ("[" * 100000, "not a JSON file"),
    ],
)
def test_bad_files_are_named(content, message, tmp_path):
    path = tmp_path / "flags.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_flags(path)
    assert "flags.json" in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        load_flags(tmp_path / "nothing.json")


def test_presets_are_the_papers():
    for name, relation in (
        ("sqair_balls", "none"),
        ("rsqair_in", "in"),
        ("rsqair_rmc", "rmc"),
        ("rsqair_rmc_slots", "rmc_slots"),
    ):
        config = PRESETS[name]
        assert config.model.relation == relation
        assert (config.model.n_what, config.model.n_steps_per_image, config.model.relation_embedding) == (5, 4, 5)
        assert config.model.relation_inputs == ("prior", "rnn", "where")
        train = config.train
        assert (train.batch_size, train.seq_len, train.stage_itr, train.max_seq_len) == (32, 3, 10_000, 10)
        assert (config.model.k_particles, train.opt, train.learning_rate, train.patience) == (5, "rmsprop", 1e-5, 10)
    mnist = PRESETS["sqair_mnist"]  # the release's defaults and its script's curriculum
    assert mnist.model == ModelConfig()
    assert (mnist.train.seq_len, mnist.train.stage_itr, mnist.train.max_seq_len) == (3, 100_000, 10)
    assert (mnist.train.train_itr, mnist.train.patience) == (2_000_000, 0)
    air = PRESETS["air_balls"]
    assert (air.train.seq_len, air.train.max_seq_len, air.model) == (1, 1, PRESETS["sqair_balls"].model)


def test_defaults_are_the_originals():
    """docs/spec/sqair.md, "Flags and defaults"."""
    expected = dict(
        n_steps_per_image=3,
        n_what=50,
        n_units=8,
        glimpse_size=20,
        k_particles=5,
        batch_size=32,
        masked_glimpse=True,
        transition="VanillaRNN",
        time_transition="GRU",
        prior_transition="GRU",
        prop_prior_type="rnn",
        disc_prior_type="cat",
        step_success_prob=0.75,
        rec_where_prior=True,
        scale_prior="-2",
        transform_var_bias=-3.0,
        output_scale=0.25,
        output_std=0.3,
        disc_step_bias=1.0,
        prop_step_bias=5.0,
        prop_prior_step_bias=10.0,
        sample_from_prior=False,
        opt="rmsprop",
        learning_rate=1e-5,
        schedule="4,6,10",
        l2=0.0,
        train_itr=2_000_000,
        seq_len=0,
        stage_itr=0,
        log_itr=10_000,
        log_at_start=False,
        report_loss_every=1000,
        fig_itr=10_000,
        eval_on_train=True,
        eval_size_fraction=1.0,
    )
    flags = to_flags(Config())
    assert {name: flags[name] for name in expected} == expected
    assert Config().model.n_hidden == 256


@pytest.mark.parametrize("shape, size", [((50, 40), (50, 40, 1)), ((50, 40, 1), (50, 40, 1)), ((5, 4, 3), (5, 4, 3))])
def test_image_size(shape, size):
    assert ModelConfig(image_shape=shape).image_size == size
