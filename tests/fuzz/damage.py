"""Damage to bytes and to JSON, whatever the format."""

import json

_NUMBERS = [0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, -(2**63)]


def _span(rng, size):
    """A range within `size` bytes: short ones are likelier, and so are places near the start, where headers are."""
    start = rng.randrange(min(size, rng.choice([512, 4096, size])) or 1)
    return start, min(start + rng.choice([1, 2, 4, 8, 64, 1024]), size)


def number(rng, size=None):
    content = rng.choice(_NUMBERS).to_bytes(16, rng.choice(["little", "big"]), signed=True)
    return content[: size or rng.choice([1, 2, 4, 8])]


def _swap(rng, b, i, j):
    k = rng.randrange(j, len(b) + 1)
    return b[:i] + b[k : k + j - i] + b[j:k] + b[i:j] + b[k + j - i :]


BYTE_DAMAGE = {
    "flip": lambda rng, b, i, j: b[:i] + bytes([b[i] ^ 1 << rng.randrange(8)]) + b[i + 1 :],
    "overwrite": lambda rng, b, i, j: b[:i] + rng.randbytes(j - i) + b[j:],
    "number": lambda rng, b, i, j: b[:i] + (n := number(rng)) + b[i + len(n) :],
    "insert": lambda rng, b, i, j: b[:i] + rng.randbytes(j - i) + b[i:],
    "delete": lambda rng, b, i, j: b[:i] + b[j:],
    "truncate": lambda rng, b, i, j: b[: rng.randrange(len(b))],
    "zeros": lambda rng, b, i, j: b[:i] + bytes(j - i) + b[j:],
    "ones": lambda rng, b, i, j: b[:i] + b"\xff" * (j - i) + b[j:],
    "copy": lambda rng, b, i, j: b[: (k := rng.randrange(len(b)))] + b[i:j] + b[k + j - i :],
    "swap": _swap,
    "repeat": lambda rng, b, i, j: b[:j] + b[i:j] * rng.choice([1, 100]) + b[j:],
}


def damage(rng, content):
    """Damages bytes in one to four ways; says how."""
    said = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        if content:
            kind = rng.choice(list(BYTE_DAMAGE))
            i, j = _span(rng, len(content))
            content = BYTE_DAMAGE[kind](rng, content, i, j)
            said.append(f"{kind} {i}:{j}")
    return content, ", ".join(said)


def damage_file(rng, path):
    """Damages one file, which may be one of a folder."""
    path = rng.choice(sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else path
    content, said = damage(rng, path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {said}"


HOSTILE = [
    "null",
    "true",
    "[]",
    "{}",
    "0",
    "-1",
    "0.5",
    "-0.0",
    "NaN",
    "Infinity",
    "1e400",
    "-1e400",
    "1e308",
    "1e-320",
    "2147483648",
    "9223372036854775808",
    "9" * 400,
    "9" * 5000,
    '""',
    '"x"',
    '"-2,nan"',
    '"\\ud800"',
    '"\\u0663"',
    '"\\u001b[31m\\nred"',
    f'"{"x" * 3_000_000}"',
    "[[[1]]]",
    '{"a": {"b": [null]}}',
    "[" * 100_000 + "]" * 100_000,
    "[1, [2], 3]",
    "[4096, 4096, 16]",
    '["prior", 1]',
    "256",
    "4096",
    "1000000",
    "[" + "0," * 100_000 + "0]",
    '{"a":' * 5_000 + "1" + "}" * 5_000,
]


def damage_json(rng, path):
    """Replaces, removes or adds values anywhere in a JSON file."""
    content, said, texts = json.loads(path.read_text()), [], []
    for _ in range(rng.choice([1, 1, 2, 3])):
        place, names = content, []
        while isinstance(place, (dict, list)) and place:
            name = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
            names.append(name)
            if not isinstance(place[name], (dict, list)) or not place[name] or rng.random() < 0.4:
                break
            place = place[name]
        if not names:
            break
        kind = rng.choice(["replace"] * 5 + ["remove", "add"])
        if kind == "remove":
            del place[names[-1]]
        else:
            texts.append(rng.choice(HOSTILE))
            mark = f"@{len(texts) - 1}@"
            if isinstance(place, dict) and kind == "add":
                place[rng.choice(["", "unknown", "x" * 10_000, "\ud800"])] = mark
            else:
                place[names[-1]] = mark
            kind += f" {texts[-1][:40]}"
        said.append(f"{kind} at {names}"[:200])
    text = json.dumps(content)
    for number, value in enumerate(texts):
        text = text.replace(f'"@{number}@"', value)
    if rng.random() < 0.03:
        text = rng.choice(HOSTILE)
        said = [f"nothing but {text[:40]}"]
    path.write_text(text)
    return f"{path.name}: {', '.join(said)}"
