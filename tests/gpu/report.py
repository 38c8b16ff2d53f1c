"""Writes what ran on a GPU into benches/results/gpu.md:

    python3 tests/gpu/report.py [OUT] [--compiler DIR] [--to DIR]

It takes the results of `tests/gpu/run` from OUT/results, and the compiler's report from the *.ptxas
files of DIR, which is OUT_DIR of the kernels' crate or OUT/ptxas. Either may be left out. What was
taken once stays in gpu.jsonl beside the table, until the same row is measured anew: each row says
when, where and at which commit that was.

`tests/gpu/run` has it write results too: --record PART LOG STATUS SECONDS OUT.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")
TESTS = re.compile(r"^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
FAILED = re.compile(r"^test (\S+) \.\.\. FAILED", re.MULTILINE)
CHECKED = re.compile(r"^== (\w+) (\S+): (passed|failed|not finished)", re.MULTILINE)

PARTS = {
    "kernels": "Tests of the kernels",
    "worker": "Tests of the worker",
    "parity": "Tests against Transformers",
    "memcheck": "compute-sanitizer",
    "peaks": "What the device reaches",
    "bench-kernels": "Kernels",
    "bench-model": "Models",
    "bench-server": "Server",
}


def machine(out):
    """The GPU, as the worker names it."""
    probe = [out / "bin" / "millstream-cuda", "probe"]
    try:
        said = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=True)
        return said.stdout.strip().split(", compute")[0] or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def record(part, log, status, seconds, out):
    """Writes OUT/results/PART.json of a part that is tests."""
    text = Path(log).read_text(errors="replace")
    counts = [sum(column) for column in zip(*[map(int, found) for found in TESTS.findall(text)])]
    checks = CHECKED.findall(text)
    if checks:
        counts = [sum(check[2] == kind for check in checks) for kind in ("passed", "failed")] + [0]
    passed, failed, ignored = counts or (0, 0, 0)
    result = {
        "part": part,
        "ok": status == "0" and passed > 0,
        "passed": passed,
        "failed": failed,
        "ignored": ignored,
        "not_finished": [" ".join(check[:2]) for check in checks if check[2] == "not finished"],
        "failures": FAILED.findall(text) + [" ".join(c[:2]) for c in checks if c[2] == "failed"],
        "seconds": int(seconds),
    }
    path = Path(out) / "results" / f"{part}.json"
    path.write_text(json.dumps({**result, **circumstances(Path(out))}, indent=1) + "\n")
    print(f"{part}: {passed} passed, {failed} failed, status {status}; see {path}")


def circumstances(out):
    commit = out / "commit"
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "gpu": machine(out),
        "commit": commit.read_text().strip() if commit.is_file() else "unknown",
    }


def measured(path):
    """The rows of a bench's lines, the first of which says on what they were measured."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    where = {"when": when, "gpu": "unknown", "commit": "unknown"}
    for line in path.read_text().splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        if "part" not in row:
            where |= {key: row[key] for key in ("gpu", "commit") if row.get(key)}
            if row.get("small"):
                print(f"{path}: small sizes measure nothing and are left out", file=sys.stderr)
                return
            continue
        part = "peaks" if row["part"] == "peaks" else path.stem
        yield {**row, **where, "part": part}


def results(out):
    for path in sorted((out / "results").glob("*.json*")):
        if path.suffix == ".jsonl":
            yield from measured(path)
        else:
            yield json.loads(path.read_text())


def compiled(directory):
    """What the compiler says of each kernel, for each architecture."""
    for path in sorted(directory.rglob("*.ptxas")):
        row = None
        for line in path.read_text().splitlines():
            if found := ENTRY.search(line):
                row = {"part": "compiler", "name": found[1], "shape": found[2], "file": path.stem}
            elif row and (found := SPILLS.search(line)):
                row |= {"stack": int(found[1]), "spilled": int(found[2]) + int(found[3])}
            elif row and (found := USED.search(line)):
                row |= {"registers": int(found[1]), "shared": int(found[2] or 0)}
                yield row
                row = None


def table(columns, rows):
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


def number(value, digits=1):
    return "-" if value is None else f"{value:.{digits}f}"


def provenance(row):
    return [row.get("when", "-"), row.get("gpu", "-"), row.get("commit", "-")]


PROVENANCE = ["when", "GPU", "commit"]


def tests_table(rows):
    columns = ["passed", "failed", "not finished", "seconds", *PROVENANCE]
    for row in rows:
        yield from table(columns, [
            [row["passed"], row["failed"], len(row["not_finished"]), row["seconds"],
             *provenance(row)]
        ])
        for failure in row["failures"]:
            yield f"\nFailed: `{failure}`."
        if not row["ok"] and not row["failures"]:
            yield "\nIt did not pass."


