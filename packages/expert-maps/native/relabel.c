/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A new plan's ranks take the names under which most of their experts are already there.
 */
#include "plan.h"

#define FORBIDDEN (-(1 << 20)) /* ranks of other sizes */

/* Assign n rows to n columns so that the gains add up to most (Kuhn and Munkres, by shortest augmenting paths).
 * `gain` is [n, n] with rows `stride` apart; scratch is [4 (n + 1)]. Returns the sum; `column_of` is [n]. */
static int64_t assign(int32_t n, const int32_t *gain, size_t stride, int32_t *column_of, int32_t *scratch) {
    int32_t *row_price = scratch, *price = row_price + n + 1, *row_at = price + n + 1, *way = row_at + n + 1;
    memset(scratch, 0, sizeof *scratch * 3 * ((size_t)n + 1));
    int32_t *slack = malloc(sizeof *slack * ((size_t)n + 1));
    char *seen = malloc((size_t)n + 1);
    int64_t sum = 0;
    for (int32_t i = 0; i < n; i++) column_of[i] = i;
    for (int32_t row = 1; slack && seen && row <= n; row++) {
        int32_t column = 0;
        row_at[0] = row;
        for (int32_t j = 0; j <= n; j++) {
            slack[j] = INT32_MAX;
            seen[j] = 0;
        }
        do { /* grow the tree of tight pairs until it meets a free column */
            const int32_t from = row_at[column];
            int32_t delta = INT32_MAX, next = 0;
            seen[column] = 1;
            for (int32_t j = 1; j <= n; j++) {
                if (seen[j]) continue;
                const int32_t cost = -gain[(size_t)(from - 1) * stride + (size_t)(j - 1)];
                const int32_t reduced = cost - row_price[from] - price[j];
                if (reduced < slack[j]) {
                    slack[j] = reduced;
                    way[j] = column;
                }
                if (slack[j] < delta) {
                    delta = slack[j];
                    next = j;
                }
            }
            for (int32_t j = 0; j <= n; j++) {
                if (seen[j]) {
                    row_price[row_at[j]] += delta;
                    price[j] -= delta;
                } else {
                    slack[j] -= delta;
                }
            }
            column = next;
        } while (row_at[column]);
        for (int32_t previous; column; column = previous) {
            previous = way[column];
            row_at[column] = row_at[previous];
        }
    }
    for (int32_t j = 1; slack && seen && j <= n; j++) column_of[row_at[j] - 1] = j - 1;
    for (int32_t i = 0; i < n; i++) sum += gain[(size_t)i * stride + (size_t)column_of[i]];
    free(slack);
    free(seen);
    return sum;
}

typedef struct {
    int32_t *overlap;  /* [ranks, ranks]: experts of a new rank that an old one holds */
    int32_t *named;    /* [nodes, nodes, ranks of a node], the names if a node takes another's place */
    int32_t *node_gain, *node_named, *scratch, *stamp, *offset;
    int32_t *slot;
    double *load;
} Names;

