"""Fuzz the readers of untrusted files with Atheris, which keeps the inputs that reach new lines of code:

    pip install atheris && python benchmarks/fuzz.py --seconds 60
    python benchmarks/fuzz.py --only tensors --seconds 600 --keep corpus

A row for each reader: how many inputs it was given, how many of them it refused with a line for a person, and what else
it raised, each kind once with the bytes that brought it about. Exits with 1 if anything did. The readers and their good
files are those of `tests/fuzzing.py`, where a finding becomes a test.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
TARGETS = ("json_file", "manifest", "run_folder", "report", "report_page", "table", "budget", "experiment")
TARGETS += ("npz_archive", "npz_dataset", "npy_array", "hdf5", "tensors", "walker")


@dataclass(frozen=True)
class Options:
    """What to fuzz, for how long."""

    seconds: float = 60.0
    """For each reader."""
    only: tuple[str, ...] = ()
    """Readers; by default all."""
    keep: str | None = None
    """A folder for the inputs that reach new lines, from which the next time begins."""
    memory: int = 4096
    """MB that a reader may take; more counts as a finding, and ends it."""
    seed: int = 1
    """Of the changes."""


def fuzz(name: str, options: Options) -> None:
    """Fuzz one reader in this process, which ends with it; the last line that it prints is what it found, as JSON."""
    import atheris  # pyright: ignore[reportMissingImports]

    included = ["floq", "numpy.lib", "zipfile", "tomllib", "json", "csv", "h5py"]
    with atheris.instrument_imports(include=included):  # pyright: ignore
        import fuzzing  # pyright: ignore[reportMissingImports]
    target = fuzzing.BY_NAME[name]
    folder = Path(options.keep or fuzzing.folder() / "corpus") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good").write_bytes(fuzzing.SEEDS[target]())
    dictionary = fuzzing.folder() / "words"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzzing.words()))
    counts, found, started = {"tried": 0, "refused": 0}, {}, time.monotonic()

    def one_input(content: bytes) -> None:
        counts["tried"] += 1
        try:
            counts["refused"] += fuzzing.refused(target, content)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
            found.setdefault(kind, repr(content[:300]))
        if time.monotonic() - started > options.seconds:
            print(json.dumps({"name": name, **counts, "seconds": time.monotonic() - started, "found": found}))
            sys.stdout.flush()
            os._exit(0)

    arguments = [f"-dict={dictionary}", f"-rss_limit_mb={options.memory}", f"-malloc_limit_mb={options.memory}"]
    arguments += ["-timeout=20", f"-seed={options.seed}", "-max_len=20000", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *arguments, str(folder)], one_input)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main(options: Options) -> None:
    """Fuzz one reader after another, each in a process of its own."""
    failed = False
    print(f"{'reader':12} {'inputs':>9} {'refused':>9} {'per second':>10}  other exceptions")
    for name in options.only or TARGETS:
        flags = [
            f"--{key}={value}" for key, value in vars(options).items() if key not in ("only",) and value is not None
        ]
        command = [sys.executable, __file__, f"--child={name}", *flags]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds + 300)
        lines = ended.stdout.strip().splitlines()
        if ended.returncode or not lines or not lines[-1].startswith("{"):
            failed = True
            print(f"{name:12} ended with code {ended.returncode}: {' '.join(ended.stderr.split())[-400:]}")
            continue
        result = json.loads(lines[-1])
        rate = result["tried"] / result["seconds"]
        print(
            f"{name:12} {result['tried']:9,} {result['refused']:9,} {rate:10,.0f}  {len(result['found'])}", flush=True
        )
        for kind, content in result["found"].items():
            failed = True
            print(f"    {kind}: {content}")
    sys.exit(int(failed))


if __name__ == "__main__":
    child = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith("--child=")), None)
    given = tyro.cli(Options, args=[word for word in sys.argv[1:] if not word.startswith("--child=")])
    if child:
        fuzz(child, given)
    else:
        main(given)
