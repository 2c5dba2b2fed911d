"""Training within this process: its curriculum, how it ends, continues and starts from other runs, its errors.

`tests/system/test_training.py` has the real command.
"""

import json
import os
import shutil

import attrs
import h5py
import numpy as np
import pytest
import tensorflow as tf

from data_gen import pipeline
from data_gen.errors import UserError
from sqair import model as sqair_model
from sqair import options
from sqair.config import RECIPES, TrainConfig
from sqair.model import SQAIR
from sqair.runs import loading, saving
from sqair.runs.folder import RunLock
from sqair.training import shards as training_shards
from sqair.training import step as training_step
from sqair.training import trainer as training_trainer
from sqair.training.optimizers import Optimizer
from sqair.training.trainer import Trainer
from tests.data_helpers import run_here
from tests.model_helpers import eagerly
from tests.train_helpers import STEPS, command, config, error_line, execute_here, make_data, newest, rows, tiniest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def run_eagerly():
    """Small steps are quicker than their tracing."""
    with eagerly():
        yield


@pytest.fixture
def compiled():
    """Not eagerly, for tests that need graphs or take many steps."""
    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


def settings_of_finished(data, model=(), **training):
    return config(data, model, **{**dict(train_itr=4, log_itr=4, fig_itr=4, eval_on_train=False), **training})


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert Trainer(settings_of_finished(data), str(folder)).run() == 0
    return folder


@pytest.mark.slow
def test_what_has_been_learnt_is_saved_before_a_new_length_is_compiled(data, tmp_path):
    trainer = Trainer(
        config(
            data,
            train_itr=3,
            stage_itr=1,
            seq_len=1,
            max_seq_len=2,
            save_itr=3,
            log_itr=3,
            fig_itr=9,
            eval_on_train=False,
        ),
        str(tmp_path / "run"),
    )
    saved, call = [], trainer._in_thread

    def note(function):
        saved.append((trainer.step, trainer.saved_step))
        return call(function)

    trainer._in_thread = note
    assert trainer.run() == 0
    assert saved == [(0, 0), (1, 1)]  # the evaluation follows steps that are not saved: its compilation is waited for
    log = (tmp_path / "run" / "train.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("compiling")] == [
        f"compiling the {what} at length {length} ..."
        for what, length in (("training step", 1), ("training step", 2), ("evaluation", 2))
    ]


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_do(finished, data):
    before = newest(finished)
    trainer = Trainer(settings_of_finished(data), str(finished))
    assert trainer.run() == 0
    assert all(np.array_equal(before[name], value) for name, value in newest(finished).items())


@pytest.mark.parametrize(
    "lengths, n_frames",
    [
        (dict(seq_len=2, stage_itr=0), 2),  # a fixed length
        (dict(seq_len=0, stage_itr=0), 3),  # the fixed length that is max_seq_len
        (dict(seq_len=2, stage_itr=8), 3),  # a growing one
    ],
)
def test_the_mean_image_is_that_of_the_frames_trained_on(data, tmp_path, lengths, n_frames):
    trainer = Trainer(config(data, **lengths), str(tmp_path / "run"))
    with h5py.File(data) as file:
        features = file["training/features"][:n_frames, :, 22:42, 22:42]
    np.testing.assert_allclose(trainer.model.decoder.mean_image, features.mean((0, 1)), atol=1e-6)


@pytest.mark.slow
def test_the_step_is_traced_once_a_length(data, tmp_path, compiled):
    trainer = Trainer(tiniest(data, eval_on_train=False), str(tmp_path / "run"))
    assert trainer.run() == 0
    assert trainer.train_step.experimental_get_tracing_count() == 2


