"""The bouncing-balls generator: physics, drawing, statistics, command line."""

import attrs
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_gen import bouncing_balls, physics, rendering
from data_gen.bouncing_balls import PRESETS, BouncingBalls, make_block
from data_gen.errors import UserError
from tests.data_helpers import interrupt, run_command, run_here

BOX = 15.0


def energy(motion, masses):
    return 0.5 * (masses * (motion.velocities.astype(np.float64) ** 2).sum(-1)).sum(-1)  # [T, S]


def start(n_sequences, n_balls, seed=0, box=BOX):
    rng = np.random.default_rng(seed)
    large = rng.integers(2, size=(n_sequences, n_balls)).astype(bool)
    radii, masses = np.where(large, 1.5, 1.2), np.where(large, 6.0, 1.0)
    return physics.place_balls(radii, box, rng), physics.draw_velocities(radii > 0, rng), radii, masses


def test_energy_is_conserved_through_collisions_and_walls():
    positions, velocities, radii, masses = start(50, 7)
    motion = physics.simulate(positions, velocities, radii, masses, BOX, 60)
    assert motion.hits.sum() > 100
    np.testing.assert_allclose(energy(motion, masses), np.broadcast_to(energy(motion, masses)[0], (60, 50)), rtol=1e-5)


def test_momentum_is_conserved_away_from_walls():
    positions, velocities, radii, masses = start(50, 6)
    far = 1e6  # the same start in the middle of a box so large that no ball reaches a wall
    motion = physics.simulate(positions + far / 2, velocities * 4, radii, masses, far, 20)
    momentum = (masses[..., None] * motion.velocities.astype(np.float64)).sum(2)
    assert motion.hits.any()
    np.testing.assert_allclose(momentum, np.broadcast_to(momentum[0], momentum.shape), atol=1e-5)


def test_elastic_exchange_with_masses_is_the_one_worked_out_by_hand():
    # Ball 0: mass 6, radius 1.5, at (5, 5), moving right at 1. Ball 1: mass 1, radius 1.2, at (8, 5), at rest.
    # After one sub-step of 0.5 they are 2.5 < 2.7 apart: v0' = (6 - 1)/7 = 5/7, v1' = 2·6/7 = 12/7.
    positions, velocities = np.array([[[5.0, 5.0], [8.0, 5.0]]]), np.array([[[1.0, 0.3], [0.0, -0.2]]])
    radii, masses = np.array([[1.5, 1.2]]), np.array([[6.0, 1.0]])
    positions[0, 1, 1] = 5.0 + 0.5 * 0.3 + 0.5 * 0.2  # level with ball 0 when they meet
    hits = physics.step(positions, velocities, radii, masses, BOX)
    assert hits.tolist() == [[True, True]]
    np.testing.assert_allclose(velocities[0], [[5 / 7, 0.3], [12 / 7, -0.2]], atol=1e-12)
    np.testing.assert_allclose(positions[0, 0], [5.5, 5.15], atol=1e-12)


def test_three_balls_exchange_in_the_order_of_the_pairs():
    # Equal masses in a row, all touching; (1, 0) comes before (2, 0) and (2, 1), so the speed is handed on twice.
    positions = np.array([[[5.0, 5.0], [7.0, 5.0], [9.0, 5.0]]])
    velocities = np.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    physics.step(positions, velocities, np.full((1, 3), 1.1), np.ones((1, 3)), BOX)
    np.testing.assert_allclose(velocities[0], [[0, 0], [0, 0], [1, 0]], atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "place, moving, expected", [(1.3, -0.5, 0.5), (13.7, 0.5, -0.5), (1.3, 0.5, 0.5), (0.9, 0.1, 0.1)]
)
def test_walls_turn_the_velocity_inwards_and_leave_the_position(axis, place, moving, expected):
    positions, velocities = np.full((1, 1, 2), 7.0), np.zeros((1, 1, 2))
    positions[0, 0, axis], velocities[0, 0, axis] = place, moving
    physics.step(positions, velocities, np.array([[1.2]]), np.ones((1, 1)), BOX)
    assert positions[0, 0, axis] == pytest.approx(place + 0.5 * moving)
    assert velocities[0, 0, axis] == expected
    assert velocities[0, 0, 1 - axis] == 0


