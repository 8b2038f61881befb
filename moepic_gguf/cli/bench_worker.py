"""One engine measured in a process of its own: `python -m moepic_gguf.cli.bench_worker '{"engine": "moepic", ...}'`
prints one JSON object.

Both engines do the same: a context of one length, a warm-up, then per repeat an empty sequence, a prefill of `prompt`
tokens and `generate` greedy tokens, each token timed. Token ids are the same for both; what they say does not matter to
speed in a dense model and little in a routed one, where ids drawn from the whole vocabulary spread over the experts.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to measure. Sizes in tokens."""

    engine: str  # moepic, llama.cpp
    path: str
    prompt: int
    generate: int
    repeats: int
    n_threads: int
    n_batch: int
    seed: int
    kv_type: str = "f16"
    isa: str = "auto"


@dataclass(frozen=True)
class Run:
    """One repeat: wall seconds to the first token, and of each later token."""

    ttft_s: float
    token_s: tuple[float, ...]


def prompt_ids(n_tokens: int, n_vocab: int, seed: int) -> list[int]:
    """Seeded ids from the vocabulary."""
    draw = random.Random(seed)
    return [draw.randrange(n_vocab) for _ in range(n_tokens)]


def measure_moepic(job: Job) -> dict[str, Any]:
    from ..model import Model

    n_ctx = job.prompt + job.generate
    with Model.load(
        job.path, n_ctx=n_ctx, n_batch=job.n_batch, n_threads=job.n_threads, kv_type=job.kv_type, isa=job.isa
    ) as model:
        info = model.info
        ids = prompt_ids(job.prompt, info.n_vocab, job.seed)
        model.generate(ids[: min(32, len(ids))], max_tokens=min(4, job.generate), ignore_eos=True)
        runs = []
        for _ in range(job.repeats):
            model.context.clear()
            times = model.generate(ids, max_tokens=job.generate, ignore_eos=True).times_s
            runs.append(Run(times[0], tuple(b - a for a, b in itertools.pairwise(times))))
        record = {name: value for name, value in info.as_dict().items() if name != "layers"}
        return {"engine": "moepic", "runs": [asdict(run) for run in runs], "info": record, "load_s": model.stats.load_s}


def measure_llama_cpp(job: Job) -> dict[str, Any]:
    import llama_cpp
    import numpy as np

    start = time.perf_counter()
    # One position more than is used: some versions keep one in reserve.
    model = llama_cpp.Llama(
        job.path,
        n_ctx=job.prompt + job.generate + 8,
        n_batch=job.n_batch or 512,
        n_ubatch=job.n_batch or 512,
        n_threads=job.n_threads or None,
        n_threads_batch=job.n_threads or None,
        verbose=False,
    )
    load_s = time.perf_counter() - start
    n_vocab = model.n_vocab()
    ids = prompt_ids(job.prompt, n_vocab, job.seed)

    def step(tokens: list[int]) -> int:
        model.eval(tokens)
        return int(np.argmax(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (n_vocab,))))

    def run(prompt: list[int], n_tokens: int) -> Run:
        model.reset()  # type: ignore[no-untyped-call,unused-ignore]
        begin = time.perf_counter()
        token = step(prompt)
        last = time.perf_counter()
        ttft, later = last - begin, []
        for _ in range(n_tokens - 1):
            token = step([token])
            now = time.perf_counter()
            later.append(now - last)
            last = now
        return Run(ttft, tuple(later))

    run(ids[: min(32, len(ids))], min(4, job.generate))
    runs = [asdict(run(ids, job.generate)) for _ in range(job.repeats)]
    return {"engine": "llama.cpp", "runs": runs, "version": llama_cpp.__version__, "load_s": load_s}


def main() -> None:
    from ..errors import MoepicError

    job = Job(**json.loads(sys.argv[1]))
    measure = {"moepic": measure_moepic, "llama.cpp": measure_llama_cpp}[job.engine]
    try:
        record = measure(job)
    except (MoepicError, ValueError, RuntimeError) as error:
        record = {"engine": job.engine, "error": " ".join(str(error).split())}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