@pytest.mark.slow
def test_training_improves_the_bound(data, tmp_path, compiled):
    config_ = tiniest(
        data, train_itr=60, stage_itr=0, opt="adam", learning_rate=3e-3, log_itr=60, save_itr=60, eval_on_train=False
    )
    trainer = Trainer(config_, str(tmp_path / "run"))
    trainer.run()
    bounds = [float(row["iwae_per_frame"]) for row in rows(tmp_path / "run") if row["data"] == "batch"]
    assert np.mean(bounds[-10:]) > np.mean(bounds[:10]) + 0.2 * abs(np.mean(bounds[:10]))


@pytest.mark.slow
def test_early_stopping(data, tmp_path):
    # A rate of nearly nothing: the bound does not improve, epochs are 5 steps.
    config_ = tiniest(
        data, train_itr=100, stage_itr=0, log_itr=5, patience=2, learning_rate=1e-30, opt="sgd", eval_on_train=False
    )
    trainer = Trainer(config_, str(tmp_path / "run"))
    assert trainer.run() == 0
    assert trainer.step == 15 and int(trainer.state.best_step) == 5
    assert "early stopping" in json.loads((tmp_path / "run" / "finished.json").read_text())["reason"]


@pytest.mark.slow
def test_early_stopping_compares_bounds_of_one_length(data, tmp_path, monkeypatch):
    """Weights stay as they are. Longer sequences have lower bounds, and the first of them counts as the best."""
    evaluate = training_step.evaluate

    def falling(eval_step, data, n_batches, seed):
        lengths = []
        values = evaluate(
            lambda obs, *rest: (lengths.append(obs.shape[0]), eval_step(obs, *rest))[1], data, n_batches, seed
        )
        return values._replace(iwae_per_frame=values.iwae_per_frame - 1000 * lengths[0])

    monkeypatch.setattr(training_trainer, "evaluate", falling)
    for stage_itr, stop in ((10, 20), (7, 20)):  # the growth is at an evaluation, or before one
        trainer = Trainer(
            tiniest(
                data,
                train_itr=100,
                stage_itr=stage_itr,
                log_itr=5,
                patience=2,
                opt="sgd",
                learning_rate=1e-30,
                eval_on_train=False,
            ),
            str(tmp_path / str(stage_itr)),
        )
        trainer.run()
        assert trainer.step == stop and int(trainer.state.best_step) == 10
        assert loading.find_checkpoint(tmp_path / str(stage_itr), "best")[1].endswith("step-10")
        lengths = {row["step"]: row["length"] for row in rows(tmp_path / str(stage_itr)) if row["data"] == "validation"}
        assert lengths == {"5": "1", "10": "2", "15": "2", "20": "2"}


@pytest.mark.slow
def test_validation_where_the_curriculum_grows_is_of_the_new_length(data, tmp_path):
    config_ = tiniest(data, log_itr=8, save_itr=8, keep_checkpoints=2, eval_on_train=False)
    Trainer(config_, str(tmp_path / "run")).run()
    row = next(row for row in rows(tmp_path / "run") if row["data"] == "validation")
    model = loading.load_run(tmp_path / "run", "8").model
    expected = training_step.evaluate(
        training_step.compile_eval_step(model, config_.train),
        iter(pipeline.batches(data, "validation", 8, 2, crop=20, shuffle=False)),
        2,
        0,
    )
    assert (row["step"], row["length"]) == ("8", "2")
    assert float(row["iwae"]) == pytest.approx(expected.iwae, rel=1e-5)


@pytest.mark.slow
def test_log_at_start_evaluates_once_before_the_first_step(data, tmp_path, monkeypatch):
    config_ = tiniest(data, train_itr=2, log_at_start=True)
    save = saving.RunCheckpoints.save
    # A kill just before the first checkpoint, then one just after.
    for stop in (lambda self: 1 / 0, lambda self: save(self) and 1 / 0):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(saving.RunCheckpoints, "save", stop)
            Trainer(config_, str(tmp_path / "run")).run()
    trainer = Trainer(config_, str(tmp_path / "run"))
    trainer.run()
    found = [(row["step"], row["data"]) for row in rows(tmp_path / "run")]
    assert found == [
        ("0", "validation"),
        ("0", "training"),
        ("1", "batch"),
        ("2", "batch"),
        ("2", "validation"),
        ("2", "training"),
    ]


