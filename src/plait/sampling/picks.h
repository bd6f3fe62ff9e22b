// Picks among the edges of one row: k of n, uniform or by weight, with and without replacement.
// reference.py has the same picks, bit for bit: change both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "random.h"
#include "tables.h"

namespace {

constexpr int SMALL = 64;  // up to so many picks, looking through them all is quicker than a set

// Of one row. A sampler has one, so that rows do not allocate.
struct Picks {
    std::vector<int64_t> chosen, sorted;
    HashTable taken;  // when there are more than SMALL

    Picks() { taken.prepare(0); }
};

// k of [0, n) without replacement, every set equally likely (R. Floyd): step t draws from [0, j] with j included, and takes j
// itself where the draw is taken already.
void floyd(Picks& picks, uint64_t key, int64_t n, int64_t k) {
    const bool small = k <= SMALL;
    for (int64_t t = 0; t < k; ++t) {
        const int64_t j = n - k + t;
        int64_t pick = below(draw(key, t), j + 1);
        if (small) {
            bool seen = false;
            for (int64_t i = 0; i < t; ++i) seen |= picks.chosen[i] == pick;
            if (seen) pick = j;
        } else if (picks.taken.add(pick, int32_t(t)) != int32_t(t)) {
            pick = j;
            picks.taken.add(pick, int32_t(t));
        }
        picks.chosen[t] = pick;
    }
    if (!small) picks.taken.clear({});
}

// The first of n positions whose cumulative weight is above v; n if there is none.
int64_t position_of(const double* cumulative, int64_t n, double v) {
    return std::upper_bound(cumulative, cumulative + n, v) - cumulative;
}

void weighted_with_replacement(Picks& picks, const double* cumulative, uint64_t key, int64_t n, int64_t k) {
    uint64_t counter = 0;
    for (int64_t t = 0; t < k; ++t) {
        int64_t pick = n;  // rounding can reach n: drawn again then
        while (pick == n) pick = position_of(cumulative, n, unit(draw(key, counter++)) * cumulative[n - 1]);
        picks.chosen[t] = pick;
    }
}

// The position of v in the weights that are left, looked for one by one: exact however small those are beside the taken ones.
int64_t scan_left(const std::vector<int64_t>& sorted, const double* weight, int64_t n, double u) {
    double left = 0;
    size_t next = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (next < sorted.size() && sorted[next] == i) ++next;
        else left += weight[i];
    }
    const double v = u * left;
    double sum = 0;
    int64_t last = -1;
    next = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (next < sorted.size() && sorted[next] == i) {
            ++next;
            continue;
        }
        last = i;
        sum += weight[i];
        if (sum > v) return i;
    }
    return last;
}

// One after the other, each in proportion to its weight among those that are left.
void weighted_without_replacement(
    Picks& picks, const double* weight, const double* cumulative, uint64_t key, int64_t n, int64_t k) {
    const double total = cumulative[n - 1];
    double taken = 0;
    picks.sorted.clear();
    for (int64_t t = 0; t < k; ++t) {
        const double u = unit(draw(key, t));
        const double left = total - taken;
        int64_t pick = n;
        if (left >= total * 0x1p-20) {
            double v = u * left;
            for (int64_t p : picks.sorted) {  // step over what is taken
                if (v < (p ? cumulative[p - 1] : 0.0)) break;
                v += weight[p];
            }
            pick = position_of(cumulative, n, v);
        }
        auto place = std::lower_bound(picks.sorted.begin(), picks.sorted.end(), pick);
        if (pick == n || (place != picks.sorted.end() && *place == pick)) {  // no digits left, or rounding hit a taken one
            pick = scan_left(picks.sorted, weight, n, u);
            place = std::lower_bound(picks.sorted.begin(), picks.sorted.end(), pick);
        }
        picks.sorted.insert(place, pick);
        picks.chosen[t] = pick;
        taken += weight[pick];
    }
}

}  // namespace
