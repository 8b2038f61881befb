"""moepic-chat without a terminal. The oracle for answers is Model.chat with the same messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tiny_gguf import Shape, write

from moepic_gguf import Model

GREEDY = ("--temp", "0", "-n", "12", "-t", "1")


@pytest.fixture
def expected(tiny):
    """Answers to messages sent one after another."""

    def talk(*texts, system=None):
        messages = [{"role": "system", "content": system}] if system else []
        answers = []
        with Model.load(tiny, n_threads=1) as model:
            for text in texts:
                messages.append({"role": "user", "content": text})
                answers.append(model.chat(messages, max_tokens=12).text)
                messages.append({"role": "assistant", "content": answers[-1]})
        return answers

    return talk


def test_each_line_is_a_message_and_the_conversation_is_kept(command, tiny, expected):
    done = command("chat", tiny, *GREEDY, stdin="the hand\nan inn\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(answer + "\n" for answer in expected("the hand", "an inn"))
    assert done.stderr == ""


def test_a_quoted_block_is_one_message(command, tiny, expected):
    for block in ('"""the\nhand"""\n', '"""\nthe\nhand\n"""\n', '"""the\nhand\n"""\n'):
        assert command("chat", tiny, *GREEDY, stdin=block).stdout == expected("the\nhand")[0] + "\n"


def test_regen_undo_and_clear_change_the_conversation(command, tiny, expected):
    one, two = expected("the hand", "an inn")
    say = command("chat", tiny, *GREEDY, stdin="the hand\n/regen\n/undo\nthe hand\nan inn\n/clear\nthe hand\n").stdout
    assert say == f"{one}\n{one}\n(taken back; 0 messages remain)\n{one}\n{two}\n(cleared)\n{one}\n"


def test_the_system_message_is_used(command, tiny, expected):
    (kind,) = expected("the hand", system="be kind")
    assert command("chat", tiny, *GREEDY, "-sys", "be kind", stdin="the hand\n").stdout == kind + "\n"
    say = command("chat", tiny, *GREEDY, stdin="/system be kind\nthe hand\n/system\n/system none\n/system\n").stdout
    assert say.splitlines()[1:2] == kind.splitlines()[:1]
    assert "be kind\n" in say
    assert say.endswith("(no system message)\n")


def test_save_and_load_bring_a_conversation_back(command, tiny, expected, tmp_path):
    one, two = expected("the hand", "an inn")
    file = tmp_path / "talk.json"
    command("chat", tiny, *GREEDY, "-sys", "x", stdin=f"/system none\nthe hand\n/save {file}\n")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["messages"] == [{"role": "user", "content": "the hand"}, {"role": "assistant", "content": one}]
    say = command("chat", tiny, *GREEDY, stdin=f"/load {file}\nan inn\n").stdout
    assert say == f"(loaded 2 messages from {file})\n{two}\n"
    file.write_text("{}")
    say = command("chat", tiny, *GREEDY, stdin=f"/load {file}\n/load {tmp_path / 'absent'}\nthe hand\n").stdout
    assert "is not a conversation saved by /save" in say
    assert "No such file" in say
    assert say.endswith(one + "\n")


def test_read_sends_a_file(command, tiny, expected, tmp_path):
    file = tmp_path / "note.txt"
    file.write_text("the hand", encoding="utf-8")
    assert command("chat", tiny, *GREEDY, stdin=f"/read {file}\n").stdout == expected("the hand")[0] + "\n"
    assert (
        command("chat", tiny, *GREEDY, stdin=f"/read {file} an inn\n").stdout
        == expected("an inn\n\nthe hand")[0] + "\n"
    )


def test_settings_are_shown_checked_and_used(command, tiny, expected):
    say = command(
        "chat",
        tiny,
        *GREEDY,
        stdin="/set max_tokens 3\n/set temp -1\n/set nonsense 3\n/set top_k x\n/show settings\nthe hand\n",
    ).stdout
    assert "max_tokens = 3" in say
    assert "temperature: expected a number from 0 to 10000, found -1.0" in say
    assert "usage: /set NAME VALUE" in say
    assert "top_k: 'x' is not a whole number" in say
    with Model.load(tiny, n_threads=1) as model:
        assert say.endswith(model.chat([{"role": "user", "content": "the hand"}], max_tokens=3).text + "\n")


def test_help_names_every_command_and_a_typo_gets_a_tip(command, tiny):
    say = command("chat", tiny, stdin="/help\n/regn\n/stats\n/show model\n/exit\nnot sent\n").stdout
    for name in ["help", "exit", "clear", "regen", "undo", "system", "set", "show", "stats", "save", "load", "read"]:
        assert f"/{name}" in say
    assert "did you mean /regen?" in say
    assert "ttft" in say
    assert "4 experts, 2 used per token" in say


def test_one_shot_answers_and_leaves(command, tiny, expected, tmp_path):
    (answer,) = expected("the hand")
    file = tmp_path / "prompt.txt"
    file.write_text("the hand", encoding="utf-8")
    for arguments, stdin in (
        (("-p", "the hand"), "ignored\n"),
        (("-p", "-"), "the hand"),
        (("-f", str(file)), ""),
        (("-m", tiny, "-p", "the hand"), ""),
    ):
        model = () if "-m" in arguments else (tiny,)
        assert command("chat", *model, *GREEDY, *arguments, stdin=stdin).stdout == answer + "\n", arguments


def test_plain_text_is_continued_without_a_template(command, tiny):
    with Model.load(tiny, n_threads=1) as model:
        expected = model.generate("the hand", max_tokens=12).text
    assert command("chat", tiny, *GREEDY, "-no-cnv", stdin="the hand\n").stdout == expected + "\n"


def test_a_full_context_is_told_and_the_conversation_stays(command, tiny, expected):
    done = command("chat", tiny, *GREEDY, "-c", "64", stdin=f"the hand\n{'x' * 200}\n/undo\nthe hand\n")
    (answer,) = expected("the hand")
    assert "error: context: the prompt has" in done.stderr
    assert "/undo or /clear" in done.stderr
    assert done.stdout == f"{answer}\n(taken back; 0 messages remain)\n{answer}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.gguf"], "models/README.md"),
        (["Qwen/Qwen3-30B-A3B"], "nothing is downloaded"),
        (["TINY", "--temp", "-1"], "temperature"),
        (["TINY", "--ram", "1KiB"], "the budget is 1.00 KiB"),
        (["TINY", "--ram", "lots"], "ram: 'lots' is not a size"),
        (["TINY", "--vram", "8GiB"], "there is no device to use it on"),
        (["TINY", "--device", "cuda"], "'cuda' was asked for"),
        (["TINY", "-p", "a", "-f", "b"], "not both"),
        (["TINY", "--chat-template-file", "absent.jinja"], "absent.jinja"),
        (["TINY", "--chat-template", "tool_use"], "it has: default"),
        (["TINY", "--chat-template", "a", "--chat-template-file", "b"], "not both"),
        (["TINY", "--chat-template-file", "/dev/null"], "no brace"),
        (["TINY", "-n", "-5"], "max_tokens: expected a whole number from -1"),
        (["TINY", "-s", "-5"], "seed: expected a whole number from -1"),
        (["TINY", "-p", " "], "empty"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_code_2(command, tiny, arguments, text):
    done = command("chat", *[str(tiny) if a == "TINY" else a for a in arguments], stdin="x\n")
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_model_without_template_says_what_to_do(command, tmp_path):
    path = write(tmp_path / "bare.gguf", Shape(template=False))
    done = command("chat", path, stdin="x\n")
    assert done.returncode == 2
    assert "--chat-template-file" in done.stderr


def test_empty_input_is_no_error(command, tiny):
    done = command("chat", tiny, stdin="\n\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_broken_saved_conversation_changes_nothing(command, tiny, tmp_path):
    file = tmp_path / "talk.json"
    good = {"moepic_chat": 1, "messages": [], "system": None, "settings": {}}
    for broken, why in (
        ("{}", "'moepic_chat' is missing"), ("[" * 100_000, "recursion"), ("null", "not a conversation"),
        (json.dumps({**good, "moepic_chat": 2}), "version 2, expected 1"), (json.dumps({**good, "system": 5}), "system: expected text"),
        (json.dumps({**good, "settings": {"temperature": "hot"}}), "temperature: expected"), (json.dumps({**good, "settings": {"stop": 5}}), "stop: expected"),
        (json.dumps({**good, "messages": [{"role": "user"}]}), "'content' is missing"),
    ):  # fmt: skip
        file.write_text(broken)
        done = command("chat", tiny, *GREEDY, stdin=f"/set top_k 7\n/load {file}\n/show history\n/show settings\n")
        assert why in done.stdout, broken[:80]
        assert "(no messages)" in done.stdout
        assert "top_k              7 " in done.stdout
        assert done.stderr == ""


def test_a_home_of_nobody_is_an_ordinary_name(command, tiny):
    done = command("chat", tiny, *GREEDY, stdin="/load ~nobody-here/x\n/read ~nobody-here/x\n/save ~nobody-here/x\n")
    assert (done.returncode, done.stdout.count("No such file"), done.stderr) == (0, 3, "")


def shell(line, tmp_path, **env):
    return subprocess.run(
        ["bash", "-c", line], env={**os.environ, "XDG_STATE_HOME": str(tmp_path), **env}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_absent_and_full_streams_are_no_traceback(tiny, tmp_path):
    chat = f"{sys.executable} -m moepic_gguf.cli.chat {tiny} -n 3"
    for line, code, errors in (
        (f"{chat} <&-", 0, ""),
        (f"{chat} -p hi >&-", 0, ""),
        (f"{chat} -p hi >/dev/full", 2, "error: No space left on device\n"),
        (f"set -o pipefail; {chat} -p hi -n 400 --ignore-eos | true", 141, ""),
    ):
        done = shell(line, tmp_path)
        assert (done.returncode, done.stderr) == (code, errors), line


def test_an_encoding_that_cannot_show_the_answer_shows_question_marks(tiny, tmp_path):
    chat = f"{sys.executable} -m moepic_gguf.cli.chat {tiny} -n 30 --temp 1 --seed 3 -p x"
    done = shell(chat, tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


def test_a_cache_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    done = shell(f"{sys.executable} -m moepic_gguf.cli.chat -p hi", tmp_path, MOEPIC_CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 2
    assert "MOEPIC_CACHE_DIR names another folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_without_an_answer_leaves_the_conversation_as_it_was(command, tiny, expected):
    (answer,) = expected("the hand")
    said = f"[user] the hand\n[assistant] {answer}\n"
    silent = "/set max_tokens 0\n{}\n/set max_tokens 12\n/show history\n"
    for line in ("an inn", "/regen"):
        done = command("chat", tiny, *GREEDY, stdin="the hand\n" + silent.format(line))
        assert done.stdout.endswith("max_tokens = 12\n" + said), line
    full = command(
        "chat", tiny, *GREEDY, "-c", "64", stdin=f"the hand\n/system {'x' * 200}\n/regen\n/system none\n/show history\n"
    )
    assert "error: context" in full.stderr
    assert full.stdout.endswith(said)
