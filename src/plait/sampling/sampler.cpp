// The native half of plait/sampling: neighbour sampling. One call does one batch on the thread that calls it; batches run
// beside each other, each with a workspace of its own.
// reference.py has the same picks, bit for bit: change both.
//
// Legend: row = number of a node inside the batch (per node type), relation = edge type, tree = the seed a node was found from.

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "picks.h"
#include "random.h"
#include "tables.h"

namespace {

// ----------------------------------------------------------------------------------------------- what Python hands over

struct Relation {
    int32_t src_type, dst_type;
    const int64_t* indptr;     // [num_dst + 1]
    const int32_t* indices;    // [E] src by dst; with time, by time inside a dst
    const int64_t* time;       // [E] or null: of the edge, or of its src
    const double* weight;      // [E] or null, positive
    const double* cumulative;  // [E] or null: weights summed from the first edge of the dst on
};

struct Graph {
    int32_t num_types, num_relations;
    const int64_t* num_nodes;  // [types]
    const Relation* relations;
};

enum Flags : int32_t { REPLACE = 1, DISJOINT = 2, LAST = 4, INDUCED = 8 };

struct Request {
    uint64_t key;  // of (seed, epoch, batch)
    int32_t hops, flags;
    const int64_t* fanouts;            // [hops, relations]; -1 is all
    const int64_t* const* seeds;       // [types] -> ids
    const int64_t* num_seeds;          // [types]
    const int64_t* const* seed_times;  // [types] -> time of every seed, or null
};

// ------------------------------------------------------------------------------------------------------------ workspace

struct Nodes {
    std::vector<int64_t> ids;   // [rows]
    std::vector<int32_t> trees; // [rows] when disjoint
    std::vector<uint64_t> keys; // [rows] what the table knows a row by
};

struct Edges {
    std::vector<int32_t> src, dst;   // rows
    std::vector<int64_t> positions;  // in the relation's order
};

struct Pick {
    int64_t position;
    int32_t dst;
    int32_t src;
};

constexpr int64_t DENSE_LIMIT = 1 << 25;  // nodes of a type: above, a table for every thread would cost too much memory
constexpr int CHUNK = 512;                // picks whose cache misses overlap

struct Workspace {
    Graph graph;
    std::vector<int64_t> num_nodes;
    std::vector<Relation> relations;
    std::vector<DenseTable> dense;
    std::vector<HashTable> hashed;
    std::vector<Nodes> nodes;  // by type
    std::vector<Edges> edges;  // by relation
    std::vector<int64_t> nodes_per_hop, edges_per_hop;  // [types, hops + 1], [relations, hops]
    std::vector<int64_t> tree_times;
    Picks picks;
    Pick chunk[CHUNK];

    explicit Workspace(const Graph& given)
        : graph(given), num_nodes(given.num_nodes, given.num_nodes + given.num_types),
          relations(given.relations, given.relations + given.num_relations), dense(given.num_types),
          hashed(given.num_types), nodes(given.num_types), edges(given.num_relations) {}
};

// ------------------------------------------------------------------------------------------------------------ one batch

// How many of the row's edges are not later than the seed: they come first.
int64_t num_valid(const Relation& r, int64_t begin, int64_t end, bool timed, int64_t time) {
    if (!timed) return end - begin;
    return std::upper_bound(r.time + begin, r.time + end, time) - (r.time + begin);
}

template <class Table>
struct Sampling {
    Workspace& w;
    const Request& request;
    std::vector<Table>& tables;
    bool disjoint;

    uint64_t key_of(int64_t id, int32_t tree) const { return disjoint ? uint64_t(tree) << 32 | uint32_t(id) : uint64_t(id); }

    void add_seeds() {
        int32_t tree = 0;
        w.tree_times.clear();
        for (int32_t type = 0; type < w.graph.num_types; ++type) {
            Nodes& nodes = w.nodes[type];
            for (int64_t i = 0; i < request.num_seeds[type]; ++i, ++tree) {
                const int64_t id = request.seeds[type][i];
                const uint64_t key = key_of(id, tree);
                tables[type].add(key, int32_t(nodes.ids.size()));
                nodes.ids.push_back(id);  // a seed given twice has two rows
                nodes.keys.push_back(key);
                if (disjoint) nodes.trees.push_back(tree);
                if (request.seed_times[type]) w.tree_times.push_back(request.seed_times[type][i]);
            }
        }
    }

