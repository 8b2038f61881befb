#include "capi/testing/vector.h"

#include <ctime>
#include <vector>

#include "capi/guard.h"
#include "capi/kernels_of.h"
#include "ops/ops.h"

// Not in the table of ops: exp is reached through others, and tested by itself.
namespace moepic::ops {
namespace scalar {
void exp_each(float* x, int64_t n);
}
#if MOEPIC_X86
namespace avx2 {
void exp_each(float* x, int64_t n);
}
namespace avx512 {
void exp_each(float* x, int64_t n);
}
#endif
}  // namespace moepic::ops

namespace {

using moepic::Code;
using moepic::fail;
using moepic::guard;
using moepic::kernels_of;
namespace ops = moepic::ops;

// CPU time of this thread: what a neighbour takes from the core does not count.
double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

ops::KvView view_of(const moepic_test_kv& kv) {
    ops::KvView view;
    view.type = kv.type == 0 ? ops::KvType::f16 : ops::KvType::q8_0;
    const int64_t multiple = kv.type == 0 ? 2 : 32;
    if (kv.head_dim_k % multiple != 0 || kv.head_dim_v % multiple != 0 || kv.capacity % ops::kKvBlock != 0) {
        fail(Code::argument, "kv: head dims must be multiples of ", multiple, " and the capacity of ", ops::kKvBlock);
    }
    view.n_head_kv = kv.n_head_kv;
    view.head_dim_k = kv.head_dim_k;
    view.head_dim_v = kv.head_dim_v;
    view.capacity = kv.capacity;
    view.keys = static_cast<std::byte*>(kv.keys);
    view.values = static_cast<std::byte*>(kv.values);
    return view;
}

}  // namespace

int moepic_test_isa(int isa, int* available, const char** name) {
    return guard([&] {
        const ops::Isa which = static_cast<ops::Isa>(isa);
        *available = ops::find_kernels(which) != nullptr;
        *name = ops::isa_name(which);
    });
}

int moepic_test_vector(int isa, int op, float* x, int64_t n) {
    return guard([&] {
        const ops::Kernels& kernels = kernels_of(isa);
        if (op == 1) return kernels.sigmoid(x, n);
        if (op == 2) return kernels.softmax(x, n);
        if (op == 3) return kernels.soft_cap(x, 30.0f, n);
        if (op != 0) fail(Code::argument, "ops: no vector op has the number ", op);
        switch (kernels.isa) {
            case ops::Isa::scalar:
                return ops::scalar::exp_each(x, n);
#if MOEPIC_X86
            case ops::Isa::avx2:
                return ops::avx2::exp_each(x, n);
            case ops::Isa::avx512:
                return ops::avx512::exp_each(x, n);
#else
            default:
                fail(Code::unsupported, "ops: x86 only");
#endif
        }
    });
}

int moepic_test_rms_norm(int isa, const float* x, const float* weight, float eps, float* y, int64_t n) {
    return guard([&] { kernels_of(isa).rms_norm(x, weight, eps, y, n); });
}

int moepic_test_layer_norm(int isa, const float* x, const float* weight, const float* bias, float eps, float* y, int64_t n) {
    return guard([&] { kernels_of(isa).layer_norm(x, weight, bias, eps, y, n); });
}

int moepic_test_rope(int isa, float* head, const float* cos_sin, int64_t n_rot, int pairing) {
    return guard([&] { kernels_of(isa).rope(head, cos_sin, n_rot, pairing == 0 ? ops::RopePairing::norm : ops::RopePairing::neox); });
}

int moepic_test_glu(int isa, int kind, const float* gate, const float* up, float* out, int64_t n) {
    return guard([&] { kernels_of(isa).glu(static_cast<ops::GluKind>(kind), gate, up, out, n); });
}

int moepic_test_scale_add(int isa, float* y, float a, const float* x, int64_t n, int plain) {
    return guard([&] {
        if (plain != 0) {
            kernels_of(isa).add(y, x, n);
        } else if (x == nullptr) {
            kernels_of(isa).scale(y, a, n);
        } else {
            kernels_of(isa).scale_add(y, a, x, n);
        }
    });
}

int moepic_test_kv_bytes(const moepic_test_kv* kv, int64_t* keys_bytes, int64_t* values_bytes) {
    return guard([&] {
        const ops::KvView view = view_of(*kv);
        *keys_bytes = static_cast<int64_t>(ops::kv_bytes(view.type, view.n_head_kv, view.head_dim_k, view.capacity));
        *values_bytes = static_cast<int64_t>(ops::kv_bytes(view.type, view.n_head_kv, view.head_dim_v, view.capacity));
    });
}

