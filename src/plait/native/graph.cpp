// The native half of plait/graph.py: content hashes, checks of index maps, and the stable counting sort behind an ordering.
// Every result is the same for any number of threads: a stable sort has one answer, and hashes are cut by a fixed size.
//
// An index map is passed as (data, stride in elements, bytes per element: 4 or 8); E is its length.

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace {

typedef uint64_t Lanes __attribute__((vector_size(64)));

constexpr int64_t SERIAL_LENGTH = 1 << 15;  // below this, waking threads costs more than it brings

int threads_for(int64_t length, int threads) { return length < 2 * SERIAL_LENGTH ? 1 : std::max(threads, 1); }

int64_t chunk_begin(int64_t length, int chunk, int chunks) {
    return int64_t((__int128)length * chunk / chunks);
}

// ---------------------------------------------------------------------------------------------------------------- hash

constexpr int STREAMS = 8;                 // independent chains, to hide the latency of a 64-bit multiplication
constexpr int64_t GROUP = 8 * STREAMS;     // words read by one step of all chains
constexpr int64_t CHUNK = 16384;           // words hashed on their own; a multiple of GROUP
constexpr uint64_t K1 = 0x9E3779B97F4A7C15ull, K2 = 0xC2B2AE3D27D4EB4Full, K3 = 0x165667B19E3779F9ull;

uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93ull;
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93ull;
    return x ^ (x >> 32);
}

struct Digest {
    uint64_t a, b;
    void add(uint64_t x, uint64_t y) {
        a = mix((a ^ x) * K1 + K3);
        b = mix((b + y) * K2 + a);
    }
};

// Eight words from position i on, as signed 64-bit values.
template <class T>
struct Dense {
    const T* data;
    Lanes operator()(int64_t i) const {
        Lanes out;
        if (sizeof(T) == 8) {
            memcpy(&out, data + i, 64);
            return out;
        }
        for (int l = 0; l < 8; ++l) out[l] = uint64_t(int64_t(data[i + l]));
        return out;
    }
    int64_t word(int64_t i) const {
        T value;
        memcpy(&value, data + i, sizeof value);  // plain bytes need not be aligned
        return int64_t(value);
    }
};

template <class T>
struct Strided {
    const T* data;
    int64_t stride;
    Lanes operator()(int64_t i) const {
        Lanes out;
        for (int l = 0; l < 8; ++l) out[l] = uint64_t(int64_t(data[(i + l) * stride]));
        return out;
    }
    int64_t word(int64_t i) const { return int64_t(data[i * stride]); }
};

// `a` is a bijection of the word and of the state before it: one changed word always changes it. `b` sums up what `a` went through, so
// two changes that cancel in `a` are still there. One multiplication only, as AVX-512 does one at a time and it sets the pace.
inline void absorb(Lanes& a, Lanes& b, const Lanes& x) {
    a = (a ^ x) * K1;
    a = (a << 29) | (a >> 35);
    b = ((b << 23) | (b >> 41)) + (a ^ x);
}

template <class Load>
Digest hash_chunk(const Load& load, int64_t begin, int64_t end) {
    Lanes a[STREAMS], b[STREAMS];
    for (int s = 0; s < STREAMS; ++s) {
        for (int l = 0; l < 8; ++l) {
            a[s][l] = K3 * uint64_t(8 * s + l + 1);
            b[s][l] = ~a[s][l];
        }
    }
    int64_t i = begin;
    for (; i + GROUP <= end; i += GROUP) {
        for (int s = 0; s < STREAMS; ++s) absorb(a[s], b[s], load(i + 8 * s));
    }
    if (i < end) {  // the rest, filled up with zeros; the length is part of the key
        uint64_t rest[GROUP] = {};
        for (int64_t k = i; k < end; ++k) rest[k - i] = uint64_t(load.word(k));
        for (int s = 0; s < STREAMS; ++s) {
            Lanes x;
            memcpy(&x, rest + 8 * s, 64);
            absorb(a[s], b[s], x);
        }
    }
    for (int half = STREAMS / 2; half > 0; half /= 2) {
        for (int s = 0; s < half; ++s) absorb(a[s], b[s], a[s + half]);
        for (int s = 0; s < half; ++s) absorb(a[s], b[s], b[s + half]);
    }
    Digest digest = {K1, K2};
    for (int l = 0; l < 8; ++l) digest.add(a[0][l], b[0][l]);
    return digest;
}