@pytest.mark.slow
def test_air_is_one_frame(data, tmp_path):
    trainer = Trainer(tiniest(data, stage_itr=0, max_seq_len=1, train_itr=2), str(tmp_path / "air"))
    assert trainer.run() == 0
    assert {row["length"] for row in rows(tmp_path / "air")} == {"1"}
    assert all(float(row["num_prop_steps"]) == 0 for row in rows(tmp_path / "air"))


@pytest.mark.slow
def test_a_relational_run_starts_from_sqair_with_its_bound(finished, data, tmp_path):
    step = loading.find_checkpoint(finished, "newest")[1]
    for relation in ("in", "rmc", "rmc_slots"):
        trainer = Trainer(settings_of_finished(data, dict(relation=relation)), str(tmp_path / relation), init_from=step)
        source = loading.load_run(step).model
        obs = tf.random.stateless_uniform([3, 8, 20, 20], [0, 1])
        noise = source.draw_noise([1, 2], 3, 8)
        np.testing.assert_allclose(trainer.model(obs, noise).log_weights, source(obs, noise).log_weights, rtol=1e-5)
        log = (tmp_path / relation / "train.log").read_text()
        assert "widened" in log and "w_gamma" in log and "left" in log


@pytest.mark.slow
def test_init_from_takes_weights_and_starts_all_else_anew(finished, data, tmp_path):
    source = loading.load_run(finished)
    trainer = Trainer(settings_of_finished(data), str(tmp_path / "run"), init_from=str(finished))
    for variable, value in zip(trainer.model.trainable_variables, source.model.trainable_variables):
        np.testing.assert_array_equal(variable, value)
    assert trainer.step == int(trainer.optimizer.updates) == 0
    assert all((slot.numpy() == 1).all() for slot in trainer.optimizer.slots["rms"])
    assert "the optimiser and the count of steps start anew" in (tmp_path / "run" / "train.log").read_text()
    told = json.loads((tmp_path / "run" / "started_from.json").read_text())
    assert told == {"source": source.source, "step": source.step, "first_step": 0, "earlier_steps": source.step}
    trainer.state.step.assign(5)
    trainer.checkpoints.save()
    for how, step, earlier in (("init_from", 0, 5 + source.step), ("continue_from", 5, source.step)):
        again = Trainer(settings_of_finished(data, train_itr=8), str(tmp_path / how), **{how: str(tmp_path / "run")})
        again.checkpoints.save()  # steps of a chain of runs are counted once each
        run = loading.load_run(again.folder, "newest")
        assert (run.step, run.earlier_steps, run.all_steps) == (step, earlier, 5 + source.step)


def test_init_from_sets_starting_values_anew_that_are_asked_for(finished, data, tmp_path):
    model = dict(disc_step_bias=2.5, prop_step_bias=-1.5, transform_var_bias=-2.0, output_scale=0.7, scale_prior="-1,0")
    asked = options.asked_flags(["--disc_step_bias", "2.5", "--output-scale=0.7", "--scale_prior=-1,0"])
    trained = {v.name: v.numpy() for v in loading.load_run(finished).model.trainable_variables}
    trainer = Trainer(settings_of_finished(data, model), str(tmp_path / "run"), init_from=str(finished), asked=asked)
    expected = {"disc_step_bias": 2.5, "output_scale": 0.7, "scale_prior": [-1, 0, 0, 0, 1, 1, 1, 1]}
    for flag, variables in loading.STARTS.items():
        for variable in variables(trainer.model):
            value = np.broadcast_to(expected.get(flag, trained.pop(variable.name)), variable.shape)
            np.testing.assert_array_equal(variable, value.astype(np.float32), err_msg=flag)
    for variable in trainer.model.trainable_variables:
        if variable.name in trained:
            np.testing.assert_array_equal(variable, trained[variable.name], err_msg=variable.name)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "--disc_step_bias 2.5 starts anew" in log and "--prop_step_bias" not in log


