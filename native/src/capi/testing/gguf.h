// Test-only: the GGUF reader over bytes in memory, and what the public moepic_file_* functions leave out. A file opened here is a
// moepic_file like any other: read it with moepic_file_* and free it with moepic_file_free.
#pragma once

#include "moepic.h"

/* cdef: begin */
/* What one element of a value converts to; has_* is 0 or 1. text points into the file's bytes. */
typedef struct moepic_test_gguf_element {
    int has_i64, has_u64, has_f64, has_bool, has_text;
    int64_t i64;
    uint64_t u64;
    double f64;
    int boolean;
    moepic_text text;
} moepic_test_gguf_element;

/* Parse n bytes, which must outlive the file. `name` is what messages call it. E_FORMAT, E_UNSUPPORTED. */
MOEPIC_API int moepic_test_gguf_parse(moepic_file** out, const void* bytes, uint64_t n, const char* name);

MOEPIC_API int moepic_test_gguf_facts(uint32_t* version, uint64_t* alignment, const moepic_file* file);

/* Element `index` of key `key`; an index past the end has nothing. */
MOEPIC_API int moepic_test_gguf_get(moepic_test_gguf_element* out, const moepic_file* file, int64_t key, uint64_t index);

/* Position of a name, or -1. */
MOEPIC_API int moepic_test_gguf_find_key(int64_t* out, const moepic_file* file, const char* name);
MOEPIC_API int moepic_test_gguf_find_tensor(int64_t* out, const moepic_file* file, const char* name);

/* Bytes [at, at + n) of a tensor's data, read by calls. */
MOEPIC_API int moepic_test_gguf_read(uint8_t* out, const moepic_file* file, int64_t tensor, uint64_t at, uint64_t n);
/* cdef: end */