template <class Load>
Digest hash_words(const Load& load, int64_t length, int threads) {
    const int64_t chunks = (length + CHUNK - 1) / CHUNK;
    std::vector<Digest> digests(chunks);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        digests[c] = hash_chunk(load, c * CHUNK, std::min(length, (c + 1) * CHUNK));
    }
    Digest total = {K2, K3 ^ uint64_t(length)};
    for (const Digest& digest : digests) total.add(digest.a, digest.b);
    return total;
}

// --------------------------------------------------------------------------------------------------------------- checks

template <class T>
struct Map {
    const T* data;
    int64_t stride;
    int64_t operator[](int64_t i) const { return int64_t(data[i * stride]); }
};

struct Flags {
    bool outside, unsorted;
};

template <class T, class Stride>
Flags scan_range(const T* data, Stride stride, uint64_t size, int64_t begin, int64_t end) {
    int64_t outside = 0, unsorted = 0;
    T last = begin ? data[(begin - 1) * stride] : (begin < end ? data[begin * stride] : 0);
    if (begin < end) {
        unsorted |= data[begin * stride] < last;
        outside |= uint64_t(int64_t(data[begin * stride])) >= size;
    }
    for (int64_t i = begin + 1; i < end; ++i) {
        unsorted |= data[i * stride] < data[(i - 1) * stride];
        outside |= uint64_t(int64_t(data[i * stride])) >= size;
    }
    return {outside != 0, unsorted != 0};
}

template <class T>
int64_t scan(const T* data, int64_t stride, int64_t length, int64_t size, int threads) {
    int outside = 0, unsorted = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(| : outside, unsorted)
    for (int t = 0; t < threads; ++t) {
        const int64_t begin = chunk_begin(length, t, threads), end = chunk_begin(length, t + 1, threads);
        Flags flags = stride == 1 ? scan_range(data, std::integral_constant<int64_t, 1>(), size, begin, end)
                                  : scan_range(data, stride, size, begin, end);
        outside |= flags.outside;
        unsorted |= flags.unsorted;
    }
    if (!outside) return unsorted ? -1 : -2;
    for (int64_t i = 0;; ++i) {
        if (uint64_t(int64_t(data[i * stride])) >= uint64_t(size)) return i;
    }
}

// ----------------------------------------------------------------------------------------------------------------- sort

// Memory for the length of one call, on huge pages where the system has them.
class Scratch {
  public:
    explicit Scratch(size_t bytes) : bytes_(bytes + HUGE) {
        base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        data_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(base_) + HUGE - 1) & ~uintptr_t(HUGE - 1));
        if (bytes >= 2 * HUGE) madvise(data_, bytes, MADV_HUGEPAGE);
    }
    ~Scratch() { munmap(base_, bytes_); }
    Scratch(const Scratch&) = delete;
    template <class T>
    T* as() const { return static_cast<T*>(data_); }

  private:
    static constexpr size_t HUGE = size_t(1) << 21;
    size_t bytes_;
    void *base_, *data_;
};

// An int32 or int64 array to write to.
struct Column {
    void* data;
    int bytes;
};