@pytest.mark.slow
def test_flags_of_starting_values_are_those_that_change_them_and_nothing_else():
    """In two models that differ in one flag, all other variables start the same."""

    def start(**flags):
        tf.random.set_seed(0)
        return SQAIR(config("", flags).model)

    flags = dict(
        disc_step_bias=7.0,
        prop_step_bias=7.0,
        prop_prior_step_bias=7.0,
        transform_var_bias=7.0,
        output_scale=7.0,
        scale_prior="7",
        output_std=7.0,
        step_success_prob=0.5,
        k_particles=7,
        prop_prior_type="rw",
    )
    base = start()
    for flag, value in flags.items():
        other = start(**{flag: value})
        changed = {
            v.name
            for v, w in zip(base.trainable_variables, other.trainable_variables)
            if (v.numpy() != w.numpy()).any()
        }
        assert changed == {v.name for v in loading.STARTS.get(flag, lambda model: [])(base)}, flag
    assert loading.STARTS.keys() < flags.keys()
    assert loading.STARTS["scale_prior"](start(rec_where_prior=False)) == []


@pytest.mark.slow
def test_continue_from_ends_as_if_more_steps_had_been_asked_for_at_once(data, tmp_path):
    """The same steps in one run and in two, the second of which is given only the number of steps."""
    settings = dict(schedule="", keep_checkpoints=1, log_itr=STEPS, eval_on_train=False)
    Trainer(tiniest(data, **settings), str(tmp_path / "long")).run()
    Trainer(tiniest(data, **settings, train_itr=7), str(tmp_path / "short")).run()
    arguments = [
        "--continue_from",
        str(tmp_path / "short"),
        "--run_dir",
        str(tmp_path / "next"),
        "--train_itr",
        str(STEPS),
    ]

    def go_on():
        trainer = Trainer(
            options.parse(arguments).config, str(tmp_path / "next"), continue_from=str(tmp_path / "short")
        )
        assert trainer.run() == 0
        return (tmp_path / "next" / "train.log").read_text()

    assert "at step 7 of 12, length 1, learning rate 0.0001" in go_on()
    expected, got = newest(tmp_path / "long"), newest(tmp_path / "next")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    batches = [[row for row in rows(tmp_path / name) if row["data"] == "batch"] for name in ("long", "next")]
    assert batches[0] == batches[1]
    # Again, after the continued run was removed: there is nothing left to do.
    (tmp_path / "short" / "flags.json").unlink()
    assert "finished before, 12 steps" in go_on()


@pytest.mark.slow
def test_after_early_stopping_a_run_goes_on_at_another_rate(data, tmp_path):
    still = tiniest(
        data, train_itr=100, max_seq_len=1, log_itr=5, patience=1, learning_rate=1e-30, opt="sgd", eval_on_train=False
    )
    Trainer(still, str(tmp_path / "run")).run()
    assert "early stopping at step 10" in (tmp_path / "run" / "finished.json").read_text()
    again = Trainer(still, str(tmp_path / "run"))
    assert again.run() == 0 and again.step == 10
    assert f"--continue_from {tmp_path / 'run'} goes on" in (tmp_path / "run" / "train.log").read_text()
    faster = attrs.evolve(still, train=attrs.evolve(still.train, learning_rate=1e-4, train_itr=15))
    with pytest.raises(UserError, match="a run with learning_rate 1e-30.* in a new --run_dir, with --continue_from"):
        Trainer(faster, str(tmp_path / "run"))
    trainer = Trainer(faster, str(tmp_path / "faster"), continue_from=str(tmp_path / "run"))
    trainer.run()
    assert trainer.step == 15 and int(trainer.state.best_step) == 15
    assert [row["learning_rate"] for row in rows(tmp_path / "faster") if row["data"] == "batch"][-1] != "1e-30"


