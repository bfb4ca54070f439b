"""Run the benchmark: ours and the peers on the same files, one fresh process per measurement, ratios in a report.

    python -m benchmarks                                  # every case on S, over TRL as shipped and TRL-compact
    python -m benchmarks --methods sft,dpo --workloads S,M --rounds 3
    python -m benchmarks --ablate                         # ours with each idea turned off, one at a time
    python -m benchmarks --growth                         # cost against length, vocabulary, batch, rank, replies

Written to benchmarks/results/: <name>.md, <name>.csv, and <name>.jsonl with every record (`--report FILE.jsonl` writes
the first two again). Peers that are not installed are skipped with a line that says so.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import CASES, DEFAULT, Case
from benchmarks.compare import Record
from benchmarks.sweeps import SWEEPS
from benchmarks.switches import SWITCHES
from benchmarks.workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
LONGEST = 3600
"""Seconds after which one measurement is given up."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, report, and return 1 where something failed or did not do the same work."""
    arguments = parse(words)
    if arguments.report:
        head, *records = report.read(arguments.report)
        return tell(report.write(records, arguments.report, head=head), records, arguments.report)
    file = arguments.out / f"{arguments.name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    head = make_head(arguments, words)
    file.write_text(json.dumps(head) + "\n")
    records = []
    for record in measurements(arguments):
        records.append(record)
        with file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        show(record)
    return tell(report.write(records, file, head=head), records, file)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; lists checked, files named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    many: dict[str, Any] = {"type": lambda text: text.replace(",", " ").split()}
    parser.add_argument("--methods", **many, default=DEFAULT, help=f"of {', '.join(CASES)}")
    parser.add_argument("--workloads", **many, default=["S"], help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", **many, default=["trl", "compact"], help="of trl, compact; empty for ours alone")
    parser.add_argument("--switches", **many, default=list(SWITCHES), help="with --ablate")
    parser.add_argument("--sweeps", **many, default=[sweep.field for sweep in SWEEPS], help="with --growth")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="counted steps; the workload's own where not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--trl-ppo", type=Path, default=Path(sys.prefix) / "trl-1.12", help="folder of TRL 1.12.0")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", help="of the files; the date and what was run where not given")
    parser.add_argument("--report", type=Path, help="write the report of these records again")
    arguments = parser.parse_args(words)
    known = {"methods": CASES, "workloads": WORKLOADS, "switches": SWITCHES, "peers": ("trl", "compact")}
    for name, allowed in {**known, "sweeps": [sweep.field for sweep in SWEEPS]}.items():
        if unknown := [word for word in getattr(arguments, name) if word not in allowed]:
            parser.error(f"--{name} {','.join(unknown)}: allowed are {', '.join(allowed)}")
    part = "ablate" if arguments.ablate else "growth" if arguments.growth else "-".join(arguments.workloads)
    arguments.name = arguments.name or f"{datetime.date.today()}-{part}"
    return arguments


def make_head(arguments: argparse.Namespace, words: Sequence[str] | None) -> dict[str, Any]:
    """The first line of the records: what is the same for all of them."""
    typed = shlex.join(sys.argv[1:] if words is None else words)
    facts = {"date": str(datetime.date.today()), "command": f"python -m benchmarks {typed}".strip()}
    gflops = worker("floors", [], arguments).get("gflops") if arguments.device == "cpu" else None
    load = os.getloadavg()[0]
    skipped = list(dict.fromkeys(filter(None, (why_not(CASES[name], arguments) for name in arguments.methods))))
    if arguments.ablate:
        gone = [name for name in arguments.switches if not SWITCHES[name].is_there()]
        skipped = [f"{name} has no switch in this version" for name in gone]
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    return {**facts, "machine": report.machine(), "rounds": arguments.rounds, "load": load} | {
        "gflops": gflops,
        "skipped": skipped,
    }


# -- what is measured ------------------------------------------------------------------------------------------------
def measurements(arguments: argparse.Namespace) -> Iterator[Record]:
    """One record after the other."""
    if arguments.ablate:
        yield from ablations(arguments)
    elif arguments.growth:
        yield from growth(arguments)
    else:
        yield from table(arguments)