    // The chunk's edges: their indices were prefetched when they were picked; now the table's words are, then all are relabelled.
    void flush(int32_t relation, int& filled) {
        const Relation& r = w.relations[relation];
        Nodes& src = w.nodes[r.src_type];
        const Nodes& dst = w.nodes[r.dst_type];
        Table& table = tables[r.src_type];
        Edges& edges = w.edges[relation];
        for (int i = 0; i < filled; ++i) {
            Pick& pick = w.chunk[i];
            pick.src = r.indices[pick.position];
            table.prefetch(key_of(pick.src, disjoint ? dst.trees[pick.dst] : 0));
        }
        for (int i = 0; i < filled; ++i) {
            const Pick& pick = w.chunk[i];
            const int32_t tree = disjoint ? dst.trees[pick.dst] : 0;
            const uint64_t key = key_of(pick.src, tree);
            const int32_t fresh = int32_t(src.ids.size());
            const int32_t row = table.add(key, fresh);
            if (row == fresh) {
                src.ids.push_back(pick.src);
                src.keys.push_back(key);
                if (disjoint) src.trees.push_back(tree);
            }
            edges.src.push_back(row);
            edges.dst.push_back(pick.dst);
            edges.positions.push_back(pick.position);
        }
        filled = 0;
    }

    void push(int32_t relation, int& filled, int64_t position, int64_t row) {
        if (filled == CHUNK) flush(relation, filled);
        __builtin_prefetch(w.relations[relation].indices + position);
        w.chunk[filled++] = {position, int32_t(row), 0};
    }

    // Fills w.picks.chosen; the number of them.
    int64_t pick(const Relation& r, uint64_t key, int64_t begin, int64_t n, int64_t fanout) {
        const bool replace = request.flags & REPLACE;
        if (int64_t(w.picks.chosen.size()) < fanout) w.picks.chosen.resize(fanout);
        if (request.flags & LAST) {
            for (int64_t t = 0; t < fanout; ++t) w.picks.chosen[t] = n - fanout + t;
        } else if (r.weight && replace) {
            weighted_with_replacement(w.picks, r.cumulative + begin, key, n, fanout);
        } else if (r.weight) {
            weighted_without_replacement(w.picks, r.weight + begin, r.cumulative + begin, key, n, fanout);
        } else if (replace) {
            for (int64_t t = 0; t < fanout; ++t) w.picks.chosen[t] = below(draw(key, t), n);
        } else {
            floyd(w.picks, key, n, fanout);
        }
        return fanout;
    }

    void expand(int32_t relation, int64_t fanout, int64_t row_begin, int64_t row_end) {
        const Relation& r = w.relations[relation];
        const bool timed = r.time && !w.tree_times.empty();
        const bool all_if_fewer = !(request.flags & REPLACE) || request.flags & LAST;
        const uint64_t relation_key = draw(request.key, relation);
        int filled = 0;
        for (int64_t row = row_begin; row < row_end; ++row) {
            const Nodes& dst = w.nodes[r.dst_type];  // may grow in a flush
            if (row + 16 < row_end) __builtin_prefetch(r.indptr + dst.ids[row + 16]);
            const int64_t begin = r.indptr[dst.ids[row]], end = r.indptr[dst.ids[row] + 1];
            const int64_t n = num_valid(r, begin, end, timed, timed ? w.tree_times[dst.trees[row]] : 0);
            if (n == 0) continue;
            if (fanout < 0 || (all_if_fewer && n <= fanout)) {
                for (int64_t i = 0; i < n; ++i) push(relation, filled, begin + i, row);
                continue;
            }
            const int64_t count = pick(r, draw(relation_key, row), begin, n, fanout);
            for (int64_t t = 0; t < count; ++t) push(relation, filled, begin + w.picks.chosen[t], row);
        }
        flush(relation, filled);
    }

    // All edges between the nodes of the batch, in place of those that found them.
    void induce(int32_t relation) {
        const Relation& r = w.relations[relation];
        const Nodes& dst = w.nodes[r.dst_type];
        const bool timed = r.time && !w.tree_times.empty();
        Edges& edges = w.edges[relation];
        edges = Edges();
        for (size_t row = 0; row < dst.ids.size(); ++row) {
            const int64_t begin = r.indptr[dst.ids[row]], end = r.indptr[dst.ids[row] + 1];
            const int32_t tree = disjoint ? dst.trees[row] : 0;
            const int64_t n = num_valid(r, begin, end, timed, timed ? w.tree_times[tree] : 0);
            for (int64_t i = begin; i < begin + n; ++i) {
                const int32_t src = tables[r.src_type].find(key_of(r.indices[i], tree));
                if (src < 0) continue;
                edges.src.push_back(src);
                edges.dst.push_back(int32_t(row));
                edges.positions.push_back(i);
            }
        }
    }