def test_absent_balls_neither_move_nor_meet():
    positions = np.array([[[0.6, 0.6], [0.0, 0.0]]])
    velocities = np.array([[[0.1, 0.1], [0.0, 0.0]]])
    hits = physics.step(positions, velocities, np.array([[1.2, 0.0]]), np.array([[1.0, 0.0]]), BOX)
    assert not hits.any()
    assert not positions[0, 1].any() and not velocities[0, 1].any()


def test_start_is_inside_the_margin_without_overlap_and_with_the_total_speed():
    positions, velocities, radii, _ = start(300, 8)
    assert positions.min() >= 2 and positions.max() <= 13
    first, second = np.tril_indices(8, -1)
    gap = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    assert (gap >= radii[:, first] + radii[:, second]).all()
    np.testing.assert_allclose(np.linalg.norm(velocities, axis=(1, 2)), 0.5)
    # A ball too large for the margin must not start across a wall.
    large = np.full((100, 1), 4.0)
    placed = physics.place_balls(large, BOX, np.random.default_rng(0))
    assert placed.min() >= 4 and placed.max() <= 11


def brute_force_groups(positions, radii, box, size):
    image = np.zeros((size, size), int)
    for row in range(size):
        for column in range(size):
            nearest = np.inf
            for ball, ((x, y), radius) in enumerate(zip(positions * size / box, radii * size / box)):
                distance = np.hypot(column + 0.5 - x, row + 0.5 - y)
                if distance < radius and distance < nearest:
                    image[row, column], nearest = ball + 1, distance
    return image


@hypothesis_settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1, 16), st.floats(-1, 16), st.sampled_from([0.0, 1.2, 1.5, 3.0])), min_size=1, max_size=5
    )
)
def test_groups_equal_a_brute_force_computation(balls):
    # On a fine grid, off the ties that single precision may decide otherwise.
    balls = np.round(np.array(balls), 2) + [0.0013, 0.0017, 0.00019]
    got = rendering.render_groups(balls[None, :, :2], balls[None, :, 2], BOX, 24)[0]
    np.testing.assert_array_equal(got, brute_force_groups(balls[:, :2], balls[:, 2], BOX, 24))


def test_first_coordinate_is_the_column_and_the_nearest_centre_wins():
    groups = rendering.render_groups(np.array([[[3.0, 8.0], [4.0, 8.0]]]), np.array([[1.5, 1.5]]), 16.0, 64)[0]
    assert groups[32, 12] == 1 and groups[12, 32] == 0
    assert groups[32, 13] == 1 and groups[32, 14] == 2  # the border between the centres, at column 14
    assert groups[32, 21] == 2 and groups[32, 22] == 0  # 4·4 + 6 = 22: pixel 21 has its centre inside, 22 has not


def test_many_frames_at_once_equal_one_at_a_time():
    positions, _, radii, _ = start(37, 4)
    together = rendering.render_groups(positions, radii, BOX, 64)
    for s in (0, 15, 16, 36):
        np.testing.assert_array_equal(together[s], rendering.render_groups(positions[s], radii[s], BOX, 64))


@pytest.fixture(scope="module")
def block():
    return make_block(BouncingBalls(n_balls=(3, 6), n_frames=40), 40, np.random.default_rng(1))


def test_members_agree_with_each_other(block):
    groups, collisions = block["groups"][..., 0], block["collisions"][..., 0]
    np.testing.assert_array_equal(block["features"], block["groups"] > 0)
    assert not block["events"][0].any() and block["events"].any()
    np.testing.assert_array_equal(block["events"][..., 0, 0, 0], collisions.any((2, 3)))
    assert set(np.unique(block["n"])) == {3, 6}
    for s, n in enumerate(block["n"]):
        assert groups[:, s].max() == n
        assert (block["radii"][s, n:] == 0).all() and (block["radii"][s, :n] > 0).all()
        assert (block["masses"][s, :n] == np.where(block["radii"][s, :n] > 1.3, 6, 1)).all()
        assert not block["positions"][:, s, n:].any()


