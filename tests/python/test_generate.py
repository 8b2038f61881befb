"""generate(): what it promises about tokens, text, limits, reuse and errors. The oracle for tokens is arg max over
logits().
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import Shape

from moepic_gguf import ArgumentError, ContextOverflowError, Model, MoepicError, UnsupportedModelError

PROMPT = "the hand and the thing"


def log_softmax(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    wide -= wide.max()
    return wide - np.log(np.exp(wide).sum())


def test_greedy_takes_the_arg_max_of_the_logits(model):
    answer = model.generate(PROMPT, max_tokens=20, ignore_eos=True)
    ids = model.tokenize(PROMPT) + answer.tokens
    with model.new_context() as other:
        logits = other.logits(ids)
    assert logits.shape == (len(ids), model.info.n_vocab)
    assert logits.dtype == np.float32
    n_prompt = len(ids) - 20
    assert answer.tokens == [int(row.argmax()) for row in logits[n_prompt - 1 : -1]]
    assert answer.finish_reason == "length"


def test_logits_do_not_depend_on_the_batch(tiny_file):
    ids = list(range(40))
    rows = []
    for n_batch in (1, 7, 512):
        with Model.load(tiny_file(), n_batch=n_batch, n_threads=2) as model:
            rows.append(model.logits(ids))
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_the_stream_is_the_text(model):
    pieces = list(model.generate(PROMPT, max_tokens=60, temperature=1.0, seed=3, stream=True))
    whole = model.generate(PROMPT, max_tokens=60, temperature=1.0, seed=3)
    assert "".join(pieces) == whole.text == str(whole) == model.detokenize(whole.tokens)
    assert all(pieces)


@pytest.mark.parametrize("seed", range(8))
def test_utf8_is_never_torn(model, seed):
    """Force a text of 1- to 4-byte characters token by token (each byte is one token) and watch the pieces."""
    text = "a\u00e9\u20ac\U0001f600z"
    order = list(text.encode())
    draw = np.random.default_rng(seed)
    expected, pieces = "", []
    from moepic_gguf.tokenizer import StreamDecoder

    decoder = StreamDecoder(model.tokenizer)
    byte_ids = {byte: model.tokenizer.token_id(name) for byte, name in enumerate(__import__("tiny_gguf").byte_tokens())}
    for _ in range(5):
        cut = int(draw.integers(0, 2))
        pieces += [decoder.push(byte_ids[byte]) for byte in order * (cut + 1)]
        expected += text * (cut + 1)
    pieces.append(decoder.flush())
    assert "".join(pieces) == expected
    assert not any("\ufffd" in piece for piece in pieces)


def test_random_bytes_stream_as_they_decode_whole(model):
    for seed in range(5):
        run = model.generate(PROMPT, max_tokens=100, temperature=1.5, seed=seed, ignore_eos=True, stream=True)
        text = "".join(run)
        assert text == model.detokenize(run.tokens), f"seed {seed}"


def test_on_token_sees_every_piece_and_can_stop(model):
    seen = []
    answer = model.generate(PROMPT, max_tokens=30, on_token=lambda piece: seen.append(piece))
    assert "".join(seen) == answer.text
    seen.clear()

    def three(piece):
        seen.append(piece)
        return len(seen) < 3

    answer = model.generate(PROMPT, max_tokens=30, on_token=three)
    assert answer.finish_reason == "cancelled"
    assert answer.text == "".join(seen)
    assert len(seen) == 3


def test_an_exception_in_on_token_reaches_the_caller_and_the_context_goes_on(model):
    expected = model.generate(PROMPT, max_tokens=10).text

    def fail(_piece):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        model.generate(PROMPT, max_tokens=10, on_token=fail)
    assert model.generate(PROMPT, max_tokens=10).text == expected


def test_stop_strings_cut_exactly_and_never_leak(model):
    whole = model.generate(PROMPT, max_tokens=40, temperature=1.0, seed=5, ignore_eos=True).text
    for start in range(2, len(whole) - 6, 5):
        stop = whole[start : start + 4]
        run = model.generate(
            PROMPT, max_tokens=40, temperature=1.0, seed=5, ignore_eos=True, stop=[stop, "\0never\0"], stream=True
        )
        text = "".join(run)
        assert text == run.text == whole[: whole.index(stop)], repr(stop)
        assert (run.finish_reason, run.stop_reason) == ("stop", stop)


def test_stop_tokens_end_the_answer_and_are_not_part_of_it(model):
    tokens = model.generate(PROMPT, max_tokens=20, ignore_eos=True).tokens
    stop = tokens[7]
    answer = model.generate(PROMPT, max_tokens=20, ignore_eos=True, stop_tokens=[stop])
    assert answer.tokens == tokens[: tokens.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_the_models_end_token_ends_the_answer(model):
    end = model.tokenizer.eos_id
    answer = model.generate(PROMPT, max_tokens=20, logit_bias={end: 1e4})
    assert (answer.tokens, answer.text, answer.finish_reason, answer.stop_reason) == ([], "", "stop", end)
    assert answer.ttft_s is not None
    assert answer.tpot_s is None
    assert model.generate(PROMPT, max_tokens=3, logit_bias={end: 1e4}, ignore_eos=True).tokens == [end] * 3


def test_logit_bias_forbids_and_forces(model):
    first = model.generate(PROMPT, max_tokens=1).tokens[0]
    assert model.generate(PROMPT, max_tokens=20, logit_bias={first: -np.inf}, ignore_eos=True).tokens.count(first) == 0
    assert model.generate(PROMPT, max_tokens=4, logit_bias={65: 1e4}).text == "AAAA"


def test_seeds_repeat_and_differ(model):
    def draw(seed):
        return model.generate(PROMPT, max_tokens=30, temperature=1.0, seed=seed)

    assert draw(1).tokens == draw(1).tokens
    assert draw(1).tokens != draw(2).tokens
    free = draw(None)
    assert draw(free.seed).tokens == free.tokens, "an unseeded answer says which seed repeats it"


def test_top_k_one_is_greedy(model):
    greedy = model.generate(PROMPT, max_tokens=20).tokens
    assert model.generate(PROMPT, max_tokens=20, temperature=1.0, top_k=1, seed=1).tokens == greedy


def test_logprobs_are_the_log_softmax_of_the_logits(model):
    answer = model.generate(PROMPT, max_tokens=6, logprobs=5, ignore_eos=True)
    ids = model.tokenize(PROMPT) + answer.tokens
    rows = model.logits(ids)[len(ids) - 7 : -1]
    assert len(answer.logprobs) == 6
    for row, item, token in zip(rows, answer.logprobs, answer.tokens, strict=True):
        expected = log_softmax(row)
        # One rounding to float32 of a value below 32 in size, and of the sum of n_vocab terms: well below 1e-5.
        assert item.token == token
        assert item.logprob == pytest.approx(expected[token], abs=1e-5)
        order = np.argsort(-row, kind="stable")[:5]
        assert [token for token, _ in item.top] == order.tolist()
        assert [value for _, value in item.top] == pytest.approx(expected[order].tolist(), abs=1e-5)
    assert model.generate(PROMPT, max_tokens=2).logprobs is None


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_overflow_is_refused_with_counts_before_anything_is_computed(tiny_file):
    with Model.load(tiny_file(), n_ctx=32, n_threads=1) as model:
        for stream in (False, True):
            with pytest.raises(ContextOverflowError, match=r"40 tokens.*32"):
                model.generate(list(range(40)), stream=stream)
            with pytest.raises(ContextOverflowError, match=r"10 prompt tokens \+ 23 max_tokens = 33.*32"):
                model.generate(list(range(10)), max_tokens=23, stream=stream)
        with pytest.raises(ContextOverflowError):
            model.logits(list(range(33)))
        assert model.stats.prefill_tokens == model.stats.decode_tokens == 0


def test_the_context_can_be_filled_to_its_last_position(tiny_file):
    with Model.load(tiny_file(), n_ctx=32, n_threads=1) as model:
        answer = model.generate(list(range(10)), max_tokens=22, ignore_eos=True)
        assert len(answer.tokens) == 22
        again = model.generate(list(range(10)), ignore_eos=True)
        assert (again.tokens, again.finish_reason) == (answer.tokens, "length")
        assert model.n_ctx == 32


def test_reuse_saves_work_and_changes_nothing(model):
    first = model.generate(PROMPT, max_tokens=12, ignore_eos=True)
    longer = model.tokenize(PROMPT) + first.tokens + [65, 66]
    computed = model.stats.prefill_tokens + model.stats.decode_tokens
    second = model.generate(longer, max_tokens=8, ignore_eos=True)
    # The last drawn token was never fed back, so it and the two new ones are computed, then 7 of the 8 answers.
    assert second.reused_tokens == len(longer) - 3
    assert model.stats.prefill_tokens + model.stats.decode_tokens - computed == 3 + 7
    with model.new_context() as fresh:
        assert fresh.generate(longer, max_tokens=8, ignore_eos=True).tokens == second.tokens


def test_max_tokens_zero_computes_nothing(model):
    answer = model.generate(PROMPT, max_tokens=0)
    assert (answer.tokens, answer.finish_reason, answer.ttft_s) == ([], "length", None)
    assert model.stats.prefill_tokens == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"temperature": -1}, "temperature"), ({"top_p": 7}, "top_p"),
        ({"stop": [""]}, "stop"), ({"stop": ["a", 3]}, "stop"), ({"logprobs": -1}, "logprobs"), ({"logit_bias": {10**6: 1}}, "logit_bias"),
        ({"seed": -1}, "seed"), ({"seed": "x"}, "seed"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(model, options, named):
    with pytest.raises(ArgumentError, match=named):
        model.generate(PROMPT, **{"max_tokens": 4, **options})


@pytest.mark.parametrize("ids", [[], [-1], [10**6], [1, 2, 999_999]])
def test_bad_token_ids_are_refused(model, ids):
    with pytest.raises(ArgumentError, match=r"outside the vocabulary|at least one|whole numbers"):
        model.generate(ids, max_tokens=1)


def test_a_model_without_tokenizer_serves_ids(tiny_file):
    with Model.load(tiny_file(Shape(tokenizer=False))) as bare, Model.load(tiny_file()) as model:
        ids = model.tokenize(PROMPT)
        expected = model.generate(ids, max_tokens=10, ignore_eos=True).tokens
        seen = []
        answer = bare.generate(ids, max_tokens=10, on_token=seen.append)
        assert answer.tokens == expected
        assert answer.text == ""
        assert len(seen) == 10
        for call in (lambda: bare.generate(PROMPT), lambda: bare.tokenize("a"), lambda: bare.generate(ids, stop=["x"])):
            with pytest.raises(UnsupportedModelError, match="token ids"):
                call()


def test_echo_begins_with_the_prompt(model):
    plain = model.generate(PROMPT, max_tokens=5)
    run = model.generate(PROMPT, max_tokens=5, echo=True, stream=True)
    assert "".join(run) == run.text == PROMPT + plain.text


# ---- stats -----------------------------------------------------------------------------------------------------------


def test_stats_count_what_was_done(model):
    answer = model.generate(PROMPT, max_tokens=9, ignore_eos=True)
    stats, info = model.stats, model.info
    assert (stats.prompt_tokens, stats.generated_tokens) == (answer.prompt_tokens, 9)
    assert (stats.prefill_tokens, stats.decode_tokens) == (answer.prompt_tokens, 8)
    # In prefill the last layer's feed-forward is computed for the last token only, whose logits are all that is asked
    # for.
    rows = answer.prompt_tokens * (info.n_layer - 1) + 1 + 8 * info.n_layer
    assert stats.experts_used == rows * info.n_expert_used
    assert stats.ttft_s == answer.ttft_s > 0
    assert stats.tpot_s == answer.tpot_s > 0
    assert len(answer.times_s) == 9
    assert stats.kv_bytes >= model.n_ctx * info.kv_bytes_per_token_f16
    assert "tok/s" in str(stats)
    model.reset_stats()
    assert model.stats.prefill_tokens == 0


def test_info_describes_the_file(model, tiny_file):
    info, shape = model.info, Shape()
    assert (info.architecture, info.n_layer, info.n_embd, info.n_expert, info.n_expert_used) == ("llama", 2, 64, 4, 2)
    assert info.name == "Tiny"
    assert info.file_bytes == tiny_file().stat().st_size
    assert len(info.layers) == shape.n_layer
    layer = info.layers[0]
    assert (layer.n_ff, layer.gate_type) == (64, "F32")
    assert layer.expert_bytes == 3 * 64 * 64 * 4
    assert layer.granule * layer.n_granules == layer.n_ff
    assert info.expert_bytes == 2 * 4 * layer.expert_bytes
    assert "llama" in str(info)
    assert "cpu (device: " in str(model.config)  # and why not a GPU
    assert f"{'n_ctx':18} 512" in str(model.config)


def test_perplexity_is_llama_perplexitys_definition(model):
    text = "the thing in the hand and an inner band " * 6
    ids = model.tokenize(text)
    window = 32
    total, count = 0.0, 0
    for i in range(len(ids) // window):
        part = ids[i * window : (i + 1) * window]
        part[0] = model.tokenizer.bos_id
        rows = model.logits(part)
        for j in range(window // 2, window - 1):
            total -= log_softmax(rows[j])[part[j + 1]]
            count += 1
    assert model.perplexity(text, n_ctx=window) == pytest.approx(float(np.exp(total / count)), rel=1e-5)
    with pytest.raises(ContextOverflowError):
        model.perplexity(text, n_ctx=10_000)
    with pytest.raises(ArgumentError):
        model.perplexity("a", n_ctx=32)


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_chat_is_the_rendered_template(model):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the hand"}]
    text = "<|system|>be kind<|end|><|user|>the hand<|end|><|assistant|>"
    assert model.render_chat(messages) == text
    ids = model.tokenize(text, add_special=False, parse_special=True)
    specials = [model.tokenizer.token_id(name) for name in ("<|system|>", "<|end|>", "<|user|>", "<|assistant|>")]
    assert set(specials) <= set(ids)
    assert model.chat(messages, max_tokens=10).tokens == model.generate(ids, max_tokens=10).tokens
    assert "".join(model.chat(messages, max_tokens=10, stream=True)) == model.chat(messages, max_tokens=10).text


def test_a_missing_template_is_an_error_and_a_given_one_is_used(tiny_file):
    from moepic_gguf import TemplateError

    path = tiny_file(Shape(template=False))
    with Model.load(path) as model, pytest.raises(TemplateError, match="chat_template"):
        model.chat([{"role": "user", "content": "a"}])
    with Model.load(path, chat_template="{{ messages[0]['content'] }}!") as model:
        assert model.render_chat([{"role": "user", "content": "a"}]) == "a!"
        assert model.chat_template.endswith("!")


def test_a_named_template_is_chosen_at_load_or_per_call_and_by_tools(tiny_file):
    from moepic_gguf import TemplateError

    path, talk = tiny_file(Shape(tool_template="T{{ messages[0]['content'] }}")), [{"role": "user", "content": "a"}]
    with Model.load(path) as model:
        assert model.chat_template_names == ["default", "tool_use"]
        assert model.render_chat(talk) == "<|user|>a<|end|><|assistant|>"
        assert model.render_chat(talk, chat_template="tool_use") == "Ta"
        assert model.render_chat(talk, tools=[{"name": "f"}]) == "Ta"
        assert model.render_chat(talk, tools=[{"name": "f"}], chat_template="default").startswith("<|user|>")
        answer = model.chat(talk, chat_template="tool_use", max_tokens=4)
        assert answer.tokens == model.generate("Ta", max_tokens=4, add_special=False).tokens
    with Model.load(path, chat_template="tool_use") as model:
        assert model.render_chat(talk) == "Ta"
        assert model.chat_template.startswith("T")
    for choice in ("tool_us", ""):
        with pytest.raises(TemplateError, match="it has: default, tool_use"):
            Model.load(path, chat_template=choice)


def test_a_template_sees_only_the_special_tokens_the_file_names(tiny_file):
    template = "{{ bos_token }}|{{ 'no' if eos_token is undefined else eos_token }}"
    for eos, expected in ((True, "<s>|<|end|>"), (False, "<s>|no")):
        with Model.load(tiny_file(Shape(eos=eos)), chat_template=template) as model:
            assert model.render_chat([]) == expected


# ---- progress of long prompts ----------------------------------------------------------------------------------------


def test_progress_is_told_before_each_batch_and_at_the_end(tiny_file):
    ids, told = list(range(40)), []
    with Model.load(tiny_file(), n_batch=16, n_threads=1) as model:
        plain = model.generate(ids, max_tokens=5, ignore_eos=True).tokens
        model.context.clear()
        answer = model.generate(ids, max_tokens=5, ignore_eos=True, on_progress=lambda *now: told.append(now))
        assert answer.tokens == plain
        assert told == [(0, 40), (16, 40), (32, 40), (40, 40)]
        told.clear()
        model.generate([*ids, 7, 8, 9], max_tokens=1, on_progress=lambda *now: told.append(now))
        assert told == [(40, 43), (43, 43)]  # the beginning was there already


def test_progress_can_stop_and_its_exceptions_arrive(tiny_file):
    def fail(done, _total):
        if done:
            raise RuntimeError("from the listener")

    ids = list(range(40))
    with Model.load(tiny_file(), n_batch=16, n_threads=1) as model:
        expected = model.generate(ids, max_tokens=3).tokens
        model.context.clear()
        answer = model.generate(ids, max_tokens=3, on_progress=lambda done, _total: done < 16)
        assert (answer.finish_reason, answer.tokens, model.stats.prefill_tokens) == ("cancelled", [], 40 + 16)
        model.context.clear()
        with pytest.raises(RuntimeError, match="from the listener"):
            model.generate(ids, max_tokens=3, on_progress=fail)
        assert model.generate(ids, max_tokens=3).tokens == expected
        assert model.stats.reused_tokens == 16, "what was computed before the listener failed is kept"


# ---- arguments of the wrong kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompt": None}, "prompt: expected"), ({"prompt": b"abc"}, "prompt: expected"), ({"prompt": [1.5]}, "prompt: expected"),
        ({"prompt": {"role": "user"}}, "prompt: expected"), ({"prompt": []}, "prompt: at least one"), ({"stop": 5}, "stop: expected"),
        ({"stop": ["a", ""]}, "stop: expected"), ({"stop_tokens": "ab"}, "stop_tokens: expected"), ({"stop_tokens": [10**6]}, "stop_tokens: 1000000"),
        ({"logit_bias": [1]}, "logit_bias: expected"), ({"logprobs": 1.5}, "logprobs: expected"), ({"on_token": 5}, "on_token: expected"),
        ({"on_progress": 5}, "on_progress: expected"), ({"max_tokens": 1.5}, "max_tokens: expected"), ({"temperature": None}, "temperature: expected"),
    ],
)  # fmt: skip
def test_an_argument_of_the_wrong_kind_is_named(model, options, text):
    with pytest.raises(ArgumentError, match=text):
        model.generate(**{"prompt": "a", "max_tokens": 3, **options})


def test_other_calls_name_what_is_wrong_too(model):
    for call, text in (
        (lambda: model.logits("abc"), "tokens: expected"),
        (lambda: model.detokenize("abc"), "tokens: expected"),
        (lambda: model.perplexity([1] * 50, n_ctx=-5), "n_ctx: expected"),
        (lambda: Model.load(model.info.path, progress=3), "progress: expected"),
        (lambda: Model.load(model.info.path, device=None), "device: expected"),
        (lambda: Model.load(model.info.path, chat_template=5), "chat_template: expected"),
    ):
        with pytest.raises(ArgumentError, match=text):
            call()


def test_numbers_of_numpy_are_numbers(model):
    plain = model.generate([1, 2, 3], max_tokens=4, temperature=0.5, seed=7, top_k=5, stop=None)
    same = model.generate(
        np.array([1, 2, 3]), max_tokens=np.int64(4), temperature=np.float32(0.5), seed=np.uint64(7), top_k=np.int32(5)
    )
    assert same.tokens == plain.tokens


# ---- several contexts, and who may speak -----------------------------------------------------------------------------


def test_contexts_over_one_set_of_weights_do_not_disturb_each_other(model):
    alone = {text: model.generate(text, max_tokens=15, ignore_eos=True).tokens for text in (PROMPT, "in an inn")}
    with model.new_context() as one, model.new_context(n_ctx=64) as two:
        streams = [one.generate(PROMPT, max_tokens=15, ignore_eos=True, stream=True),
                   two.generate("in an inn", max_tokens=15, ignore_eos=True, stream=True)]  # fmt: skip
        live = list(streams)
        while live:
            live = [stream for stream in live if next(stream, None) is not None]
        assert [stream.tokens for stream in streams] == list(alone.values())
        assert two.n_ctx == 64


def test_a_new_answer_ends_an_older_stream_and_the_older_one_says_so(model):
    older = model.generate(PROMPT, max_tokens=20, ignore_eos=True, stream=True)
    next(older)
    newer = model.generate(PROMPT, max_tokens=5, ignore_eos=True)
    assert len(newer.tokens) == 5
    with pytest.raises(MoepicError, match="new_context"):
        next(older)


@pytest.mark.parametrize("other", ["logits", "perplexity", "clear"])
def test_other_work_on_the_sequence_ends_a_stream_instead_of_confusing_it(model, other):
    older = model.generate(PROMPT, max_tokens=20, ignore_eos=True, stream=True)
    next(older)
    {
        "logits": lambda: model.logits([1, 2, 3]),
        "perplexity": lambda: model.perplexity([1] * 16),
        "clear": model.context.clear,
    }[other]()
    with pytest.raises(MoepicError, match="new_context"):
        next(older)


def test_a_listener_that_uses_the_context_ends_the_answer(model):
    with pytest.raises(MoepicError, match="new_context"):
        model.generate(PROMPT, max_tokens=20, on_token=lambda _piece: model.generate("a", max_tokens=2) and None)
    assert len(model.generate(PROMPT, max_tokens=5, ignore_eos=True).tokens) == 5


def test_leaving_a_loop_early_leaves_the_context_usable(model):
    expected = model.generate(PROMPT, max_tokens=10).tokens
    run = model.generate(PROMPT, max_tokens=50, stream=True)
    for _ in run:
        break
    run.close()
    assert run.finish_reason == "cancelled"
    assert model.generate(PROMPT, max_tokens=10).tokens == expected
    assert list(run) == []


# ---- life and budgets ------------------------------------------------------------------------------------------------


def test_a_closed_model_is_refused(tiny_file):
    model = Model.load(tiny_file())
    other = model.new_context()
    stream = model.generate(PROMPT, max_tokens=10, stream=True)
    next(stream)
    model.close()
    model.close()
    for call in (lambda: model.generate([1]), lambda: model.info, lambda: other.logits([1]), lambda: model.metadata["general.name"],
                 model.new_context, lambda: model.stats, lambda: next(stream)):  # fmt: skip
        with pytest.raises(MoepicError, match="closed"):
            call()


def test_dropping_things_in_any_order_is_safe(tiny_file):
    import gc

    for _ in range(3):
        model = Model.load(tiny_file())
        stream = model.generate(PROMPT, max_tokens=10, stream=True)
        next(stream)
        loop = [model, stream]
        loop.append(loop)
        context = model.new_context()
        del model, stream, loop
        gc.collect()
        assert len(context.generate([1, 2], max_tokens=3, ignore_eos=True).tokens) == 3, (
            "a context keeps its weights alive"
        )
        del context
        gc.collect()


def test_a_ram_budget_is_held_or_refused(tiny_file):
    from moepic_gguf import BudgetError
    from moepic_gguf.config import ContextOptions, LoadOptions
    from moepic_gguf.weights import memory_needs

    with Model.load(tiny_file(), n_ctx=64) as model:
        need = model.info.weight_bytes + model.stats.kv_bytes + model.stats.scratch_bytes
    with Model.load(tiny_file(), n_ctx=64, ram=need) as model, pytest.raises(BudgetError, match="need"):
        model.new_context()
    least = memory_needs(tiny_file(), LoadOptions(), ContextOptions(n_ctx=64)).least  # with its experts streamed
    assert least < need
    for budget in (least - 1, 1000, "1KiB", 0):
        with pytest.raises(BudgetError, match=r"needs .* bytes.*budget is"):
            Model.load(tiny_file(), n_ctx=64, ram=budget)


def test_a_misnamed_file_gets_a_tip(tiny_file, tmp_path):
    from moepic_gguf import IoError

    path = tiny_file()
    with pytest.raises(IoError, match=f"did you mean '{path}'"):
        Model.load(path.with_name(path.name + "f"))
    with pytest.raises(IoError, match="folder"):
        Model.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IoError, match="moepic-convert"):
        Model.load(tmp_path)


def test_progress_is_told_and_can_stop_the_load(tiny_file):
    from moepic_gguf import CancelledError

    calls = []
    Model.load(tiny_file(), progress=lambda *call: calls.append(call)).close()
    assert calls
    assert calls[-1][1] == calls[-1][2] > 0
    with pytest.raises(CancelledError):
        Model.load(tiny_file(), progress=lambda *_: False)
    with pytest.raises(ZeroDivisionError):
        Model.load(tiny_file(), progress=lambda *_: 1 / 0)


def test_a_file_that_loses_its_end_while_it_loads_is_an_error_that_names_the_tensor(tiny_file, tmp_path):
    from moepic_gguf import IoError

    path = shutil.copy(tiny_file(), tmp_path / "model.gguf")
    with pytest.raises(IoError, match=r"blk.* ends at byte .* it was shortened since it was opened"):
        Model.load(path, progress=lambda *_: os.truncate(path, Path(path).stat().st_size // 2))


# ---- life ------------------------------------------------------------------------------------------------------------


def test_weights_go_with_the_last_use_not_with_the_next_garbage_collection(tiny_file):
    """A model is gigabytes and few Python objects, so the collector sees no reason to look for cycles."""
    import gc
    import weakref

    def use(how):
        model = Model.load(tiny_file(), n_threads=1)
        kept.append(how(model))
        return weakref.ref(model._weights)

    gc.collect()
    gc.disable()
    kept = []  # results outlive their model, except those that hold its context
    try:
        for name, how in {
            "loaded": lambda model: None,
            "info": lambda model: (model.info, model.stats, str(model.config), model.metadata),
            "answer": lambda model: model.generate("a", max_tokens=2).text,
            "chat": lambda model: model.chat([{"role": "user", "content": "a"}], max_tokens=2).text,
            "listeners": lambda model: model.generate("abc", max_tokens=2, on_token=print, on_progress=print).text,
            "left early": lambda model: next(model.generate("a", max_tokens=20, stream=True)),
            "closed early": lambda model: model.generate("a", max_tokens=20, stream=True).close(),
            "context": lambda model: model.new_context().generate("a", max_tokens=2).text,
            "logits": lambda model: model.logits([1, 2]),
        }.items():
            assert use(how)() is None, name
        with pytest.raises(MoepicError, match="closed"):
            kept[1][-1]["general.name"]
    finally:
        gc.enable()


def test_keys_keep_their_file_open_and_let_it_go(tiny_file):
    import gc

    from moepic_gguf import GgufFile

    def mapped():
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return sum(str(path) in line for line in maps)

    path = tiny_file(Shape(seed=77))
    gc.disable()
    try:
        keys = GgufFile(path).metadata
        assert keys["general.name"] == "Tiny"
        assert mapped()
        del keys
        assert not mapped()
    finally:
        gc.enable()


def test_the_models_methods_look_like_its_contexts():
    import inspect

    from moepic_gguf import Context

    for name in (
        "generate",
        "chat",
        "agenerate",
        "achat",
        "render_chat",
        "tokenize",
        "detokenize",
        "logits",
        "perplexity",
    ):
        ours, theirs = getattr(Model, name), getattr(Context, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__
        assert ours.__doc__
    assert Model.stats.__doc__
