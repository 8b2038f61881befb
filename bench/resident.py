"""Does the store cost anything when every expert is resident? The plain resident engine against the streamed one whose cache holds everything.

    python bench/resident.py MODEL... --out bench/results/<date>-<machine>-resident [--processes 5] [--pairs 12]

Both engines are in one process, on the same file, and take turns of `--tokens` tokens, A B then B A; a pair's ratio is streamed / plain of what ran side by
side. Where memory landed favours one of them for as long as a process lives, so there are several, which load in alternating order: the verdict is the
median of their medians. Before the first turn, routing is led through every expert; then both follow their own routers, so that what the predictor costs
is in it. A run that then still missed an expert is an error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measuring import decode, follow, markdown, new_folder, spread, subject_of, token_ids, write_record

from moepic_gguf import Model
from moepic_gguf.streaming import StreamingOptions
from moepic_gguf.trace import Trace

ENGINES = ("plain", "streamed")


def every_expert(path: Path) -> Trace:
    """Routing whose token t uses the t-th k experts of every layer, round and round."""
    target = subject_of(path).target
    n_token = -(-target.n_expert // target.n_used)
    one = np.arange(n_token)[:, None] * target.n_used + np.arange(target.n_used)
    ids = np.sort(one % target.n_expert, axis=1).astype(np.int32)
    n_layer = target.n_layer
    return Trace(
        ids=np.repeat(ids[:, None], n_layer, axis=1),
        weights=np.ones((n_token, n_layer, target.n_used), np.float32),
        sequence=np.zeros(n_token, np.int32),
        phase=np.ones(n_token, np.uint8),
        n_expert=np.full(n_layer, target.n_expert, np.int32),
        n_granule=np.full(n_layer, target.n_granule, np.int32),
        granule_bytes=np.array(target.granule_bytes, np.int64),
    )


def measure(path: Path, n_pairs: int, n_tokens: int, order: list[str]) -> list[dict[str, Any]]:
    """One process: rows of a turn each."""
    trace = every_expert(path)
    options = {"plain": StreamingOptions(), "streamed": StreamingOptions(always=True)}
    models = {
        name: Model.load(path, device="cpu", n_ctx=max(n_tokens, trace.n_token), streaming=options[name])
        for name in order
    }
    digests = {}
    for name, model in models.items():
        follow(model, trace)
        digests[name] = decode(model, token_ids(trace.n_token, model.info.n_vocab)).digest
        follow(model, None)
        model.reset_stats()
    if len(set(digests.values())) != 1:
        raise SystemExit(f"'{path.name}': the engines disagree: {digests}")
    rows = []
    for pair in range(n_pairs):
        for name in order if pair % 2 == 0 else order[::-1]:
            model = models[name]
            model.context.clear()
            found = decode(model, token_ids(n_tokens, model.info.n_vocab, seed=pair))
            rows.append({"pair": pair, "engine": name, "tpot_s": found.tpot_s})
    stats = models["streamed"].stream_stats
    assert stats is not None
    if stats.total("n_partial") or stats.total("n_miss"):
        raise SystemExit(f"'{path.name}': not everything was resident: {stats}")
    for model in models.values():
        model.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--out", type=new_folder)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32, help="of a turn")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the order of loading: this is one of the processes
    arguments = parser.parse_args()
    if arguments.worker:
        rows = measure(arguments.models[0], arguments.pairs, arguments.tokens, arguments.worker.split(","))
        print(json.dumps(rows))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    rows, lines = [], []
    for path in arguments.models:
        medians, ratios = [], []
        for process in range(arguments.processes):
            order = ENGINES if process % 2 == 0 else ENGINES[::-1]
            sizes = ["--pairs", str(arguments.pairs), "--tokens", str(arguments.tokens)]
            command = [sys.executable, __file__, str(path), *sizes, "--worker", ",".join(order)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            rows += [{"model": path.name, "process": process, "first": order[0]} | row for row in found]
            times = {(row["pair"], row["engine"]): row["tpot_s"] for row in found}
            these = [times[pair, "streamed"] / times[pair, "plain"] for pair in range(arguments.pairs)]
            medians.append(statistics.median(these))
            ratios += these
        plain = [row["tpot_s"] for row in rows if (row["model"], row["engine"]) == (path.name, "plain")]
        lines.append([path.name, spread(plain, 1e3, 2), spread(medians, 1, 3), spread(ratios, 1, 3)])
        print(*lines[-1], flush=True)
    heads = ["file", "plain TPOT ms", "streamed / plain: median of each process", "of every pair"]
    text = f"Every expert resident, median (smallest-largest).\n\n{markdown(heads, lines)}"
    write_record(arguments.out, arguments.models[0], rows, text, models=[path.name for path in arguments.models])
    print(text)


if __name__ == "__main__":
    main()