def test_collisions_mark_whole_balls_that_touched_since_the_frame_before(block):
    checked = 0
    for t, s in zip(*np.nonzero(block["events"][..., 0, 0, 0])):
        owners = block["groups"][t, s, ..., 0]
        marked = block["collisions"][t, s, ..., 0]
        hit = set(np.unique(owners[marked]))
        assert len(hit) >= 2 and 0 not in hit
        np.testing.assert_array_equal(marked, np.isin(owners, list(hit)))
        # Replayed by hand from the frame before: within either sub-step one of them was closer than the radii.
        x, v = (block[name][t - 1, s].astype(float) for name in ("positions", "velocities"))
        r = block["radii"][s]
        gaps = np.linalg.norm((x + 0.5 * v)[:, None] - (x + 0.5 * v)[None], axis=-1) - (r[:, None] + r)
        checked += any(gaps[i - 1, j - 1] < 0 for i in hit for j in hit if i != j)
    assert checked > 10


def test_curtain_hides_a_square_that_stays_where_it_is():
    settings = attrs.evolve(PRESETS["balls3curtain64"], n_frames=30)
    block = make_block(settings, 60, np.random.default_rng(0))
    radii = np.broadcast_to(block["radii"], (30, *block["radii"].shape))
    whole = rendering.render_groups(block["positions"], radii, settings.box, 64)
    hidden = (whole != block["groups"][..., 0]).any(0)  # [S, H, W]: where the curtain has hidden something
    assert set(np.unique(block["n"])) == {3}
    for s in range(60):
        rows, columns = np.flatnonzero(hidden[s].any(1)), np.flatnonzero(hidden[s].any(0))
        if rows.size:
            assert np.ptp(rows) < 28 and np.ptp(columns) < 28
            inside = block["groups"][:, s, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert not inside.any()
    assert hidden.any((1, 2)).sum() > 30
    assert not (block["collisions"] & (block["groups"] == 0)).any()


# Figures of an independent simulation (docs/spec/data.md), with four standard errors of this test's own sample and of
# theirs together, measured over sequences.
@pytest.mark.parametrize(
    "preset, n_sequences, theirs, expected",
    [
        ("balls4mass64", 1000, 2000, (0.103, 0.066, 14.3, 13.4)),
        ("balls678mass64", 400, 200, (0.180, 0.207, 46.3, 43.5)),
    ],
)
def test_statistics_are_those_of_an_independent_simulation(preset, n_sequences, theirs, expected):
    block = make_block(attrs.evolve(PRESETS[preset], n_frames=12), n_sequences, np.random.default_rng(4))
    collisions = block["collisions"][..., 0]
    values = (
        block["features"].mean((0, 2, 3, 4)),
        block["events"].mean((0, 2, 3, 4)),
        collisions.sum((2, 3)).mean(0),
        collisions[:, :, 7:57, 7:57].sum((2, 3)).mean(0),
    )
    for value, figure in zip(values, expected):
        assert value.mean() == pytest.approx(figure, abs=4 * value.std() * (1 / n_sequences + 1 / theirs) ** 0.5)


def small(**changes):
    return BouncingBalls(**{"n_frames": 12, "training": 60, "validation": 0, "test": 7} | changes)


def contents(path):
    with h5py.File(path) as file:
        return {f"{split}/{name}": data[()] for split in file for name, data in file[split].items()}


@pytest.mark.slow
def test_same_seed_same_data_whatever_the_number_of_threads(tmp_path, monkeypatch):
    settings = small(training=510)
    bouncing_balls.write(settings, tmp_path / "a.h5")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    bouncing_balls.write(settings, tmp_path / "b.h5", compression=4)
    bouncing_balls.write(attrs.evolve(settings, seed=1), tmp_path / "c.h5")
    a, b, c = (contents(tmp_path / f"{name}.h5") for name in "abc")
    assert list(a) == list(b) and {name.split("/")[0] for name in a} == {"training", "test"}
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert (a["training/positions"] != c["training/positions"]).any()
    # Every block stands in its place, and neither blocks nor splits repeat each other.
    for number, size in enumerate((250, 250, 10)):
        made = make_block(settings, size, np.random.default_rng([0, 0, number]))
        np.testing.assert_array_equal(a["training/groups"][:, number * 250 : number * 250 + size], made["groups"])
        np.testing.assert_array_equal(a["training/radii"][number * 250 : number * 250 + size], made["radii"])
    assert (a["training/positions"][0, 0] != a["training/positions"][0, 250]).any()
    assert (a["training/positions"][0, 0] != a["test/positions"][0, 0]).any()


def test_command_line_writes_the_layout(tmp_path):
    out = tmp_path / "new" / "balls.h5"
    result = run_command(
        "data_gen.bouncing_balls",
        "--preset",
        "balls678mass64",
        "--out",
        out,
        "--test",
        "3",
        "--n_frames",
        "5",
        "--training",
        "2",
    )
    assert result.returncode == 0, result.stderr
    written = contents(out)
    for name in ("features", "groups", "collisions"):
        assert written[f"test/{name}"].shape == (5, 3, 64, 64, 1)
    assert written["training/events"].shape == (5, 2, 1, 1, 1)
    assert written["test/positions"].shape == written["test/velocities"].shape == (5, 3, 8, 2)
    assert written["test/radii"].shape == (3, 8) and written["test/n"].min() >= 6
    assert "test: 3/3" in result.stderr  # progress as plain lines when not on a terminal


def test_help_explains_every_option_with_its_default():
    text = run_command("data_gen.bouncing_balls", "--help").stdout
    for field in attrs.fields(BouncingBalls):
        assert f"--{field.name}" in text
    assert text.count("default:") == len(attrs.fields(BouncingBalls)) + 2  # and --preset, --compression


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--preset", "balls9"], "balls9"),
        (["--n_frames", "0"], "--n_frames"),
        (["--n_balls", "0"], "--n_balls"),
        (["--radii", "1", "2", "3"], "--radii"),
        (["--masses", "-1", "1"], "--masses"),
        (["--box", "nan"], "--box"),
        (["--training", "0", "--validation", "0", "--test", "0"], "--training"),
        (["--n_balls", "2", "--radii", "5", "--masses", "1", "--box", "11"], "do not fit"),
        (["--compression", "11"], "--compression"),
        (["--curtain", "65"], "--curtain"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, arguments, named):
    result = run_here("data_gen.bouncing_balls", "--out", tmp_path / "x.h5", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and named in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("signal_name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_interrupted_run_leaves_the_old_file_and_nothing_else(tmp_path, signal_name, code):
    out = tmp_path / "balls.h5"
    bouncing_balls.write(attrs.evolve(PRESETS["balls4mass64"], n_frames=2, training=2, validation=1, test=1), out)
    old = out.read_bytes()
    result = interrupt(signal_name, tmp_path, "data_gen.bouncing_balls", "--out", out)
    assert result == code
    assert [path.name for path in tmp_path.iterdir()] == ["balls.h5"] and out.read_bytes() == old


def test_killed_run_leaves_nothing_under_the_final_name(tmp_path):
    assert interrupt("SIGKILL", tmp_path, "data_gen.bouncing_balls", "--out", tmp_path / "balls.h5") == -9
    assert not (tmp_path / "balls.h5").exists()


def test_full_disc_is_one_line_and_leaves_nothing(tmp_path):
    result = run_command("data_gen.bouncing_balls", "--out", tmp_path / "balls.h5", file_limit=300_000)
    assert result.returncode == 1
    assert [line for line in result.stderr.splitlines() if not line.startswith(("training:", "error:"))] == []
    assert "error: " in result.stderr and not list(tmp_path.iterdir())


def test_impossible_settings_are_refused_as_objects_too():
    with pytest.raises(UserError, match="--n_frames 0"):
        BouncingBalls(n_frames=0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        BouncingBalls().seed = 1
