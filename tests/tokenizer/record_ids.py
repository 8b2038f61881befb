"""Record what llama.cpp says: `python -m tests.tokenizer.record_ids` writes `smollm2_ids.json` from the corpus.

Needs llama-cpp-python. The file lets the comparison run where llama.cpp is not installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import llama_cpp

from .corpus import texts
from .sources import smollm2_path

FIXTURE = Path(__file__).with_name("smollm2_ids.json")
N_MIXED = 150


def main() -> None:
    path = smollm2_path()
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocab = peer._model.vocab
    rows = []
    for text in texts(N_MIXED):
        plain, special = (peer.tokenize(text.encode(), add_bos=True, special=flag) for flag in (False, True))
        rows.append([text, plain, special] if plain != special else [text, plain])
    record = {
        "origin": f"llama-cpp-python {llama_cpp.__version__}, Llama(vocab_only=True).tokenize(text, add_bos=True, "
        f"special=...) on {path.name}, written by tests/tokenizer/record_ids.py",
        "rows_are": "[text, ids with special=False, ids with special=True where they differ]",
        "stop_ids": [i for i in range(peer.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, i)],
        "control_ids": [i for i in range(peer.n_vocab()) if llama_cpp.llama_vocab_is_control(vocab, i)],
    }
    head = json.dumps(record, indent=1)[:-2]
    body = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in rows)
    FIXTURE.write_text(f'{head},\n "rows": [\n{body}\n ]\n}}\n', encoding="ascii")
    print(f"{FIXTURE.name}: {len(rows)} texts, {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
