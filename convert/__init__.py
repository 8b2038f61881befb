"""The converter: Hugging Face folders and GGUF files in, pre-split GGUF out (`docs/design.md`, section 2). No torch
anywhere.

to_gguf.py   arguments and order of work          sources/   what an input offers: tensors, experts, keys
plan.py      what will be written, and its size   arch/      names, shapes and keys per architecture
granule.py   where an expert may be cut           quantize.py  which type a tensor gets, and its bytes
writer.py    bytes to disk, safely                vocabulary.py  tokenizer and chat template
"""