constexpr int PAYLOAD_BITS = 44;
constexpr uint64_t PAYLOAD_MASK = (uint64_t(1) << PAYLOAD_BITS) - 1;
constexpr int64_t MAX_BUCKETS = 2048;        // streams written at once: their lines fit in L2
constexpr int64_t BUCKET_LENGTH = 1 << 14;   // entries a bucket should have: its part of the output fits in L2
constexpr int64_t BUCKET_ROWS = 1 << 15;

struct Position {
    int64_t operator[](int64_t i) const { return i; }
};

// Stable: thread t places its chunk behind the chunks before it, bucket by bucket. place(bucket, where, row, payload).
template <class Row, class Payload, class Place>
void scatter(Map<Row> rows, const Payload& payload, int64_t length, int shift, int64_t buckets, int threads, int64_t* starts,
             const Place& place) {
    std::vector<int64_t> counts(size_t(threads) * buckets, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        // The team may be smaller than asked for: chunks are dealt out, not assumed to be one per thread.
#pragma omp for schedule(static)
        for (int t = 0; t < threads; ++t) {
            int64_t* mine = counts.data() + t * buckets;
            const int64_t end = chunk_begin(length, t + 1, threads);
            for (int64_t i = chunk_begin(length, t, threads); i < end; ++i) ++mine[rows[i] >> shift];
        }
#pragma omp single
        {
            int64_t total = 0;
            for (int64_t b = 0; b < buckets; ++b) {
                starts[b] = total;
                for (int t = 0; t < threads; ++t) {
                    const int64_t count = counts[t * buckets + b];
                    counts[t * buckets + b] = total;
                    total += count;
                }
            }
            starts[buckets] = total;
        }
#pragma omp for schedule(static)
        for (int t = 0; t < threads; ++t) {
            int64_t* mine = counts.data() + t * buckets;
            const int64_t end = chunk_begin(length, t + 1, threads);
            for (int64_t i = chunk_begin(length, t, threads); i < end; ++i) {
                const int64_t row = rows[i];
                place(mine[row >> shift]++, row, payload[i]);
            }
        }
    }
}

// One row per bucket: the buckets are the answer.
template <class Row, class Payload, class Out>
void sort_direct(Map<Row> rows, const Payload& payload, int64_t length, int64_t num_rows, int64_t* indptr, Out* out, int threads) {
    scatter(rows, payload, length, 0, num_rows, threads, indptr,
            [out](int64_t where, int64_t, int64_t value) { out[where] = Out(value); });
}

// Two levels: entries go to buckets of neighbouring rows (8 bytes each, row and payload packed), then every bucket is sorted in cache.
template <class Row, class Payload, class Out>
void sort_buckets(Map<Row> rows, const Payload& payload, int64_t length, int64_t num_rows, int64_t* indptr, Out* out, int threads) {
    const int64_t wanted = std::min(MAX_BUCKETS, std::max(length / BUCKET_LENGTH, num_rows / BUCKET_ROWS) + 1);
    int shift = 0;
    while (((num_rows - 1) >> shift) >= wanted) ++shift;
    const int64_t buckets = ((num_rows - 1) >> shift) + 1, local_rows = int64_t(1) << shift;
    Scratch scratch(size_t(length) * 8);
    uint64_t* packed = scratch.as<uint64_t>();
    std::vector<int64_t> starts(buckets + 1);
    scatter(rows, payload, length, shift, buckets, threads, starts.data(), [=](int64_t where, int64_t row, int64_t value) {
        packed[where] = uint64_t(row & (local_rows - 1)) << PAYLOAD_BITS | uint64_t(value);
    });
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<int64_t> cursor(local_rows);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < buckets; ++b) {
            const int64_t first_row = b << shift, count = std::min(local_rows, num_rows - first_row);
            std::fill(cursor.begin(), cursor.begin() + count, 0);
            for (int64_t i = starts[b]; i < starts[b + 1]; ++i) ++cursor[packed[i] >> PAYLOAD_BITS];
            int64_t total = starts[b];
            for (int64_t r = 0; r < count; ++r) {
                const int64_t here = cursor[r];
                indptr[first_row + r] = cursor[r] = total;
                total += here;
            }
            for (int64_t i = starts[b]; i < starts[b + 1]; ++i) {
                out[cursor[packed[i] >> PAYLOAD_BITS]++] = Out(packed[i] & PAYLOAD_MASK);
            }
        }
    }
    indptr[num_rows] = length;
}

