"""The records of a run as Markdown, CSV and JSON lines. Figures come from the records only."""

import csv
import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.compare import Comparison, Record, as_rows, compare_all, furthest, median
from benchmarks.floors import floor
from benchmarks.sweeps import SWEEPS
from benchmarks.switches import SWITCHES
from benchmarks.workloads import workload


def write(records: Sequence[Record], file: Path, *, head: dict[str, Any]) -> list[Comparison]:
    """`file`.md, and `file`.csv where ours was compared with a peer; the comparisons."""
    rows = compare_all(records, floors_of(records, head.get("gflops")))
    parts = [heading(records, head), *tables(rows), *ablations(records), *growth(records), *failures(records)]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    if rows:
        with file.with_suffix(".csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, list(as_rows(rows)[0]))
            writer.writeheader()
            writer.writerows(as_rows(rows))
    return rows


def floors_of(records: Sequence[Record], gflops: float | None) -> dict[tuple[str, str], float]:
    """Seconds of the least work, by workload and kind; none where the machine's speed was not measured."""
    found: dict[tuple[str, str], float] = {}
    for record in records:
        case = CASES.get(record["case"])
        if gflops and case and case.floor and "error" not in record and record["kind"] == "table":
            of = workload(record["workload"])
            found[of.name, case.floor] = floor(case.floor, of, record["counted_steps"]).seconds(gflops)
    return found


def heading(records: Sequence[Record], head: dict[str, Any]) -> str:
    """What was run, where and when."""
    good = [record for record in records if "error" not in record]
    versions = {f"{name} {text}" for record in good for name, text in record["versions"].items()}
    kinds = {f"{record['threads']} threads, {record['time']} time" for record in good}
    facts = [
        f"# Benchmark of {head['date']}",
        f"    {head['command']}",
        f"{head['machine']}; {', '.join(sorted(kinds)).replace('1 threads', '1 thread')}, "
        f"{', '.join(sorted({record['precision'] for record in good}))}; {head['rounds']} rounds; load at the start "
        f"{head['load']:.1f}. " + ", ".join(sorted(versions)) + ".",
        "Times faster is the ratio of median tokens per second (real tokens: no padding); in brackets the range over "
        "rounds, whose two runs stood next to each other. Growth is the peak resident set over the loaded start. "
        "`trl` is TRL as it ships; `trl-compact` is TRL with an LM head that skips prompts and padding on a CPU too, "
        "as it does on CUDA. x floor: the time over that of the least arithmetic"
        + (f", at {head['gflops']:.0f} GFLOP/s (measured, one thread)." if head.get("gflops") else "."),
        *(f"Skipped: {line}." for line in head.get("skipped", ())),
    ]
    return "\n\n".join(facts)


def tables(rows: Sequence[Comparison]) -> list[str]:
    """One table per workload."""
    parts = []
    for name in dict.fromkeys(row.workload for row in rows):
        lines = [[*describe(row)] for row in rows if row.workload == name]
        headers = ["", "peer", "tokens/s", "peer's", "times faster", "bar", "growth, MiB", "share", "bar"]
        parts.append(f"## {name}\n\n{markdown([*headers, 'x floor, ours / peer', 'same work?'], lines)}")
        notes = [f"{CASES[case].title}: {CASES[case].note}" for case in dict.fromkeys(r.case for r in rows)]
        parts.append("; ".join(note for note in notes if not note.endswith(": ")) + ".")
    return parts


def describe(row: Comparison) -> list[str]:
    """The cells of one comparison; a bar that is not reached says so."""
    floors = [x for x in (row.ours_over_floor, row.peer_over_floor) if x is not None]
    return [
        CASES[row.case].title,
        row.peer,
        number(row.ours_tokens_per_s),
        number(row.peer_tokens_per_s),
        f"**{row.speed:.2f}** ({row.speed_low:.2f}-{row.speed_high:.2f})",
        "-" if row.speed_bar is None else f"{row.speed_bar:g}{'' if row.speed >= row.speed_bar else ' (missed)'}",
        f"{row.ours_growth_mib:.0f} / {row.peer_growth_mib:.0f}",
        f"{row.growth:.2f}",
        "-" if row.growth_bar is None else f"{row.growth_bar:g}{'' if row.growth <= row.growth_bar else ' (missed)'}",
        " / ".join(f"{x:.1f}" for x in floors) or "-",
        f"{'yes' if row.same else '**NO**'}: {row.check}",
    ]


def ablations(records: Sequence[Record]) -> list[str]:
    """Each idea alone: ours with it over ours without it."""
    good = [r for r in records if "error" not in r and r["kind"] == "ablate"]
    lines = []
    for name, switch in SWITCHES.items():
        for of, case in dict.fromkeys((r["workload"], r["case"]) for r in good if r["off"] == name):
            here = [r for r in good if (r["workload"], r["case"]) == (of, case)]
            on, off = ({r["round"]: r for r in here if r["off"] == which} for which in (None, name))
            if not (both := sorted(on.keys() & off.keys())):
                continue
            with_it, without = [on[i] for i in both], [off[i] for i in both]
            ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(with_it, without)]
            is_exact = "loss" in with_it[0] and not CASES[case].is_sampled
            apart = f"{furthest(with_it[0]['loss'], without[0]['loss']):.0e}" if is_exact else "-"
            growths = median(with_it, "growth_mib"), median(without, "growth_mib")
            speed = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(
                [name, of, CASES[case].title, switch.off, speed, f"{growths[0]:.0f} / {growths[1]:.0f}", apart]
            )
    if not lines:
        return []
    headers = ["idea", "", "", "without it", "times faster with it", "growth with / without, MiB", "losses apart"]
    return [f"## Each idea alone\n\n{markdown(headers, lines)}"]


def growth(records: Sequence[Record]) -> list[str]:
    """A table per axis."""
    parts = []
    for sweep in SWEEPS:
        here = [r for r in records if "error" not in r and r["kind"] == sweep.field]
        if not here:
            continue
        systems = list(dict.fromkeys(r["system"] for r in here))
        lines = []
        for value in dict.fromkeys(r["value"] for r in here):
            cells = {s: [r for r in here if r["value"] == value and r["system"] == s] for s in systems}
            times = [f"{1000 / median(cells[s], 'tokens_per_s'):.3f}" if cells[s] else "-" for s in systems]
            mib = [f"{median(cells[s], 'growth_mib'):.0f}" if cells[s] else "-" for s in systems]
            tokens = statistics.fmean(here[0]["tokens"] if not cells[systems[0]] else cells[systems[0]][0]["tokens"])
            lines.append([f"{value:g}", number(tokens), *times, *mib])
        headers = [sweep.field, "tokens a step", *(f"ms/token, {s}" for s in systems)]
        title = f"## Growth with {sweep.name} ({CASES[sweep.case].title}, workload G)"
        parts.append(f"{title}\n\n{markdown([*headers, *(f'growth MiB, {s}' for s in systems)], lines)}")
    return parts


def failures(records: Sequence[Record]) -> list[str]:
    """What could not be measured."""
    lines = [f"- {r['system']} {r['case']} {r['workload']}: {r['error']}" for r in records if "error" in r]
    return ["## Failed\n\n" + "\n".join(dict.fromkeys(lines))] if lines else []


def markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    body = [f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *lines)]
    return "\n".join(body)


def number(x: float) -> str:
    """Three significant figures below 100, whole numbers above."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def machine() -> str:
    """Processor, cores, memory and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, {memory:.0f} GiB, {system}"


def read(file: Path) -> list[Record]:
    """The records of a run."""
    return [json.loads(line) for line in file.read_text().splitlines()]
