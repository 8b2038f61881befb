"""moepic-chat on a pseudo-terminal: what a person at the keyboard sees."""

from __future__ import annotations

import os
import re
import sys
import time

import pexpect
import pytest


@pytest.fixture
def chat(tmp_path):
    opened = []

    def start(*arguments, until=">>>"):
        child = pexpect.spawn(
            sys.executable, ["-m", "moepic_gguf.cli.chat", *map(str, arguments)], encoding="utf-8", codec_errors="replace", timeout=20,
            dimensions=(40, 160), env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
        )  # fmt: skip
        opened.append(child)
        if until is pexpect.EOF:
            child.expect(until)
        else:
            child.expect_exact(until)
        return child

    yield start
    for child in opened:
        child.close(force=True)


def say(child, text):
    child.send(text)
    time.sleep(0.2)  # the line editor redraws; enter after it, as a person does
    child.send("\r")


def left_with(child):
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_a_conversation_with_commands(chat, tiny):
    child = chat(tiny, "--temp", "0", "-n", "8")
    say(child, "the hand")
    child.expect_exact(">>>")
    say(child, "/stats")
    child.expect(r"ttft [\d.]+ ms, tpot")
    child.expect_exact(">>>")
    say(child, "/show history")
    child.expect(re.escape("[user] the hand"))
    child.expect(re.escape("[assistant]"))
    child.expect_exact(">>>")
    say(child, "/exit")
    assert left_with(child) == 0


def test_several_lines_are_one_message(chat, tiny):
    child = chat(tiny, "--temp", "0", "-n", "4")
    say(child, '"""first')
    child.expect_exact("...")
    say(child, 'second"""')
    child.expect_exact(">>>")
    say(child, "/show history")
    child.expect(r"\[user\] first\r\nsecond\r\n")
    child.expect_exact(">>>")
    child.sendeof()
    assert left_with(child) == 0


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(chat, slow):
    child = chat(slow, "--temp", "1", "--seed", "1", "-c", "8192", "--ignore-eos")
    say(child, "the hand")
    time.sleep(2.5)
    start = time.monotonic()
    child.sendintr()
    child.expect_exact("stopped")
    assert time.monotonic() - start < 3
    child.expect_exact(">>>")
    say(child, "/show history")
    child.expect(re.escape("[assistant]"))  # what was said is kept
    child.expect_exact(">>>")
    say(child, "again")
    time.sleep(0.5)
    child.sendintr()
    child.expect_exact("stopped")
    child.expect_exact(">>>")
    time.sleep(0.2)
    child.sendintr()
    assert left_with(child) == 0


def test_a_long_prompt_shows_how_far_it_is_and_can_be_stopped(chat, slow, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("the hand and the inn " * 250)
    child = chat(slow, "-c", "8192", "-b", "64", "-n", "2")
    say(child, f"/read {long}")
    child.expect(r"prompt: \d+ of \d+ tokens")
    child.sendintr()
    child.expect_exact("stopped")
    child.expect_exact(">>>")
    say(child, "/show history")
    child.expect_exact("(no messages)")  # nothing was answered
    child.expect_exact(">>>")
    say(child, "/exit")
    assert left_with(child) == 0


def test_at_the_prompt_ctrl_c_drops_the_line_then_warns_then_leaves(chat, tiny):
    child = chat(tiny)
    child.send("half a line")
    time.sleep(0.2)
    child.sendintr()
    child.expect_exact(">>>")
    time.sleep(0.2)
    child.sendintr()
    child.expect_exact("Ctrl-C again leaves")
    time.sleep(0.2)
    child.sendintr()
    assert left_with(child) == 0


def test_control_characters_do_not_reach_the_terminal(chat, tiny):
    from moepic_gguf.cli.common import harmless

    assert harmless("a\x1b[2Ja\x7f\x9b\r\n\tz") == "a\u241b[2Ja\u2421\ufffd\u240d\n\tz"
    child = chat(tiny, "-sys", "be\x1b[2Jkind", "--temp", "0", "-n", "2")
    say(child, "/show system")
    child.expect_exact("be\u241b[2Jkind")
    child.expect_exact(">>>")
    once = chat(tiny, "-p", "the", "--temp", "1.5", "--seed", "1", "-n", "200", "--ignore-eos", until=pexpect.EOF)
    without_bar = re.sub(r"\x1b\[\??[\d;]*[a-zA-Z]", "", once.before)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", without_bar)
    assert re.search(r"[\u2400-\u2421]", once.before)