template <class Row, class Payload, class Out>
void sort_into(Map<Row> rows, const Payload& payload, int64_t length, int64_t num_rows, int64_t* indptr, Out* out, int threads) {
    const bool packs = length <= int64_t(PAYLOAD_MASK) && num_rows <= (MAX_BUCKETS << (64 - PAYLOAD_BITS));
    if (length < SERIAL_LENGTH || !packs) return sort_direct(rows, payload, length, num_rows, indptr, out, 1);
    if (num_rows <= MAX_BUCKETS) return sort_direct(rows, payload, length, num_rows, indptr, out, threads);
    sort_buckets(rows, payload, length, num_rows, indptr, out, threads);
}

template <class Row>
void sort_rows(Map<Row> rows, int64_t length, int64_t num_rows, const void* payload, int64_t payload_stride, int payload_bytes,
               int64_t* indptr, Column out, int threads) {
    int32_t* narrow = static_cast<int32_t*>(out.data);
    if (payload == nullptr && out.bytes == 8) {
        return sort_into(rows, Position(), length, num_rows, indptr, static_cast<int64_t*>(out.data), threads);
    }
    if (payload == nullptr) return sort_into(rows, Position(), length, num_rows, indptr, narrow, threads);
    if (payload_bytes == 4) {
        Map<int32_t> map = {static_cast<const int32_t*>(payload), payload_stride};
        return sort_into(rows, map, length, num_rows, indptr, narrow, threads);
    }
    Map<int64_t> map = {static_cast<const int64_t*>(payload), payload_stride};
    sort_into(rows, map, length, num_rows, indptr, narrow, threads);
}

// -------------------------------------------------------------------------------------------------------------- permute

constexpr int64_t PREFETCH_DISTANCE = 24;

template <class Id, class In, class Out>
void permute(const Id* edge_id, Map<In> in, Out* out, int64_t length, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
        const int64_t end = chunk_begin(length, t + 1, threads);
        for (int64_t k = chunk_begin(length, t, threads); k < end; ++k) {
            __builtin_prefetch(in.data + edge_id[std::min(k + PREFETCH_DISTANCE, end - 1)] * in.stride);
            out[k] = Out(in[edge_id[k]]);
        }
    }
}

template <class Id, class In>
void permute_to(const Id* edge_id, Map<In> in, Column out, int64_t length, int threads) {
    if (out.bytes == 4) return permute(edge_id, in, static_cast<int32_t*>(out.data), length, threads);
    permute(edge_id, in, static_cast<int64_t*>(out.data), length, threads);
}

template <class Id>
void permute_from(const Id* edge_id, const void* data, int64_t stride, int bytes, Column out, int64_t length, int threads) {
    if (bytes == 4) return permute_to(edge_id, Map<int32_t>{static_cast<const int32_t*>(data), stride}, out, length, threads);
    permute_to(edge_id, Map<int64_t>{static_cast<const int64_t*>(data), stride}, out, length, threads);
}

template <class Row>
void pointers_of_sorted(Map<Row> rows, int64_t length, int64_t num_rows, int64_t* indptr, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
        const int64_t begin = chunk_begin(length, t, threads), end = chunk_begin(length, t + 1, threads);
        int64_t last = begin ? rows[begin - 1] : -1;
        for (int64_t i = begin; i < end; ++i) {
            for (const int64_t row = rows[i]; last < row;) indptr[++last] = i;
        }
    }
    const int64_t last = length ? rows[length - 1] : -1;
    std::fill(indptr + last + 1, indptr + num_rows + 1, length);
}

}  // namespace

