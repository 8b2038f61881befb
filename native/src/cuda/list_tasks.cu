// From the experts of a few tokens to the tasks of their granules, and what the host is told of it (TaskListJob).
//
// One block; a thread takes (token, expert, granule) and finds its entry's place by counting smaller ids among the n k there are: 8 for a
// token of most models, at most some 200. So a layer waits for two rounds through L2 and a loop over shared memory, in place of a letter to
// the host, its planning, and a table that comes back. Not measured.
#include "cuda/route.h"
#include "cuda/simt.h"

namespace moepic::device {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) list_tasks_kernel(TaskListJob job) {
    auto* const ids = shared_memory<int32_t>();  // [n][k]
    const int k = static_cast<int>(job.k), n_ids = static_cast<int>(job.n) * k, n_granules = static_cast<int>(job.n_granules);
    const int thread = static_cast<int>(threadIdx.x);
    const uint64_t letter = *job.letters.n_written, at_letter = letter % job.letters.n_letters;
    int32_t* const told = job.letters.ids + at_letter * job.letters.most_ids;
    for (int i = thread; i < n_ids; i += kThreads) told[i] = ids[i] = job.ids[i];
    __syncthreads();
    for (int task = thread; task < n_ids * n_granules; task += kThreads) {
        const int i = task / n_granules, granule = task % n_granules, id = ids[i];
        int entry = 0, n_same = 0, same_before = 0;  // ids that are smaller; tokens that use this expert; those of them before this one
        for (int other = 0; other < n_ids; ++other) {
            entry += ids[other] < id;
            n_same += ids[other] == id;
            same_before += ids[other] == id && other < i;
        }
        entry += same_before;
        const std::byte* const data = job.granules[static_cast<int64_t>(id) * n_granules + granule];
        const int at = entry * n_granules + granule;
        job.tasks[at] = {data, granule, entry, same_before == 0 ? n_same : 0, at};
        if (granule > 0) continue;
        const int token = i / k;
        job.entry_token[entry] = token;
        if (job.weights) job.entry_weight[entry] = job.weights[i];
        job.token_entry[token * (k + 1) + i % k] = entry;
        if (i % k == 0) job.token_entry[token * (k + 1) + k] = token;
    }
    if (thread > 0) return;
    *job.letters.n_written = letter + 1;  // all have read it before the barrier, as all of `told` was written
    store_release(job.letters.flags + at_letter, static_cast<uint32_t>(letter + 1));
}

}  // namespace

int32_t list_tasks(const TaskListJob& job, Stream stream) {
    return launch(list_tasks_kernel, dim3(1), dim3(kThreads), static_cast<size_t>(job.n * job.k) * sizeof(int32_t), stream, job);
}

}  // namespace moepic::device
