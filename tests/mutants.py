"""Mutants of the core, and whether the tests that mirror their file notice them.

    python tests/mutants.py --n 300 --workers 2 --json mutants.json

cosmic-ray lists the possible changes of each file. A seed chooses a sample of them. Each mutant of
the sample is tried in a copy of the repository, by the mirrored test file alone, up to the first
failure. A mutant in the file of results is not tried again, so a run can be interrupted. The script
needs the extra `mutants`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import numpy as np
from cosmic_ray.work_db import WorkDB, use_db

ROOT = Path(__file__).parent.parent
LIKELIHOODS = ["_base", "_reals", "_unit_interval", "_levels", "_counts", "_categories", "_columns"]
MODEL, LOOP = ["vae", "state", "stack"], ["adam", "graphs", "loop", "member", "noise"]
TESTS = {
    **{name: f"test_{name}" for name in ("priors", "posteriors", "networks")},
    "_model/objective": "test_objective",
    **dict.fromkeys([f"_model/{name}" for name in MODEL], "test_model"),
    **dict.fromkeys([f"_model/{name}" for name in LOOP], "test_training"),
    **dict.fromkeys([f"likelihoods/{name}" for name in LIKELIHOODS], "test_likelihoods"),
}
# Operators of unions in annotations, which change no result.
ANNOTATIONS = "ReplaceBinaryOperator_BitOr"
TIMEOUT = 600  # seconds, of a mutant


def list_mutants():
    """All mutants as (file, operator, occurrence)."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in TESTS:
            own = name.replace("/", "_")
            config, session = Path(folder, f"{own}.toml"), Path(folder, f"{own}.sqlite")
            config.write_text(
                f'[cosmic-ray]\nmodule-path = "skvae/{name}.py"\ntimeout = {TIMEOUT}.0\n'
                'excluded-modules = []\ntest-command = "true"\n'
                '[cosmic-ray.distributor]\nname = "local"\n'
            )
            subprocess.run(["cosmic-ray", "init", config, session], cwd=ROOT, check=True)
            with use_db(session, WorkDB.Mode.open) as database:
                for item in database.work_items:
                    (mutation,) = item.mutations
                    if ANNOTATIONS not in mutation.operator_name:
                        found.append([name, mutation.operator_name, mutation.occurrence])
    return sorted(found)


def try_mutant(copy, name, operator, occurrence):
    """Whether the mirrored tests notice a mutant, and how it differs."""
    path = f"skvae/{name}.py"
    subprocess.run(["cosmic-ray", "apply", path, operator, str(occurrence)], cwd=copy, check=True)
    original, mutant = (ROOT / path).read_text(), (copy / path).read_text()
    lines = zip(original.splitlines(), mutant.splitlines(), strict=False)
    changed = [[i, a.strip(), b.strip()] for i, (a, b) in enumerate(lines, 1) if a != b]
    tests = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{TESTS[name]}.py"]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            tests, cwd=copy, env=environment, capture_output=True, timeout=TIMEOUT, check=False
        )
        outcome = "survived" if run.returncode == 0 else "killed"
    except subprocess.TimeoutExpired:
        outcome = "killed"
    finally:
        (copy / path).write_text(original)
    return {"mutant": [name, operator, occurrence], "outcome": outcome, "changed": changed[:2]}


def print_results(results):
    for name in TESTS:
        own = [r["outcome"] for r in results if r["mutant"][0] == name]
        if own:
            print(f"| `{name}.py` | {own.count('killed')} of {len(own)} |")
    killed = sum(r["outcome"] == "killed" for r in results)
    print(f"| together | {killed} of {len(results)} ({killed / max(1, len(results)):.0%}) |")
    for result in results:
        if result["outcome"] == "survived":
            print(result["mutant"], *result["changed"], sep="\n    ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else []
    mutants = list_mutants()
    chosen = np.random.default_rng(args.seed).permutation(len(mutants))[: args.n]
    known = [result["mutant"] for result in results]
    waiting = [mutants[i] for i in chosen if mutants[i] not in known]
    print(f"{len(mutants)} mutants, {len(chosen)} chosen, {len(waiting)} to try", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as threads:
        copies = Queue()
        for i in range(args.workers):
            ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__")
            copies.put(Path(shutil.copytree(ROOT, Path(folder, str(i)), ignore=ignored)))

        def work(mutant):
            copy = copies.get()
            try:
                return try_mutant(copy, *mutant)
            finally:
                copies.put(copy)

        for result in threads.map(work, waiting):
            results.append(result)
            args.json.write_text(json.dumps(results, indent=1))
            print(result, file=sys.stderr)
    print_results(results)


if __name__ == "__main__":
    main()