int moepic_test_kv_store(int isa, const moepic_test_kv* kv, int64_t pos, int64_t n, const float* k, const float* v) {
    return guard([&] {
        const ops::Kernels& kernels = kernels_of(isa);
        const ops::KvView view = view_of(*kv);
        const bool ring = view.capacity % ops::kKvRing == 0;
        if (pos < 0 || n < 0 || (pos + n > view.capacity && !ring))
            fail(Code::argument, "kv: positions ", pos, "+", n, " exceed ", view.capacity);
        for (int64_t i = 0; i < n; ++i) {
            kernels.kv_store(view, pos + i, k + i * view.n_head_kv * view.head_dim_k, v + i * view.n_head_kv * view.head_dim_v);
        }
    });
}

namespace {

// Filled with NaN bytes, so that a result that depends on scratch shows.
class Scratch {
public:
    std::byte* data() { return bytes_.data() + (64 - reinterpret_cast<uintptr_t>(bytes_.data()) % 64) % 64; }

private:
    std::vector<std::byte> bytes_ = std::vector<std::byte>(ops::kAttentionScratchBytes + 64, std::byte{0xff});
};

ops::AttentionJob attention_job(const moepic_test_kv& kv, const float* q, float* out, int64_t n_head, int64_t first_pos, int64_t token_end,
                                float scale, int64_t window, const float* sinks) {
    ops::AttentionJob job;
    job.kv = view_of(kv);
    if (n_head % job.kv.n_head_kv != 0 || (first_pos + token_end > job.kv.capacity && job.kv.capacity % ops::kKvRing != 0)) {
        fail(Code::argument, "attention: ", n_head, " heads over ", job.kv.n_head_kv, ", position ", first_pos + token_end, " of ",
             job.kv.capacity);
    }
    job.q = q;
    job.out = out;
    job.n_head = job.head_end = n_head;
    job.first_pos = first_pos;
    job.token_end = token_end;
    job.scale = scale;
    job.window = window < 0 ? -window : window;
    job.chunked = window < 0;
    job.sinks = sinks;
    return job;
}

}  // namespace

int moepic_test_attention(int isa, const moepic_test_kv* kv, const float* q, float* out, int64_t n_head, int64_t first_pos,
                          int64_t token_begin, int64_t token_end, int64_t head_begin, int64_t head_end, float scale, int64_t window,
                          const float* sinks, int repeats, double* seconds) {
    return guard([&] {
        const ops::Kernels& kernels = kernels_of(isa);
        Scratch scratch;
        ops::AttentionJob job = attention_job(*kv, q, out, n_head, first_pos, token_end, scale, window, sinks);
        job.token_begin = token_begin;
        job.head_begin = head_begin;
        job.head_end = head_end;
        job.scratch = scratch.data();
        double best = 1e30;
        for (int i = 0; i < repeats; ++i) {
            const double begin = thread_seconds();
            kernels.attention(job);
            const double took = thread_seconds() - begin;
            best = took < best ? took : best;
        }
        if (seconds != nullptr) *seconds = best;
    });
}

int moepic_test_attention_split(int isa, const moepic_test_kv* kv, const float* q, float* out, int64_t n_head, int64_t first_pos,
                                int64_t n_tokens, float scale, int64_t window, const float* sinks) {
    return guard([&] {
        const ops::Kernels& kernels = kernels_of(isa);
        Scratch scratch;
        ops::AttentionJob job = attention_job(*kv, q, out, n_head, first_pos, n_tokens, scale, window, sinks);
        job.scratch = scratch.data();
        job.first_chunk = ops::first_seen(first_pos, job.window, job.chunked) / ops::kKvChunk;
        const int64_t last_chunk = (first_pos + n_tokens - 1) / ops::kKvChunk;
        job.n_chunks = last_chunk - job.first_chunk + 1;
        std::vector<float> parts(static_cast<size_t>(n_tokens * n_head * job.n_chunks * ops::attention_part_floats(job.kv.head_dim_v)),
                                 __builtin_nanf(""));
        job.parts = parts.data();
        for (job.chunk = last_chunk; job.chunk >= job.first_chunk; --job.chunk) kernels.attention(job);
        kernels.attention_join(job);
    });
}