@pytest.mark.parametrize(
    "model, training, message",
    [
        (dict(disc_step_bias=3.0), {}, "--disc_step_bias 3.0: it says where training starts.* with --init_from"),
        (dict(n_what=3), {}, "of another model .n_what differ.* --init_from takes what fits"),
        (dict(relation="in"), {}, "of another model .relation differ"),
        (dict(mean_image=False), {}, "of another model .mean_image differ"),
        ({}, dict(train_itr=4), "has reached step 4 and train_itr is 4: ask for more with --train_itr"),
    ],
)
def test_continue_from_refuses_what_would_be_another_run(finished, data, tmp_path, model, training, message):
    with pytest.raises(UserError, match=message):
        Trainer(
            settings_of_finished(data, model, **{"train_itr": 20, **training}),
            str(tmp_path / "run"),
            continue_from=str(finished),
        )
    assert not (tmp_path / "run").exists()


def test_continue_from_takes_its_options_from_the_run(finished, data):
    arguments = [
        "--run_dir",
        "x",
        "--continue_from",
        str(finished),
        "--train_itr",
        "50",
        "--k_particles=3",
        "--shards",
        "2",
    ]
    parsed = options.parse(arguments)
    expected = settings_of_finished(data, dict(k_particles=3), train_itr=50, shards=2)
    assert parsed.config == expected
    with pytest.raises(UserError, match="leave --preset out"):
        options.parse([*arguments, "--preset", "sqair_balls"])
    with pytest.raises(UserError, match="nowhere"):
        options.parse(["--run_dir", "x", "--continue_from", "nowhere"])


@pytest.mark.slow
def test_a_run_that_has_learnt_nothing_does_not_bind_its_folder(data, tmp_path):
    """It stopped before its first checkpoint; once it has one, other flags are refused."""
    folder = tmp_path / "run"
    trainer = Trainer(tiniest(data, train_itr=8, max_seq_len=1, log_at_start=True), str(folder))
    trainer.model.decoder.output_scale.assign(float("inf"))
    trainer.eval_step = lambda *_: sqair_model.Report(*[0.0] * len(sqair_model.Report._fields))
    with pytest.raises(UserError, match=f"--continue_from {folder} goes on"):
        trainer.run()
    assert list((folder / "best").glob("step-0*")) and (folder / "non_finite.json").exists()
    other = tiniest(data, dict(n_what=3), train_itr=4, max_seq_len=1, eval_on_train=False)
    Trainer(other, str(folder)).run()
    assert json.loads((folder / "flags.json").read_text())["n_what"] == 3
    assert {row["step"] for row in rows(folder)} == {"1", "2", "3", "4"}
    assert not (folder / "non_finite.json").exists() and not list((folder / "best").glob("step-0*"))
    with pytest.raises(UserError, match="holds a run with n_what 3, asked was 2"):
        Trainer(tiniest(data, train_itr=4, max_seq_len=1), str(folder))


def test_a_failed_start_leaves_no_folder(data, tmp_path):
    """Neither the run folder nor those above it that were made for it; a folder that was there stays."""
    for change, more in (
        (dict(train_data="nowhere.h5"), {}),
        ({}, dict(init_from="nowhere")),
        (dict(schedule="4,x"), {}),
    ):
        error_line(execute_here(command(config(data, **change), tmp_path / "runs" / "new" / "run", **more)))
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    error_line(execute_here(command(config(data, crop=50), tmp_path / "mine")))
    assert (tmp_path / "mine").exists()


def test_describe_prints_the_parameters():
    result = run_here("sqair.train", "--preset", "rsqair_in", "--no-mean_image", "--run_dir", "x", "--describe")
    assert result.returncode == 0, result.stderr
    assert f"{2_660_630 + 21_677:,}" in result.stdout and "interaction_network" in result.stdout
    assert not os.path.exists("x")


