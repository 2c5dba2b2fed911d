"""The process that tries damaged files: how every format is damaged, and how its readers may respond.

A case is a format and a number, which seeds how a small real file is damaged. The last case that was tried is left in
FOLDER/case:

    python -m tests.fuzz FOLDER CASES FORMAT...

Readers run here, in a separate process: what they import may crash, hang or use up memory, which `test_fuzz`
watches from outside. Modules are imported where they are used: TensorFlow is not for every process.
"""

import json
import math
import pathlib
import random
import re
import shutil
import sys
import traceback

from data_gen.errors import LONGEST_MESSAGE, UserError
from tests.fuzz.formats import FORMATS


def complaint(read, folder):
    """Reads a case: "" if what it says or returns is right, otherwise what is wrong. And whether it was refused."""
    try:
        read(folder)
        return "", False
    except UserError as error:
        message = str(error)
    except OSError as error:  # as in `console.run_cli`
        if not error.filename:
            return traceback.format_exc(limit=-6), False
        message = f"{error.filename}: {error.strerror}"
    except Exception as error:
        # An error in a tf.data generator arrives as TensorFlow's own exception, see `console.run_cli`.
        quoted = re.search(r"\bUserError: (.*)", str(error))
        if not (quoted and type(error).__module__.startswith("tensorflow")):
            return traceback.format_exc(limit=-6), False
        message = quoted.group(1)
    if not message or "\n" in message or len(message) > LONGEST_MESSAGE or not message.isprintable():
        return f"not one short line: {message[:1000]!r}", True
    if str(folder) not in message and not any(path.name in message for path in folder.rglob("*")):
        return f"does not name the file: {message}", True
    return "", True


def main():
    """Tries cases 0..n-1 of each format and notes them in FOLDER/cases.jsonl; those that are there already are left."""
    work, n, *names = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:]
    log, case = work / "cases.jsonl", work / "case"
    begun = (
        {(row["format"], row["case"]) for row in map(json.loads, log.read_text().splitlines())}
        if log.exists()
        else set()
    )
    with open(log, "a", buffering=1) as file:
        for name in names:
            format_, whole = FORMATS[name], work / f"{name}_whole"
            if not whole.exists():
                whole.mkdir()
                format_.make(whole)
            for number in range(math.ceil(n * format_.share)):
                if (name, number) in begun:
                    continue
                shutil.rmtree(case, ignore_errors=True)
                shutil.copytree(whole, case)
                said = format_.damage(random.Random(f"{name} {number}"), case)
                print(json.dumps({"format": name, "case": number, "damage": said}), file=file)
                problem, refused = complaint(format_.read, case)
                memory = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
                print(
                    json.dumps(
                        {"format": name, "case": number, "refused": refused, "problem": problem, "memory_mb": memory}
                    ),
                    file=file,
                )


if __name__ == "__main__":
    main()
