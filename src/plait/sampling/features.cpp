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
    if (magnitude >= 0x7C00) {  // infinity, NaN (a quiet one, as the processor makes it)
        bits = 0x7F800000u | (magnitude & 0x3FF) << 13 | (magnitude > 0x7C00 ? 0x400000u : 0);
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

void widen_halves(const uint16_t* from, int64_t count, float* to) {
    int64_t k = 0;
#if defined(__F16C__)
    for (; k + 8 <= count; k += 8) {
        _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k))));
    }
#endif
    for (; k < count; ++k) to[k] = from_half(from[k]);
}

void widen_bfloats(const uint16_t* from, int64_t count, float* to) {
    for (int64_t k = 0; k < count; ++k) {
        const uint32_t bits = uint32_t(from[k]) << 16;
        memcpy(to + k, &bits, 4);
    }
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

// Rows are asked for before they are copied, into the second cache: into the first one it takes a third more time, probably
// because lines on their way in and lines that are streamed out share its few buffers (benchmarks/loader_slicing.py --variants).
constexpr int64_t AHEAD_BYTES = 32 << 10;
constexpr int64_t MIN_AHEAD = 4, MAX_AHEAD = 64;  // rows
constexpr int64_t ASKED_BYTES = 1024;             // of a row: the processor goes on by itself
// From so many bytes on a batch is written past the caches, where it would not stay anyway: memory then does not have to read
// the lines that are about to be overwritten. Quicker also where all of the batch is read at once after it (the same benchmark).
constexpr int64_t STREAM_BYTES = 4 << 20;
constexpr int64_t MIN_STREAM_ROW = 64;  // below, putting lines together costs more than it saves
constexpr int64_t CHUNK = 512;          // numbers widened at a time

void ask_for(const char* row, int64_t bytes) {
    const char* end = row + std::min(bytes, ASKED_BYTES);
    for (const char* line = row - reinterpret_cast<uintptr_t>(row) % 64; line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

// Where rows go, one after the other.
struct CachedWriter {
    char* out;

    void put(const char* from, int64_t bytes) {
        memcpy(out, from, bytes);
        out += bytes;
    }
    void end() {}
};

#if defined(__AVX__)
void stream_line(char* to, const char* from) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#else
    for (int half = 0; half < 64; half += 32) {
        _mm256_stream_si256(
            reinterpret_cast<__m256i*>(to + half), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + half)));
    }
#endif
}

// Past the caches: `out` is the start of a line, and rows are whole lines.
struct LineWriter {
    char* out;

    void put(const char* from, int64_t bytes) {
        char* to = out;  // a member would be stored and loaded again for every line: it could be what is written
        for (int64_t k = 0; k < bytes; k += 64) stream_line(to + k, from + k);
        out = to + bytes;
    }
    void end() { _mm_sfence(); }  // other threads see the rows before they see that the batch is ready
};

// The same for rows of any length: where one ends inside a line, the next one fills it up.
struct PackedWriter {
    char* out;
    int64_t filled = 0;  // bytes of `line`
    alignas(64) char line[64];

    explicit PackedWriter(char* to) : out(to) {}
    void put(const char* from, int64_t bytes) {
        char* to = out;
        int64_t k = 0;
        if (filled) {
            k = std::min(64 - filled, bytes);
            memcpy(line + filled, from, k);
            filled += k;
            if (filled < 64) return;
            stream_line(to, line);
            to += 64;
        }
        for (; k + 64 <= bytes; k += 64, to += 64) stream_line(to, from + k);
        out = to;
        filled = bytes - k;
        memcpy(line, from + k, filled);
    }
    void end() {
        memcpy(out, line, filled);
        _mm_sfence();
    }
};

bool can_stream(const char* out, int64_t bytes, int64_t count) {
    return bytes >= MIN_STREAM_ROW && bytes * count >= STREAM_BYTES && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}
#endif

template <class Writer>
void put_widened(Writer& writer, const uint16_t* from, int64_t length, void (*widen)(const uint16_t*, int64_t, float*)) {
    float wide[CHUNK];
    for (int64_t begin = 0; begin < length; begin += CHUNK) {
        const int64_t count = std::min(CHUNK, length - begin);
        widen(from + begin, count, wide);
        writer.put(reinterpret_cast<const char*>(wide), count * int64_t(sizeof(float)));
    }
}

template <class Writer>
void gather(const Rows& rows, const int64_t* index, int64_t count, Conversion conversion, Writer writer) {
    const int64_t bytes = rows.bytes, length = bytes / 2;
    const int64_t ahead = std::clamp(AHEAD_BYTES / std::max<int64_t>(bytes, 1), MIN_AHEAD, MAX_AHEAD);
    for (int64_t i = 0; i < std::min(ahead, count); ++i) ask_for(rows.at(index[i]), bytes);
    for (int64_t i = 0; i < count; ++i) {
        if (i + ahead < count) ask_for(rows.at(index[i + ahead]), bytes);
        const char* from = rows.at(index[i]);
        const uint16_t* narrow = reinterpret_cast<const uint16_t*>(from);
        switch (conversion) {
            case COPY: writer.put(from, bytes); break;
            case HALF_TO_FLOAT: put_widened(writer, narrow, length, widen_halves); break;
            case BFLOAT_TO_FLOAT: put_widened(writer, narrow, length, widen_bfloats); break;
        }
    }
    writer.end();
}

}  // namespace

extern "C" {

// out[i] = rows[index[i]], `count` rows, one thread.
void plait_gather(const Rows* rows, const int64_t* index, int64_t count, Conversion conversion, char* out) {
#if defined(__AVX__)
    const int64_t written = conversion == COPY ? rows->bytes : 2 * rows->bytes;
    if (can_stream(out, written, count)) {
        if (conversion == COPY && written % 64 == 0) return gather(*rows, index, count, conversion, LineWriter{out});
        return gather(*rows, index, count, conversion, PackedWriter(out));
    }
#endif
    gather(*rows, index, count, conversion, CachedWriter{out});
}

}  // extern "C"