def test_one_writer_a_folder(data, tmp_path):
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run") as note:
        assert note is None
        line = error_line(execute_here(command(config(data), tmp_path / "run")))
        assert f"process {os.getpid()} on" in line
    with RunLock(tmp_path / "run") as note:
        assert note is None  # released properly
    (tmp_path / "run" / "run.lock").write_text("process 999999 on elsewhere\n")
    with RunLock(tmp_path / "run") as note:
        assert "process 999999 on elsewhere" in note  # its holder died: taken over


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(data, tmp_path):
    config_ = tiniest(data, train_itr=8, eval_on_train=False)
    Trainer(config_, str(tmp_path / "run")).run()
    (tmp_path / "run" / "finished.json").unlink()
    damaged = next((tmp_path / "run" / "checkpoints").glob("step-8.data*"))
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    trainer = Trainer(config_, str(tmp_path / "run"))
    assert trainer.step == 4
    assert "damaged checkpoint skipped" in (tmp_path / "run" / "train.log").read_text()
    for path in (tmp_path / "run" / "checkpoints").glob("*.index"):
        path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no checkpoint in it can be read"):
        Trainer(config_, str(tmp_path / "run"))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="--continue_from .* goes on with the best one"):
        Trainer(config_, str(tmp_path / "run"))
    assert list((tmp_path / "run" / "best").glob("step-*.index"))


def test_non_finite_numbers_stop_the_run_before_the_update(data, tmp_path):
    folder = tmp_path / "run"
    trainer = Trainer(tiniest(data), str(folder))
    before = [v.numpy() for v in trainer.model.trainable_variables]
    trainer.model.decoder.output_scale.assign(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        trainer.run()
    found = json.loads((folder / "non_finite.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert found["batch_index"] == 0 and found["loss"] in ("nan", "inf") and "data likelihood" in found["terms"]
    assert any("output_scale" in name for name in found["variables"])
    for variable, value in zip(trainer.model.trainable_variables, before):
        if "output_scale" not in variable.name:
            np.testing.assert_array_equal(variable.numpy(), value)
    assert trainer.step == 0


@pytest.mark.slow
def test_clipping_bounds_the_gradient(data, tmp_path):
    norms = []
    for clip in (0.0, 1e-3):
        config_ = tiniest(data, train_itr=1, opt="sgd", learning_rate=1.0, clip_norm=clip, eval_on_train=False)
        trainer = Trainer(config_, str(tmp_path / str(clip)))
        before = [v.numpy() for v in trainer.model.trainable_variables]
        trainer.run()
        norms.append(
            np.sqrt(sum(np.sum((v.numpy() - b) ** 2.0) for v, b in zip(trainer.model.trainable_variables, before)))
        )
    assert norms[0] > 1e-2 and norms[1] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(train_data="nowhere.h5"), "nowhere.h5"),
        (dict(crop=50), "the model is made for 20 x 20 x 1"),
        (dict(max_seq_len=9), "9"),
        (dict(batch_size=17), "16 sequences"),
        (dict(schedule="4,x"), "schedule"),
    ],
)
def test_bad_settings_are_one_line(data, tmp_path, change, message):
    result = execute_here(command(config(data, **change), tmp_path / "run"))
    assert message in error_line(result)
    assert not list(tmp_path.rglob("step-*"))


def test_another_configuration_does_not_enter_a_run_folder(finished, data):
    with pytest.raises(UserError, match="learning_rate 0.0001, asked was 0.5"):
        Trainer(settings_of_finished(data, learning_rate=0.5), str(finished))


