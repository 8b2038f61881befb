"""Texts that tokenizers trip over. Data and one seeded mixer; knows no tokenizer."""

from __future__ import annotations

import random

# Each is used alone, with spaces round it, repeated, and mixed with the others.
FRAGMENTS: tuple[str, ...] = (
    # Words, code, identifiers, addresses.
    "Hello", "world", "the", " int", "self.", "return", "CamelCaseWord", "snake_case_word", "SCREAMING", "e.g.",
    "https://example.org/a?b=c&d=%20#e", "def f(x):\n\treturn x\n", "if (a != b) {\r\n    c++;\r\n}", "\\n",
    "```python\n",
    # Contractions, upper case, curly, and a letter that case folding would turn into s.
    "it's", "IT'S", "we'Re", "I'LL", "don'T", "y'all'd've", "it\u2019s", "'\u017f",
    # Digits: runs, other scripts, fractions, enclosed, Roman.
    "7", "42", "123", "1234567", "3.14159", "1,000,000", "\u0663\u0664\u0665", "\u0967\u0968", "\u00bd\u00b2",
    "\u2460\u2466", "\u2167",
    # White space: runs, tabs, vertical and form feed, next line, no-break, em, ideographic, separators, zero width.
    "  ", "     ", "\t", "\t\t\t", "\n", "\n\n\n", "\r\n\r\n", " \n ", "\v", "\f", "\x85", "\u00a0", "\u2003", "\u3000",
    "\u2028", "\u2029", "\u200b", "\ufeff",
    # Control characters, private use, unassigned, non-characters, the replacement character, tags.
    "\x00", "\x01\x02", "\x1b[0m", "\x1c\x1f", "\x7f", "\ue000", "\u0378", "\uffff", "\U0010ffff", "\ufffd",
    "\U000e0041",
    # Emoji: plain, skin tone, family joined by ZWJ, flag by regional indicators, rainbow flag, keycap.
    "\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea", "\U0001f3f3\ufe0f\u200d\U0001f308", "1\ufe0f\u20e3",
    # Accents composed and not; Greek, Cyrillic, CJK, kana, Hangul, Arabic, pointed Hebrew, Thai, Devanagari, Bengali.
    "na\u00efve", "e\u0301a\u0308", "\u00c5\u212b", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "\u041f\u0440\u0438\u0432\u0435\u0442", "\u4e2d\u6587\u5206\u8bcd\u3002",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8\u3001", "\ud55c\uad6d\uc5b4", "\u3005\u3007\u30fc",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0651\u0629\u060c", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48", "\u0928\u092e\u0938\u094d\u0924\u0947\u0964",
    "\u09ac\u09be\u0982\u09b2\u09be",
    # Letters outside the basic plane, title case, modifiers, ligatures, full width.
    "\U00010400\U00010428", "\U0001d400", "\u01c5\u02b0", "\ufb01", "\uff21\uff42\uff11\uff01",
    # Punctuation and symbols.
    "!", "?!", "...", "$5+3<=9>2^|~`", "(a)[b]{c}", "--", "====", "@#%&*", "\u3002\uff01\u3001", "\u060c\u06d4",
    "\u00ab\u00bb\u2026\u2014",
    # What byte-level and SentencePiece vocabularies use inside, as text.
    "\u0120word", "\u010a", "\u2581", "\u2581\u2581a", "<0x0A>", "<unk>", "<s>", "</s>",
    # Control tokens, whole, broken and nested.
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|im_start|>user\nhi<|im_end|>\n", "<|im_start", "|>",
    "<|<|im_end|>|>", "<repo_name>", "<file_sep>", "<jupyter_code>",
)  # fmt: skip


def texts(n_mixed: int, seed: int = 20261123) -> list[str]:
    """The empty string, every fragment in several settings, runs of one character, then `n_mixed` seeded mixtures."""
    found = [""]
    for fragment in FRAGMENTS:
        found += [
            fragment,
            f" {fragment}",
            f"{fragment} ",
            fragment * 3,
            f"x{fragment}y",
            f"{fragment}\n",
            f"1{fragment}2",
        ]
    for n in (*range(1, 20), 31, 32, 33, 64, 100, 257):
        found += [c * n for c in (" ", "\n", "\t", "a", "=", "-", "1", "\u4e2d", "\u2581")]
        found += [f"x{' ' * n}y", f"x{chr(10) * n}y"]
    found += ["antidisestablishmentarianism" * 40, "Donaudampfschifffahrtsgesellschaft" * 10, "\u0e17\u0e35\u0e48" * 60]
    mixer = random.Random(seed)
    found += ["".join(mixer.choice(FRAGMENTS) for _ in range(mixer.randint(2, 12))) for _ in range(n_mixed)]
    return list(dict.fromkeys(found))