static void names_free(Names *a) {
    void *const arrays[] = {a->overlap, a->named, a->node_gain, a->node_named, a->scratch,
                            a->stamp,   a->offset, a->slot,     a->load};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static int names_init(Names *a, const Problem *problem) {
    const size_t r = (size_t)problem->ranks, n = (size_t)problem->nodes;
    memset(a, 0, sizeof *a);
    a->overlap = calloc(r * r, sizeof *a->overlap);
    a->named = calloc(r * n, sizeof *a->named);
    a->node_gain = calloc(n * n, sizeof *a->node_gain);
    a->node_named = calloc(n, sizeof *a->node_named);
    a->scratch = calloc(4 * (r + 1), sizeof *a->scratch);
    a->stamp = calloc((size_t)problem->experts, sizeof *a->stamp);
    a->offset = calloc(r + 1, sizeof *a->offset);
    a->slot = calloc((size_t)problem->slots, sizeof *a->slot);
    a->load = calloc(r, sizeof *a->load);
    return !a->overlap || !a->named || !a->node_gain || !a->node_named || !a->scratch || !a->stamp || !a->offset ||
           !a->slot || !a->load;
}

static void measure_overlap(Names *a, const Problem *problem, const int32_t *current, const int32_t *slot) {
    const int32_t ranks = (int32_t)problem->ranks;
    for (int32_t i = 0; i < ranks; i++) {
        a->offset[i + 1] = a->offset[i] + problem->capacity[i];
        for (int32_t k = 0; k < problem->capacity[i]; k++) a->stamp[slot[a->offset[i] + k]] = i + 1;
        const int32_t *old = current;
        for (int32_t j = 0; j < ranks; j++) {
            int32_t common = 0;
            for (int32_t k = 0; k < problem->held[j]; k++, old++) common += *old >= 0 && a->stamp[*old] == i + 1;
            a->overlap[(size_t)i * ranks + j] = problem->capacity[i] == problem->capacity[j] ? common : FORBIDDEN;
        }
    }
}

/* Rename ranks within their nodes, and nodes as wholes, so that as many copies as possible are there already. */
void relabel(Work *w, const Problem *problem, const int32_t *current, int32_t *slot, double *rank_load) {
    const int32_t ranks = (int32_t)problem->ranks, nodes = (int32_t)problem->nodes, size = w->ranks_per_node;
    Names a;
    if (names_init(&a, problem)) { /* without memory the names stay, which is right too, but moves more */
        names_free(&a);
        return;
    }
    measure_overlap(&a, problem, current, slot);
    for (int32_t i = 0; i < nodes; i++)
        for (int32_t j = 0; j < nodes; j++) {
            const int32_t *gain = a.overlap + (size_t)i * size * ranks + (size_t)j * size;
            int32_t *named = a.named + ((size_t)i * nodes + j) * size;
            const int64_t sum = assign(size, gain, (size_t)ranks, named, a.scratch);
            a.node_gain[i * nodes + j] = sum < FORBIDDEN ? FORBIDDEN : (int32_t)sum;
        }
    assign(nodes, a.node_gain, (size_t)nodes, a.node_named, a.scratch);
    for (int32_t i = 0; i < ranks; i++) {
        const int32_t node = i / size, to_node = a.node_named[node];
        const int32_t to = to_node * size + a.named[((size_t)node * nodes + to_node) * size + i % size];
        memcpy(a.slot + a.offset[to], slot + a.offset[i], sizeof *slot * (size_t)problem->capacity[i]);
        a.load[to] = rank_load[i];
    }
    memcpy(slot, a.slot, sizeof *slot * (size_t)problem->slots);
    memcpy(rank_load, a.load, sizeof *rank_load * (size_t)ranks);
    names_free(&a);
}

static int contains(const int32_t *experts, int32_t n, int32_t expert) {
    for (int32_t i = 0; i < n; i++)
        if (experts[i] == expert) return 1;
    return 0;
}

/* Order each rank's slots so that what stays keeps its slot, as far as the rank still has it. */
void keep_places(const Problem *problem, const int32_t *current, int32_t *slot) {
    for (int64_t r = 0; r < problem->ranks; r++) {
        const int32_t n = problem->capacity[r], held = problem->held[r];
        for (int32_t i = 0; i < n && i < held; i++) {
            if (current[i] < 0) continue;
            for (int32_t j = 0; j < n; j++)
                if (slot[j] == current[i] && j != i) {
                    slot[j] = slot[i];
                    slot[i] = current[i];
                    break;
                }
        }
        slot += n;
        current += held;
    }
}

/* Count the copies whose rank did not hold that expert. */
int64_t count_arrivals(const Problem *problem, const int32_t *current, const int32_t *slot) {
    int64_t moved = 0;
    for (int64_t r = 0; r < problem->ranks; r++) {
        for (int32_t i = 0; i < problem->capacity[r]; i++) moved += !contains(current, problem->held[r], slot[i]);
        slot += problem->capacity[r];
        current += problem->held[r];
    }
    return moved;
}
