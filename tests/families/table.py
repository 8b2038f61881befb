"""Which check every model family goes through: docs/families.md, made from what pytest collects, so that it cannot say more
than the tests do.

    python -m tests.families.table           write the page
    python -m tests.families.table --check   fail where it is not what the tests say
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from convert.arch import FAMILIES
from tests.making import built
from tests.tiny.models import MODELS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "families.md"
# Column -> the test whose parameters fill it.
CHECKS = {
    "logits": "test_logits_equal_transformers",
    "greedy text": "test_greedy_text_equals_transformers_until_a_near_tie",
    "weights": "test_every_weight_arrives_unchanged_in_f32",
    "fused": "test_the_fused_layout_and_the_pre_split_file_give_the_same_logits",
    "threads": "test_threads_do_not_matter",
    "kernels": "test_kernel_sets_do_not_matter",
    "batch": "test_batch_size_does_not_matter",
    "decode": "test_a_token_alone_equals_a_token_in_a_prompt",
    "cut": "test_the_cut_of_the_file_does_not_matter",
    "layouts": "test_the_layout_of_an_ordinary_file_does_not_matter",
    "streamed": "test_the_budget_does_not_matter",
    "guess": "test_a_guess_is_what_the_router_says_where_the_layers_between_add_nothing",
    "ring": "test_a_ring_gives_the_bytes_of_a_whole_cache_and_is_smaller",
    "state": "test_truncating_anywhere_and_going_on_equals_a_fresh_sequence",
    "llama.cpp": "test_llama_cpp_gives_the_logits_of_transformers",
}
HEAD = """# Families and checks

Made by `python -m tests.families.table` from what pytest collects; a test keeps it current. A number says how many variants of a family
(other layer patterns, head counts, ropes, routers; tests/tiny/models.py) go through a check; a dash: none.

- **logits**: float32, against transformers within a derived bound; **greedy text**: 64 steps from each of four prompts.
- **weights**: every weight of the hub's files and of the fused layout arrives in its place; **fused**: logits again from the fused layout,
  pre-split.
- **threads, kernels, batch, decode, cut**: bytes are equal whatever the threads, instruction set, batch size, position in a prompt, split.
- **layouts**: bytes are equal from llama.cpp's ways to store experts: gates and ups apart or in one tensor, one file or shards.
- **streamed**: bytes are equal when experts come from the file, whatever the budget; **guess**: prefetch asks
  what the next layer's router would choose.
- **ring**: layers with a window keep only it, and give the bytes of a cache that keeps everything.
- **state**: layers that fold the past into a state go back, reuse and regenerate to the bytes of a fresh sequence.
- **llama.cpp** reads the converted file and computes the same (`./dev test -m peer`); what it cannot express is named in
  tests/convert/test_peer.py.

"""


def collected() -> dict[str, set[str]]:
    """Test function -> names of `MODELS` among its parameters."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "peer or not peer"]
    folders = ["tests/families", "tests/gates", "tests/convert", "tests/engine"]
    listing = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: dict[str, set[str]] = defaultdict(set)
    for name, parameters in re.findall(r"::(\w+)\[(.+)\]$", listing, re.MULTILINE):
        found[name] |= MODELS.keys() & set(parameters.split("-"))
    return found


def page() -> str:
    """The whole text of docs/families.md."""
    variants: dict[str, list[str]] = defaultdict(list)  # of a builder of tests/tiny/models.py
    for name, make in MODELS.items():
        variants[getattr(make, "func", make).__name__].append(name)
    found = collected()
    rows = []
    for names in variants.values():
        family = FAMILIES[built(names[0])[0].model_type]
        counts = [len(found[test] & set(names)) for test in CHECKS.values()]
        rows.append((family.arch, family.title, *(str(count or "-") for count in counts)))
    lines = [("GGUF id", "family", *CHECKS), ("---", "---", *("---:" for _ in CHECKS)), *sorted(rows)]
    return HEAD + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    text = page()
    if "--check" in sys.argv:
        if PAGE.read_text() != text:
            sys.exit("docs/families.md is not what the tests say; run python -m tests.families.table")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
