"""A plan made for a file that is about to be loaded: `moepic-plan`'s arithmetic with the engine's own figure of what a budget leaves for experts."""

from __future__ import annotations

import os
from pathlib import Path

from .config import ContextOptions, LoadOptions, choose_device
from .errors import ArgumentError
from .footprint import embedding_of, engine_footprint, footprint, granules_of, with_needs
from .forecast import Forecast, Subject, costs_of, forecast
from .inspection import inspect_file
from .metadata import GgufFile
from .planner import MODES, Machine, prior_trace, with_guesses
from .streaming import StreamingOptions
from .trace import read_trace
from .weights import memory_needs

# What next_layer finds where no trace says it: the recall of published adjacent-layer gates at their lower end, assumed.
ASSUMED_RECALL = 0.7


def plan_load(
    path: str | os.PathLike[str],
    mode: str | float,
    load: LoadOptions,
    context: ContextOptions,
    streaming: StreamingOptions,
    *,
    machine: str | os.PathLike[str] | Machine | None,
    trace: str | os.PathLike[str] | None = None,
) -> Forecast | None:
    """The forecast for a load; its `options` are the cache to run. None where every expert will be resident.

    mode     'auto', 'paper', 'uniform', 'none', or a split ratio in (0, 1] for all layers.
    machine  measured rates: a file of `moepic-bench machine --out` (for a device: of `./dev gpu`), or a `Machine`.
    trace    recorded routing of this model; a stated prior otherwise.
    Raises   `ArgumentError`, and what reading the files raises.
    """
    if machine is None:
        raise ArgumentError(
            "plan: give machine=FILE as well (moepic-bench machine --out FILE measures one): a plan is made from rates"
        )
    machine = machine if isinstance(machine, Machine) else Machine.read(machine)
    needs = memory_needs(path, load, context, streaming)
    if not needs.streams:
        return None
    with GgufFile(path) as file:
        report, embedding = inspect_file(file), embedding_of(file)
        n_granule = granules_of(file, report)
    n_threads = context.n_threads or len(os.sched_getaffinity(0))
    n_ctx, n_batch = context.n_ctx or 4096, context.n_batch or 512
    on_device = choose_device(load).device != "cpu"
    memory = footprint(
        report,
        n_granule,
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_threads=n_threads,
        embedding=embedding,
        on_device=on_device,
    )
    if on_device:
        memory = with_needs(memory, needs)
    elif load.ram_bytes is not None:
        memory = engine_footprint(
            str(Path(path)), memory, ram_bytes=load.ram_bytes, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads
        )
    recall = 0.0 if streaming.predictor == "none" else ASSUMED_RECALL
    if trace is not None:
        routing = read_trace(trace, expert_bytes=report.expert_bytes).cut_into(n_granule)
        recall = routing.recall if routing.predicted is not None else recall
    else:
        routing = prior_trace(
            report.moe_layers, report.n_expert, report.n_expert_used, report.expert_bytes or 1, n_granule, n_token=320
        )
    if recall > 0.0 and routing.predicted is None:
        routing = with_guesses(routing, recall)
    subject = Subject(
        report=report,
        memory=memory,
        machine=machine,
        trace=routing,
        costs=costs_of(report, memory, machine, n_context=min(512, n_ctx), recall=recall),
        is_prior=trace is None,
        n_batch=n_batch,
    )
    if isinstance(mode, str):
        if mode not in MODES:
            raise ArgumentError(f"plan: expected {', '.join(MODES)} or a split ratio, found {mode!r}")
        return forecast(subject, needs.cache, mode)
    if not 0.0 < mode <= 1.0:
        raise ArgumentError(f"plan: a split ratio lies in (0, 1], found {mode!r}")
    return forecast(subject, needs.cache, "fixed", top=max(1, round(mode * n_granule)))
