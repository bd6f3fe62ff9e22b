// From the ids of nodes to their rows in a batch: a word for every node of the graph, or a hash table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "random.h"

namespace {

// One word a node of the graph. A batch leaves it empty again by clearing the words it touched.
struct DenseTable {
    int32_t* words = nullptr;  // row + 1, 0 is empty
    int64_t size = 0;

    ~DenseTable() { free(words); }
    void prepare(int64_t num_nodes) {
        if (words) return;
        // calloc: pages that no batch touches are never made
        words = static_cast<int32_t*>(calloc(std::max<int64_t>(num_nodes, 1), sizeof(int32_t)));
        if (!words) throw std::bad_alloc();
        size = num_nodes;
    }
    void prefetch(uint64_t key) const { __builtin_prefetch(words + key, 1); }
    int32_t find(uint64_t key) const { return words[key] - 1; }
    int32_t add(uint64_t key, int32_t row) {  // the row of key, `row` if it is new
        int32_t& word = words[key];
        if (!word) word = row + 1;
        return word - 1;
    }
    void clear(const std::vector<uint64_t>& keys) {
        for (uint64_t key : keys) words[key] = 0;
    }
    void clear_all() {  // after a batch that ran out of memory: it may have touched words that it did not note
        if (words) memset(words, 0, size * sizeof(int32_t));
    }
};

// Open addressing, for keys that are too many for a word each. The stamp of a slot says which batch wrote it.
struct HashTable {
    struct Slot {
        uint64_t key;
        uint32_t stamp;
        int32_t row;
    };
    std::vector<Slot> slots;
    uint32_t stamp = 1;
    int64_t used = 0;

    void prepare(int64_t) {
        if (slots.empty()) slots.assign(1024, Slot{0, 0, 0});
    }
    size_t home(uint64_t key) const { return mix(key) & (slots.size() - 1); }
    void prefetch(uint64_t key) const { __builtin_prefetch(&slots[home(key)], 1); }
    int32_t find(uint64_t key) const {
        for (size_t at = home(key);; at = (at + 1) & (slots.size() - 1)) {
            if (slots[at].stamp != stamp) return -1;
            if (slots[at].key == key) return slots[at].row;
        }
    }
    int32_t add(uint64_t key, int32_t row) {
        if (2 * (used + 1) > int64_t(slots.size())) grow();
        for (size_t at = home(key);; at = (at + 1) & (slots.size() - 1)) {
            Slot& slot = slots[at];
            if (slot.stamp != stamp) {
                slot = {key, stamp, row};
                ++used;
                return row;
            }
            if (slot.key == key) return slot.row;
        }
    }
    void grow() {
        std::vector<Slot> old(2 * slots.size(), Slot{0, 0, 0});
        old.swap(slots);
        for (const Slot& slot : old) {
            if (slot.stamp != stamp) continue;
            size_t at = home(slot.key);
            while (slots[at].stamp == stamp) at = (at + 1) & (slots.size() - 1);
            slots[at] = slot;
        }
    }
    void clear(const std::vector<uint64_t>&) {
        used = 0;
        if (++stamp == 0) {  // after 2^32 batches
            slots.assign(slots.size(), Slot{0, 0, 0});
            stamp = 1;
        }
    }
};

}  // namespace
