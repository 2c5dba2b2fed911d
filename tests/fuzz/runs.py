"""The text files of run folders: flags and tables of metrics."""

import json

from tests.fuzz.damage import damage_file, damage_json


def make_flags(folder):
    from sqair.config import PRESETS, to_flags

    (folder / "flags.json").write_text(json.dumps(to_flags(PRESETS["rsqair_in"])))


def damage_flags(rng, folder):
    return rng.choice([damage_json, damage_json, damage_json, damage_file])(rng, folder / "flags.json")


def read_flags(folder):
    from sqair.config import Config, from_flags, load_flags, to_flags

    config, unknown = load_flags(folder / "flags.json")
    assert isinstance(config, Config) and unknown == sorted(unknown)
    assert from_flags(json.loads(json.dumps(to_flags(config)))) == (config, [])


def make_csv(folder):
    from sqair.runs.folder import MetricsFile

    for name, columns in (
        ("metrics", ["step", "data", "iwae_per_frame", "kl"]),
        ("resources", ["step", "data", "seconds_per_step"]),
    ):
        file = MetricsFile(folder / f"{name}.csv", columns, 0)
        for step in range(10, 400, 10):
            for data in ("batch", "validation", "machine"):
                file.append([step, data, *(step * 0.1 for _ in columns[2:])])


def damage_csv(rng, folder):
    path = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.5:
        return damage_file(rng, path)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = rng.choice(rows)
    cell = rng.choice(
        [
            "",
            "nan",
            "inf",
            "1e400",
            "9" * 30,
            "9" * 5000,
            "x" * 200_000,
            '"',
            "\0",
            "-1",
            "\u00b2",
            "\u0663",
            "1_0",
            "\n",
            "\r",
            "," * 1000,
            "True",
            "\ud800",
        ]
    )
    column = rng.randrange(len(row))
    row[column] = cell
    path.write_bytes("\r\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"))
    return f"{path.name}: cell {cell[:20]!r} in column {column}"


def read_csv(folder):
    from sqair.runs.folder import MetricsFile

    columns = ["step", "data", "iwae_per_frame", "kl"]
    MetricsFile(folder / "metrics.csv", columns, 200)
    kept = (folder / "metrics.csv").read_text()
    MetricsFile(folder / "metrics.csv", columns, 200)
    assert (folder / "metrics.csv").read_text() == kept and kept.startswith("step,data")
    MetricsFile(folder / "resources.csv", ["step", "data", "seconds_per_step"], 10**6)


def read_curves(folder):
    from eval import figures

    for data, names in (("validation", ("iwae_per_frame", "kl")), ("machine", ("seconds_per_step",))):
        for curve in figures.read_curves(folder, data, names).values():
            assert curve.steps.dtype.kind == "i" and curve.values.dtype == float
            assert curve.steps.shape == curve.values.shape and (curve.steps >= 0).all()