def bench_table(rows):
    columns = ["what", "shape", "us", "GB/s", "TFLOP/s", "of the roofline", *PROVENANCE]

    def cells(row):
        fraction = row["fraction"]
        share = "-" if fraction is None else f"{100 * fraction:.0f} % ({row['of']})"
        rates = [number(row["gb_per_s"]), number(row["tflop_per_s"])]
        return [row["name"], row["shape"], number(row["us"]), *rates, share, *provenance(row)]

    return table(columns, map(cells, rows))


def server_table(rows):
    columns = ["model", "load", "output tokens/s", "all tokens/s", "first token p50, p99, ms",
               "between tokens p50, p99, ms", "errors", *PROVENANCE]

    def cells(row):
        report = row["report"]
        rates = [number(report[f"{what}_tokens_per_s"]) for what in ("output", "total")]
        times = [", ".join(number(report[what][at]) for at in ("p50", "p99"))
                 for what in ("ttft_ms", "inter_token_ms")]
        return [row["name"], row["shape"], *rates, *times, report["num_errors"], *provenance(row)]

    return table(columns, map(cells, rows))


def compiler_table(rows):
    kernels = {}
    for row in rows:
        kernels.setdefault((row["file"], row["name"]), {})[row["shape"]] = row
    columns = ["kernel", "registers, sm_80", "sm_90", "spilled bytes, sm_80", "sm_90",
               "static shared bytes"]

    def cells(item):
        (_, name), per = item
        of = lambda key: [per.get(arch, {}).get(key, "-") for arch in ("sm_80", "sm_90")]
        shared = " and ".join(dict.fromkeys(map(str, of("shared"))))
        return [f"`{name}`", *of("registers"), *of("spilled"), shared]

    return table(columns, map(cells, sorted(kernels.items())))


def text(rows):
    by_part = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(row)
    yield "# On a GPU\n"
    if not any(part in by_part for part in PARTS):
        yield "**Nothing has run on a GPU yet.** No test, and no measurement.\n"
        yield "`tests/gpu/run` does both on a machine with one, and"
        yield "`python3 tests/gpu/report.py OUT` writes here what came of it."
    else:
        yield "Rows say when, on which GPU and at which commit they were measured."
        yield "What is not here has not run on a GPU."
    for part, title in PARTS.items():
        if part in by_part:
            kind = {"bench-server": server_table}.get(
                part, bench_table if part == "peaks" or part.startswith("bench") else tests_table
            )
            yield f"\n## {title}\n"
            yield from kind(by_part[part])
    if compiled_rows := by_part.get("compiler"):
        when = compiled_rows[0].get("when", "-"), compiled_rows[0].get("commit", "-")
        yield "\n## What the compiler says\n"
        yield f"Of CUDA's compiler on {when[0]}, at {when[1]}; this needs no GPU."
        yield "Dynamic shared memory comes on top, as each launch asks for it.\n"
        yield from compiler_table(compiled_rows)


def key(row):
    return row["part"], row.get("name"), row.get("shape")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--compiler", type=Path, metavar="DIR")
    parser.add_argument("--to", type=Path, metavar="DIR", default=ROOT / "benches" / "results")
    parser.add_argument("--record", nargs=5, metavar=("PART", "LOG", "STATUS", "SECONDS", "OUT"))
    arguments = parser.parse_args()
    if arguments.record:
        return record(*arguments.record)
    kept = arguments.to / "gpu.jsonl"
    lines = kept.read_text().splitlines() if kept.is_file() else []
    rows = {key(row): row for row in map(json.loads, lines)}
    if arguments.out:
        new = list(results(arguments.out))
        if any("emulator" in row["gpu"].lower() for row in new):
            sys.exit(f"{arguments.out}/results has results of the emulator, which is no GPU")
        rows |= {key(row): row for row in new}
    if arguments.compiler:
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        stamp = {"when": time.strftime("%Y-%m-%d"), "commit": commit or "unknown"}
        new = {key(row): {**row, **stamp} for row in compiled(arguments.compiler)}
        if not new:
            sys.exit(f"{arguments.compiler} has no compiler's report")
        # Kernels that are gone are not kept.
        rows = {place: row for place, row in rows.items() if row["part"] != "compiler"} | new
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    (arguments.to / "gpu.md").write_text("\n".join(text(rows.values())) + "\n")
    print(f"{arguments.to / 'gpu.md'}: {len(rows)} rows")


if __name__ == "__main__":
    main()
