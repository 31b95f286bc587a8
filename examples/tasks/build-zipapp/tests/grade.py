"""Run the built program on text drawn anew each time, from an empty directory."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = os.environ.get("RAMIFY_ROOT", "")
PROGRAM = Path("wordfreq.pyz").absolute()


def output(folder: str, text: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: TID251  (a script of its own, without an event loop)
        [sys.executable, "-I", "program.pyz", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=20,
    )
    return done.stdout if done.returncode == 0 else f"exit code {done.returncode}"


def works() -> bool:
    draw = random.SystemRandom()
    counts = {word: draw.randrange(1, 6) for word in ("amber", "birch", "cedar", "dune", "elm")}
    text = [form for word, n in counts.items() for form in draw.choices((word, word.upper()), k=n)]
    draw.shuffle(text)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    expected = "".join(f"{n} {word}\n" for word, n in ordered)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(PROGRAM, f"{folder}/program.pyz")
        return (
            output(folder, ", ".join(text) + "... 42\n") == expected
            and output(folder, "") == ""
            and output(folder, "", "--version") == "2.4.1\n"
        )


def main() -> None:
    there = PROGRAM.is_file() and not PROGRAM.is_symlink()
    try:
        reward = int(there and works())
    except subprocess.TimeoutExpired:
        reward = 0
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text(f"{reward}\n")
    print("there" if there else "missing", reward)


main()