def test_unknown_flags_presets_and_unwritable_folders(tmp_path, data):
    result = run_here("sqair.train", "--run_dir", tmp_path / "run", "--n_whta", "5")
    assert result.returncode != 0 and "n_whta" in result.stderr and "Traceback" not in result.stderr
    with pytest.raises(UserError, match="no such preset"):
        options.parse(["--preset", "sqair_bals", "--run_dir", "x"])
    (tmp_path / "file").write_text("")
    assert "file" in error_line(execute_here(command(config(data), tmp_path / "file" / "run")))


def test_recipes_are_defaults_of_training_that_options_override():
    with_recipe = options.parse(["--recipe", "short", "--run_dir=x", "--seed", "3", "--preset=rsqair_in"]).config
    without = options.parse(["--run_dir", "x", "--preset", "rsqair_in", "--seed", "3"]).config
    assert with_recipe.model == without.model
    assert (with_recipe.train.target, without.train.target) == ("vimco_textbook", "vimco")
    assert (
        attrs.evolve(with_recipe.train, **{name: getattr(without.train, name) for name in RECIPES["short"]})
        == without.train
    )
    assert options.parse(["--recipe", "short", "--run_dir", "x", "--train_itr", "7"]).config.train.train_itr == 7
    with pytest.raises(UserError, match="--recipe shrt: no such recipe; choose from short"):
        options.parse(["--recipe", "shrt", "--run_dir", "x"])


def test_presets_are_defaults_that_options_override():
    arguments = options.parse(["--seed", "3", "--preset", "rsqair_rmc", "--run_dir", "x", "--n_what", "7"])
    config = arguments.config
    assert (config.model.relation, config.model.n_what, config.train.seed) == ("rmc", 7, 3)


def test_batches_are_split_where_that_is_quicker(monkeypatch):
    def shards(cores, **training):
        monkeypatch.setattr(training_shards, "n_cores", lambda: cores)
        return training_shards.n_shards(TrainConfig(**training))

    assert [shards(2), shards(16), shards(2, shards=4), shards(1, shards=2), shards(16, shards=2)] == [2, 4, 4, 2, 2]
    assert [shards(1), shards(2, batch_size=5), shards(2, xla=True), shards(2, distribute="mirrored")] == [1] * 4
    with monkeypatch.context() as patch:
        patch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"] if kind == "GPU" else [])
        assert shards(2) == 1


@pytest.mark.parametrize(
    "cores, batch_size, shards",
    [
        *[(1, size, 1) for size in (1, 2, 5, 32, 64)],  # as it always was
        *[(2, size, 1 if size % 2 else 2) for size in (1, 2, 4, 5, 31, 32, 64)],  # as it always was
        (3, 32, 2),
        (4, 32, 4),
        (7, 32, 4),
        (8, 32, 4),
        (16, 32, 4),
        (128, 32, 4),  # shards of 8
        (8, 64, 8),
        (16, 64, 8),
        (12, 96, 12),
        (16, 16, 2),
        (16, 4, 2),
        (16, 7, 1),
        (3, 24, 3),
        (3, 27, 3),
        (16, 1, 1),
    ],
)
def test_shards_by_cores_and_batch(cores, batch_size, shards):
    assert training_shards.default_shards(cores, batch_size) == shards
    assert batch_size % shards == 0 and shards <= cores


@pytest.mark.parametrize(
    ("flags", "inline"),
    [(dict(shards=1), True), (dict(shards=2), False), (dict(shards=2, bfloat16=True), True)],
)
def test_frames_are_inlined_in_one_piece_and_where_graphs_are_rewritten(flags, inline):
    assert training_shards.inline_frames(TrainConfig(**flags)) == inline