extern "C" {

// 128-bit hash of `length` values to out[2]. bytes 4, 8: integers, equal values give equal hashes whatever their width;
// bytes 1: `length` plain bytes, stride ignored.
void plait_hash(const void* data, int64_t length, int64_t stride, int bytes, int threads, uint64_t* out) {
    Digest digest;
    if (bytes == 1) {
        const int64_t words = length / 8;
        digest = hash_words(Dense<int64_t>{static_cast<const int64_t*>(data)}, words, threads_for(words, threads));
        uint64_t rest = 0;
        if (length % 8 != 0) memcpy(&rest, static_cast<const char*>(data) + words * 8, length % 8);
        digest.add(rest, uint64_t(length));
    } else if (bytes == 4) {
        const int32_t* values = static_cast<const int32_t*>(data);
        const int team = threads_for(length, threads);
        digest = stride == 1 ? hash_words(Dense<int32_t>{values}, length, team)
                             : hash_words(Strided<int32_t>{values, stride}, length, team);
    } else {
        const int64_t* values = static_cast<const int64_t*>(data);
        const int team = threads_for(length, threads);
        digest = stride == 1 ? hash_words(Dense<int64_t>{values}, length, team)
                             : hash_words(Strided<int64_t>{values, stride}, length, team);
    }
    out[0] = digest.a;
    out[1] = digest.b;
}

// The first position whose entry is outside [0, size); -2 if there is none and the entries ascend, -1 if there is none.
int64_t plait_scan(const void* data, int64_t length, int64_t stride, int bytes, int64_t size, int threads) {
    const int team = threads_for(length, threads);
    if (bytes == 4) return scan(static_cast<const int32_t*>(data), stride, length, size, team);
    return scan(static_cast<const int64_t*>(data), stride, length, size, team);
}

// Stable counting sort by row: writes indptr[num_rows + 1] and, sorted, the payload to `out`: another map (as int32), or the positions
// if it is null (as int32 or int64, out_bytes). Entries must be inside their ranges. 0, or 1 if there is no memory.
int plait_sort(const void* rows, int64_t length, int64_t stride, int bytes, int64_t num_rows, const void* payload,
               int64_t payload_stride, int payload_bytes, int64_t* indptr, void* out, int out_bytes, int threads) {
    try {
        const Column column = {out, out_bytes};
        if (bytes == 4) {
            Map<int32_t> map = {static_cast<const int32_t*>(rows), stride};
            sort_rows(map, length, num_rows, payload, payload_stride, payload_bytes, indptr, column, threads);
        } else {
            Map<int64_t> map = {static_cast<const int64_t*>(rows), stride};
            sort_rows(map, length, num_rows, payload, payload_stride, payload_bytes, indptr, column, threads);
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// indptr[num_rows + 1] of rows that already ascend.
void plait_pointers(const void* rows, int64_t length, int64_t stride, int bytes, int64_t num_rows, int64_t* indptr, int threads) {
    const int team = threads_for(length, threads);
    if (bytes == 4) return pointers_of_sorted(Map<int32_t>{static_cast<const int32_t*>(rows), stride}, length, num_rows, indptr, team);
    pointers_of_sorted(Map<int64_t>{static_cast<const int64_t*>(rows), stride}, length, num_rows, indptr, team);
}

// out[k] = map[edge_id[k]]
void plait_permute(const void* data, int64_t length, int64_t stride, int bytes, const void* edge_id, int id_bytes, void* out,
                   int out_bytes, int threads) {
    const int team = threads_for(length, threads);
    const Column column = {out, out_bytes};
    if (id_bytes == 4) return permute_from(static_cast<const int32_t*>(edge_id), data, stride, bytes, column, length, team);
    permute_from(static_cast<const int64_t*>(edge_id), data, stride, bytes, column, length, team);
}
}