    void run() {
        const int32_t types = w.graph.num_types, relations = w.graph.num_relations, hops = request.hops;
        w.nodes_per_hop.assign(size_t(types) * (hops + 1), 0);
        w.edges_per_hop.assign(size_t(relations) * hops, 0);
        for (int32_t type = 0; type < types; ++type) tables[type].prepare(w.num_nodes[type]);
        add_seeds();
        std::vector<int64_t> begin(types, 0), end(types);
        for (int32_t type = 0; type < types; ++type) {
            end[type] = int64_t(w.nodes[type].ids.size());
            w.nodes_per_hop[size_t(type) * (hops + 1)] = end[type];
        }
        for (int32_t hop = 0; hop < hops; ++hop) {
            for (int32_t relation = 0; relation < relations; ++relation) {
                const int32_t type = w.relations[relation].dst_type;
                const size_t before = w.edges[relation].src.size();
                expand(relation, request.fanouts[int64_t(hop) * relations + relation], begin[type], end[type]);
                w.edges_per_hop[size_t(relation) * hops + hop] = int64_t(w.edges[relation].src.size() - before);
            }
            for (int32_t type = 0; type < types; ++type) {
                begin[type] = end[type];
                end[type] = int64_t(w.nodes[type].ids.size());
                w.nodes_per_hop[size_t(type) * (hops + 1) + hop + 1] = end[type] - begin[type];
            }
        }
        if (request.flags & INDUCED) {
            for (int32_t relation = 0; relation < relations; ++relation) induce(relation);
        }
    }
};

template <class Table>
void sample_with(Workspace& w, const Request& request, std::vector<Table>& tables) {
    // Whatever stops a batch, the tables are empty for the next one.
    struct Reset {
        Workspace& w;
        std::vector<Table>& tables;
        ~Reset() {
            for (size_t type = 0; type < tables.size(); ++type) tables[type].clear(w.nodes[type].keys);
        }
    } reset{w, tables};
    Sampling<Table>{w, request, tables, bool(request.flags & DISJOINT)}.run();
}

}  // namespace

extern "C" {

void* plait_sampler_new(const Graph* graph) {
    try {
        return new Workspace(*graph);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void plait_sampler_delete(void* workspace) { delete static_cast<Workspace*>(workspace); }

// 0, or 1 if memory is short. The result stays in the workspace until the next call.
int plait_sampler_run(void* workspace, const Request* request) {
    Workspace& w = *static_cast<Workspace*>(workspace);
    for (Nodes& nodes : w.nodes) {
        nodes.ids.clear();
        nodes.trees.clear();
        nodes.keys.clear();
    }
    for (Edges& edges : w.edges) {
        edges.src.clear();
        edges.dst.clear();
        edges.positions.clear();
    }
    bool hashed = request->flags & DISJOINT;
    for (int64_t count : w.num_nodes) hashed |= count > DENSE_LIMIT;
    try {
        if (hashed) {
            sample_with(w, *request, w.hashed);
        } else {
            sample_with(w, *request, w.dense);
        }
    } catch (const std::bad_alloc&) {
        for (DenseTable& table : w.dense) table.clear_all();
        return 1;
    }
    return 0;
}

// nodes_per_hop [types, hops + 1], edges_per_hop [relations, hops], num_edges [relations].
void plait_sampler_counts(void* workspace, int64_t* nodes_per_hop, int64_t* edges_per_hop, int64_t* num_edges) {
    const Workspace& w = *static_cast<Workspace*>(workspace);
    std::copy(w.nodes_per_hop.begin(), w.nodes_per_hop.end(), nodes_per_hop);
    std::copy(w.edges_per_hop.begin(), w.edges_per_hop.end(), edges_per_hop);
    for (size_t r = 0; r < w.edges.size(); ++r) num_edges[r] = int64_t(w.edges[r].src.size());
}

void plait_sampler_nodes(void* workspace, int32_t type, int64_t* ids, int64_t* trees) {
    const Nodes& nodes = static_cast<Workspace*>(workspace)->nodes[type];
    std::copy(nodes.ids.begin(), nodes.ids.end(), ids);
    if (trees) std::copy(nodes.trees.begin(), nodes.trees.end(), trees);
}

// src, dst: rows; edge_id: positions in the user's order, found through `perm` (4 or 8 bytes an entry; null: the same order).
void plait_sampler_edges(
    void* workspace, int32_t relation, const void* perm, int32_t perm_bytes, int64_t* src, int64_t* dst, int64_t* edge_id) {
    const Edges& edges = static_cast<Workspace*>(workspace)->edges[relation];
    std::copy(edges.src.begin(), edges.src.end(), src);
    std::copy(edges.dst.begin(), edges.dst.end(), dst);
    const int64_t count = int64_t(edges.positions.size());
    if (!perm) {
        std::copy(edges.positions.begin(), edges.positions.end(), edge_id);
    } else if (perm_bytes == 4) {
        for (int64_t i = 0; i < count; ++i) {
            if (i + 32 < count) __builtin_prefetch(static_cast<const int32_t*>(perm) + edges.positions[i + 32]);
            edge_id[i] = static_cast<const int32_t*>(perm)[edges.positions[i]];
        }
    } else {
        for (int64_t i = 0; i < count; ++i) edge_id[i] = static_cast<const int64_t*>(perm)[edges.positions[i]];
    }
}

// Weights summed up inside every row, one after the other: cumulative [E].
void plait_cumulate(const int64_t* indptr, int64_t num_rows, const double* weight, double* cumulative) {
    for (int64_t row = 0; row < num_rows; ++row) {
        double sum = 0;
        for (int64_t i = indptr[row]; i < indptr[row + 1]; ++i) {
            sum += weight[i];
            cumulative[i] = sum;
        }
    }
}

}  // extern "C"