@pytest.mark.slow
def test_shards_change_nothing_but_rounding(data):
    """Two updates in one piece and in four: weights, loss and reports agree to float precision."""
    results = []
    for shards in (1, 4):
        settings = config(data, shards=shards, clip_norm=100.0, l2=1e-3).train
        tf.random.set_seed(0)
        model = SQAIR(config(data).model, inline=training_shards.inline_frames(settings))
        optimizer = Optimizer("rmsprop", model.trainable_variables)
        step = training_step.compile_train_step(model, optimizer, settings)
        evaluate = training_step.compile_eval_step(model, settings)
        batch = next(iter(pipeline.batches(data, "training", 8, 2, crop=20)))
        taken = [step(*batch, tf.constant(i, tf.int64), tf.constant(1e-3)) for i in range(2)]
        report = evaluate(*batch, tf.constant([0, 1]))
        results.append([*tf.nest.flatten(taken), *report, *model.trainable_variables])
    for whole, parts in zip(*results):
        np.testing.assert_allclose(parts, whole, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def clipped(data, tmp_path_factory):
    """A run of which some updates are clipped, its settings, and the norms of all its gradients."""
    folder, norms = tmp_path_factory.mktemp("clipped"), []

    def run(name, **changes):
        settings = tiniest(data, stage_itr=0, eval_on_train=False, report_loss_every=5, **changes)
        trainer = Trainer(settings, str(folder / name))
        step = trainer.train_step

        def recorded(*arguments):
            result = step(*arguments)
            norms.append(float(result.gradient_norm))
            return result

        trainer.train_step = recorded
        norms.clear()
        trainer.run()
        return settings

    run("off")
    settings = run("on", clip_norm=float(np.median(norms)))
    return folder, settings, np.array(norms)


def batch_rows(folder):
    return [row for row in rows(folder) if row["data"] == "batch"]


@pytest.mark.slow
def test_the_share_of_clipped_updates_is_reported(clipped):
    folder, settings, norms = clipped
    is_clipped = norms > settings.train.clip_norm
    assert len(norms) == STEPS and is_clipped.any() and not is_clipped.all()
    assert {int(row["step"]): float(row["clipped"]) for row in batch_rows(folder / "on")} == {
        5: is_clipped[:5].mean(),
        10: is_clipped[5:10].mean(),
        12: is_clipped[10:].mean(),
    }
    assert {row["clipped"] for row in rows(folder / "on") if row["data"] == "validation"} == {""}
    assert {row["clipped"] for row in rows(folder / "off")} == {""}


@pytest.fixture(scope="module")
def stopped(clipped, tmp_path_factory):
    """The same run, stopped between two reports; and its trainer."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_trainer.Trainer, "_told_to_stop", lambda self: self.step == 7)
        trainer = Trainer(clipped[1], str(folder))
        trainer.run()
    return folder, trainer


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
def test_a_run_stopped_between_reports_goes_on_counting(clipped, stopped, tmp_path, older):
    """So does a run of a program that did not count yet; cells of columns that its metrics.csv lacked are empty."""
    folder, settings, norms = clipped
    run = shutil.copytree(stopped[0], tmp_path / "run")
    assert len(batch_rows(run)) == 1 and len(batch_rows(folder / "on")) == 3
    if older:
        state = tf.Module()
        for name in ("model", "optimizer", "step", "best_bound", "best_step"):
            setattr(state, name, getattr(stopped[1].state, name))
        tf.train.Checkpoint(state=state).write(str(run / "checkpoints" / "step-7"))
        table = [[value for name, value in row.items() if name != "clipped"] for row in rows(run)]
        header = [name for name in rows(run)[0] if name != "clipped"]
        (run / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in [header, *table]))
    Trainer(settings, str(run)).run()
    found, expected = rows(run), rows(folder / "on")
    if older:
        is_clipped = norms > settings.train.clip_norm
        counted = {5: "", 10: repr(float(is_clipped[7:10].mean())), 12: repr(float(is_clipped[10:].mean()))}
        expected = [row | {"clipped": counted[int(row["step"])] if row["data"] == "batch" else ""} for row in expected]
    assert found == expected
    for name, value in newest(folder / "on").items():
        np.testing.assert_array_equal(newest(run)[name], value, err_msg=name)
