// Slicing: the rows of a batch, copied from wherever a graph's features are. One call runs on the thread that calls it.

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

float from_half(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7FFF;
    uint32_t bits;
    float value;
    if (magnitude >= 0x7C00) {  // infinity, NaN
        bits = 0x7F800000u | (magnitude & 0x3FF) << 13;
    } else if (magnitude >= 0x400) {
        bits = (magnitude << 13) + (112u << 23);
    } else {  // subnormal: magnitude * 2^-24
        value = float(magnitude) * 0x1p-24f;
        memcpy(&bits, &value, 4);
    }
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

float from_bfloat(uint16_t h) {
    const uint32_t bits = uint32_t(h) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

enum Conversion : int32_t { COPY = 0, HALF_TO_FLOAT = 1, BFLOAT_TO_FLOAT = 2 };

struct Rows {
    const char* data;       // row id at data + id * stride
    int64_t stride, bytes;  // of one row
    const int32_t* slots;   // [N] or null: row of `hot` that holds a copy, -1 if none does
    const char* hot;        // rows without gaps
    const char* at(int64_t id) const {
        if (slots && slots[id] >= 0) return hot + slots[id] * bytes;
        return data + id * stride;
    }
};

constexpr int64_t AHEAD = 8;  // rows asked for before they are copied: enough to hide memory's latency
// From so many bytes on a batch is written past the caches, where it would not stay anyway: memory then does not have to read
// the lines that are about to be overwritten. Half the time for 162 thousand rows of 512 bytes (`plait bench loader`, slicing).
constexpr int64_t STREAM_BYTES = 4 << 20;

bool can_stream(const char* out, int64_t bytes, int64_t count) {
#if defined(__AVX__)
    return bytes % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0 && bytes * count >= STREAM_BYTES;
#else
    (void)out, (void)bytes, (void)count;
    return false;
#endif
}

void stream_row(char* to, const char* from, int64_t bytes) {
#if defined(__AVX512F__)
    for (int64_t k = 0; k < bytes; k += 64) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), _mm512_loadu_si512(from + k));
    }
#elif defined(__AVX__)
    for (int64_t k = 0; k < bytes; k += 32) {
        _mm256_stream_si256(
            reinterpret_cast<__m256i*>(to + k), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k)));
    }
#else
    memcpy(to, from, bytes);
#endif
}

void end_of_stream() {
#if defined(__AVX__)
    _mm_sfence();  // other threads see the rows before they see that the batch is ready
#endif
}

}  // namespace

extern "C" {

// out[i] = rows[index[i]], `count` rows, one thread.
void plait_gather(const Rows* rows, const int64_t* index, int64_t count, int32_t conversion, char* out) {
    const int64_t bytes = rows->bytes, length = bytes / 2;
    const bool streams = conversion == COPY && can_stream(out, bytes, count);
    for (int64_t i = 0; i < count; ++i) {
        if (i + AHEAD < count) {
            const char* next = rows->at(index[i + AHEAD]);
            for (int64_t line = 0; line < std::min<int64_t>(bytes, 1024); line += 64) __builtin_prefetch(next + line);
        }
        const char* from = rows->at(index[i]);
        if (streams) {
            stream_row(out + i * bytes, from, bytes);
            continue;
        }
        if (conversion == COPY) {
            memcpy(out + i * bytes, from, bytes);
            continue;
        }
        const uint16_t* narrow = reinterpret_cast<const uint16_t*>(from);
        float* wide = reinterpret_cast<float*>(out) + i * length;
        if (conversion == HALF_TO_FLOAT) {
            for (int64_t k = 0; k < length; ++k) wide[k] = from_half(narrow[k]);
        } else {
            for (int64_t k = 0; k < length; ++k) wide[k] = from_bfloat(narrow[k]);
        }
    }
    if (streams) end_of_stream();
}

}  // extern "C"