def table(arguments: argparse.Namespace) -> Iterator[Record]:
    """Ours and its peers, next to each other; who goes first changes by the round."""
    for of in arguments.workloads:
        for turn in range(arguments.rounds):
            done: set[tuple[str, ...]] = set()  # two cases may have one peer
            for name in arguments.methods:
                jobs = [ours(name), *peers(CASES[name], arguments)]
                for job in reversed(jobs) if turn % 2 else jobs:
                    if job not in done:
                        done.add(job)
                        yield {"kind": "table", "round": turn, **run(job, of, arguments)}


def ablations(arguments: argparse.Namespace) -> Iterator[Record]:
    """Ours as it is, then with each idea off."""
    switches = [SWITCHES[name] for name in arguments.switches if SWITCHES[name].is_there()]
    for of in arguments.workloads:
        for turn in range(arguments.rounds):
            for name in arguments.methods:
                off = [switch.name for switch in switches if name in switch.cases]
                for job in [ours(name), *(ours(name, "--off", switch) for switch in off)] if off else []:
                    yield {"kind": "ablate", "round": turn, **run(job, of, arguments)}


def growth(arguments: argparse.Namespace) -> Iterator[Record]:
    """One axis at a time."""
    for sweep in SWEEPS:
        if sweep.field not in arguments.sweeps:
            continue
        for value in sweep.values:
            changes = ("--set", f"{sweep.field}={value}", *sweep.also)
            jobs = [ours(sweep.case), *(peers(CASES[sweep.case], arguments) if sweep.has_peer else [])]
            for turn in range(arguments.rounds):
                for job in jobs:
                    record = run((*job, *changes), "G", arguments)
                    yield {"kind": sweep.field, "value": value, "round": turn, **record}


def ours(name: str, *more: str) -> tuple[str, ...]:
    """(module, case, further arguments)."""
    return ("ours", name, *more)


def peers(case: Case, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """The peers of a case that are there and were asked for."""
    if case.peer is None or why_not(case, arguments) is not None or not arguments.peers:
        return []
    job = (f"peers.{case.peer}", case.peer_case)
    if case.peer == "trl_ppo":
        job = (*job, "--trl-ppo", str(arguments.trl_ppo))
    wanted = [job] if "trl" in arguments.peers else []
    return [*wanted, (*job, "--compact")] if case.has_compact and "compact" in arguments.peers else wanted


def why_not(case: Case, arguments: argparse.Namespace) -> str | None:
    """Why a case has no peer here; None where it has."""
    if case.peer == "trl_offline" and importlib.util.find_spec("trl") is None:
        return "TRL is not installed (pip install 'alignlab[peers]'): ours is measured alone"
    if case.peer == "trl_ppo" and not (arguments.trl_ppo / "trl").is_dir():
        return (
            f"TRL 1.12.0, the last one with PPO, is not in {arguments.trl_ppo} (pip install --no-deps --target "
            f"{arguments.trl_ppo} trl==1.12.0): PPO is measured alone"
        )
    return None


# -- one process -----------------------------------------------------------------------------------------------------
def run(job: Sequence[str], of: str, arguments: argparse.Namespace) -> Record:
    """The record of a worker; with `error` where it failed."""
    module, case, *more = job
    words = [case, of, "--threads", str(arguments.threads), "--device", arguments.device]
    words += ["--precision", arguments.precision]
    if arguments.steps:
        words += ["--steps", str(arguments.steps)]
    system = "alignlab" if module == "ours" else module.removeprefix("peers.")
    return {"system": system, "case": case, "workload": of, **worker(module, [*words, *more], arguments)}


def worker(module: str, words: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The last line that `python -m benchmarks.<module>` prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {LONGEST} s"}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return {"error": f"exit {done.returncode}: {said[-1] if said else ''}"[:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(record: Record) -> None:
    """One line on the terminal."""
    what = " ".join(str(record.get(name) or "") for name in ("workload", "case", "system", "off", "value")).split()
    if "error" in record:
        print(f"{' '.join(what)}: FAILED, {record['error']}", file=sys.stderr)
        return
    speed, mib = report.number(record["tokens_per_s"]), record["growth_mib"]
    print(f"{' '.join(what)}: {speed} tokens/s, growth {mib:.0f} MiB", file=sys.stderr)


def tell(rows: Sequence[Any], records: Sequence[Record], file: Path) -> int:
    """Where the report is; 1 where a run failed or did other work than its peer."""
    print(file.with_suffix(".md").read_text())
    print(f"written: {file.with_suffix('.md')}", file=sys.stderr)
    return int(any("error" in record for record in records) or not all(row.same for row in rows))


if __name__ == "__main__":
    sys.exit(main())
