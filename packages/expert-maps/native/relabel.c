/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A new plan's ranks take the names under which most of their experts are already there.
 *
 * That is a matching of new ranks to old ones of greatest weight, the experts that both hold. Ranks have few experts, so most
 * pairs have none in common and need not be looked at.
 */
#include "plan.h"

/* The pairs with something in common, by row. */
typedef struct {
    int32_t *start;  /* [rows + 1] */
    int32_t *column; /* [start[rows]] */
    int32_t *weight; /* the same, more than 0 */
} Pairs;

/* A matching that grows row by row, and prices that prove it: u + v >= weight everywhere, = for what is matched, and 0 for
 * what is not. */
typedef struct {
    int32_t *column_of, *row_price;                      /* [rows] */
    int32_t *row_of, *price, *distance, *from, *reached; /* [columns] */
} Matching;

static Matching matching_at(int32_t *scratch, int32_t n) {
    Matching m = {scratch,         scratch + n,     scratch + 2 * n, scratch + 3 * n,
                  scratch + 4 * n, scratch + 5 * n, scratch + 6 * n};
    for (int32_t i = 0; i < n; i++) {
        m.column_of[i] = m.row_of[i] = -1;
        m.row_price[i] = m.price[i] = 0;
        m.distance[i] = INT32_MAX;
    }
    return m;
}

/* The nearest column that was reached but not yet passed, moved to place `passed` of the list; -1 if there is none. */
static int32_t nearest(Matching *m, int32_t passed, int32_t reached) {
    int32_t best = -1;
    for (int32_t i = passed; i < reached; i++)
        if (best < 0 || m->distance[m->reached[i]] < m->distance[m->reached[best]]) best = i;
    if (best < 0) return -1;
    const int32_t column = m->reached[best];
    m->reached[best] = m->reached[passed];
    m->reached[passed] = column;
    return column;
}

/* Add a row: along the shortest path of reduced weights to a free column, or to a row that is better left alone. Rows and columns
 * count from `row0` and `column0` in `p`; there are n of each. */
static void add_row(Matching *m, const Pairs *p, int32_t row0, int32_t column0, int32_t n, int32_t row) {
    int32_t passed = 0, reached = 0, at = row, walked = 0, end_column = -1, end_row = row;
    for (int32_t k = p->start[row0 + row]; k < p->start[row0 + row + 1]; k++) {
        const int32_t c = p->column[k] - column0;
        if (c >= 0 && c < n && p->weight[k] - m->price[c] > m->row_price[row])
            m->row_price[row] = p->weight[k] - m->price[c];
    }
    int32_t length = m->row_price[row]; /* of the best path so far: to leave this row alone */
    for (;;) {
        for (int32_t k = p->start[row0 + at]; k < p->start[row0 + at + 1]; k++) {
            const int32_t c = p->column[k] - column0;
            if (c < 0 || c >= n) continue;
            const int32_t distance = walked + m->row_price[at] + m->price[c] - p->weight[k];
            if (distance >= m->distance[c]) continue; /* no way to what was passed is shorter */
            if (m->distance[c] == INT32_MAX) m->reached[reached++] = c;
            m->distance[c] = distance;
            m->from[c] = at;
        }
        const int32_t c = nearest(m, passed, reached);
        if (c < 0 || m->distance[c] >= length) break;
        if (m->row_of[c] < 0) {
            length = m->distance[end_column = c];
            break;
        }
        passed++;
        at = m->row_of[c];
        walked = m->distance[c];
        if (walked + m->row_price[at] < length) {
            length = walked + m->row_price[at];
            end_row = at;
        }
    }
    m->row_price[row] -= length;
    for (int32_t i = 0; i < passed; i++) {
        const int32_t c = m->reached[i], less = length - m->distance[c];
        m->row_price[m->row_of[c]] -= less;
        m->price[c] += less;
    }
    for (int32_t i = 0; i < reached; i++) m->distance[m->reached[i]] = INT32_MAX;
    int32_t c = end_column;
    if (c < 0 && end_row != row) {
        c = m->column_of[end_row];
        m->column_of[end_row] = -1;
    }
    while (c >= 0) {
        const int32_t r = m->from[c], next = m->column_of[r];
        m->row_of[c] = r;
        m->column_of[r] = c;
        c = r == row ? -1 : next;
    }
}

/* Match n rows from `row0` to n columns from `column0` so that the weights add up to most; what is left is matched in
 * order, by size. `size` is of rows and columns; `column_of` [n]; scratch [7 n]. Returns the sum, -1 if sizes do not fit. */
static int64_t match(const Pairs *p, int32_t row0, int32_t column0, int32_t n, const int32_t *size, int32_t *column_of,
                     int32_t *scratch) {
    Matching m = matching_at(scratch, n);
    int64_t sum = 0;
    for (int32_t row = 0; row < n; row++) add_row(&m, p, row0, column0, n, row);
    for (int32_t row = 0; row < n; row++) {
        const int32_t c = m.column_of[row];
        for (int32_t k = p->start[row0 + row]; c >= 0 && k < p->start[row0 + row + 1]; k++)
            if (p->column[k] == column0 + c) sum += p->weight[k];
    }
    for (int32_t row = 0, free = 0; row < n; row++) {
        int32_t c = m.column_of[row];
        if (c < 0) {
            while (m.row_of[free] >= 0) free++;
            for (c = free; m.row_of[c] >= 0 || (size && size[row0 + row] != size[column0 + c]);)
                if (++c == n) return -1;
            m.row_of[c] = row;
        }
        column_of[row] = c;
    }
    return sum;
}

typedef struct {
    Pairs ranks, nodes;
    int32_t *first, *holder; /* [experts + 1], [held in all]: the old ranks of each expert */
    int32_t *common, *seen;  /* [ranks] */
    int32_t *named;          /* [nodes, nodes, ranks of a node], the names if a node takes another's place */
    int32_t *node_named, *scratch, *offset;
    int32_t *slot;
    double *load;
} Names;

static void names_free(Names *a) {
    void *const arrays[] = {a->ranks.start, a->ranks.column, a->ranks.weight, a->nodes.start, a->nodes.column,
                            a->nodes.weight, a->first,       a->holder,       a->common,      a->seen,
                            a->named,        a->node_named,  a->scratch,      a->offset,      a->slot,
                            a->load};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static int names_init(Names *a, const Problem *problem, size_t held) {
    const size_t r = (size_t)problem->ranks, n = (size_t)problem->nodes, most = r * r;
    memset(a, 0, sizeof *a);
    a->ranks.start = calloc(r + 1, sizeof(int32_t));
    a->ranks.column = malloc(most * sizeof(int32_t));
    a->ranks.weight = malloc(most * sizeof(int32_t));
    a->nodes.start = calloc(n + 1, sizeof(int32_t));
    a->nodes.column = malloc(n * n * sizeof(int32_t));
    a->nodes.weight = malloc(n * n * sizeof(int32_t));
    a->first = calloc((size_t)problem->experts + 2, sizeof(int32_t));
    a->holder = malloc((held + 1) * sizeof(int32_t));
    a->common = calloc(r, sizeof(int32_t));
    a->seen = malloc(r * sizeof(int32_t));
    a->named = calloc(r * n, sizeof(int32_t));
    a->node_named = calloc(n, sizeof(int32_t));
    a->scratch = calloc(7 * r, sizeof(int32_t));
    a->offset = calloc(r + 1, sizeof(int32_t));
    a->slot = calloc((size_t)problem->slots, sizeof(int32_t));
    a->load = calloc(r, sizeof(double));
    return !a->ranks.start || !a->ranks.column || !a->ranks.weight || !a->nodes.start || !a->nodes.column ||
           !a->nodes.weight || !a->first || !a->holder || !a->common || !a->seen || !a->named || !a->node_named ||
           !a->scratch || !a->offset || !a->slot || !a->load;
}

/* List the old ranks of each expert; an expert twice on a rank counts once. */
static void list_holders(Names *a, const Problem *problem, const int32_t *current) {
    const int32_t *old = current;
    int32_t *first = a->first + 1;
    for (int64_t r = 0; r < problem->ranks; r++)
        for (int32_t i = 0; i < problem->held[r]; i++, old++)
            if (*old >= 0) first[*old + 1]++;
    for (int64_t e = 1; e <= problem->experts; e++) first[e] += first[e - 1];
    old = current;
    for (int32_t r = 0; r < problem->ranks; r++)
        for (int32_t i = 0; i < problem->held[r]; i++, old++)
            if (*old >= 0) a->holder[first[*old]++] = r;
}

/* Find the pairs of ranks of one size with experts in common; returns how many slots could stay if every new rank had
 * the name it likes best. */
static int64_t measure_overlap(Names *a, const Problem *problem, const int32_t *current, const int32_t *slot) {
    Pairs *p = &a->ranks;
    int64_t most = 0;
    int32_t n = 0;
    list_holders(a, problem, current);
    for (int32_t i = 0; i < problem->ranks; i++) {
        int32_t seen = 0, best = 0;
        a->offset[i + 1] = a->offset[i] + problem->capacity[i];
        for (int32_t k = a->offset[i]; k < a->offset[i + 1]; k++) {
            int32_t last = -1;
            for (int32_t h = a->first[slot[k]]; h < a->first[slot[k] + 1]; h++) {
                const int32_t j = a->holder[h];
                if (j == last || problem->capacity[j] != problem->capacity[i]) continue;
                last = j;
                if (!a->common[j]++) a->seen[seen++] = j;
            }
        }
        for (int32_t k = 0; k < seen; k++) {
            const int32_t j = a->seen[k];
            p->column[n] = j;
            p->weight[n++] = a->common[j];
            if (a->common[j] > best) best = a->common[j];
            a->common[j] = 0;
        }
        p->start[i + 1] = n;
        most += best;
    }
    return most;
}

/* What each node would keep in each other's place, and then which takes which. */
static void name_nodes(Names *a, int32_t nodes, int32_t size, const int32_t *capacity) {
    int32_t n = 0;
    for (int32_t i = 0; i < nodes; i++) {
        for (int32_t j = 0; j < nodes; j++) {
            int32_t *named = a->named + ((size_t)i * nodes + j) * size;
            const int64_t sum = match(&a->ranks, i * size, j * size, size, capacity, named, a->scratch);
            if (sum <= 0) continue;
            a->nodes.column[n] = j;
            a->nodes.weight[n++] = (int32_t)sum;
        }
        a->nodes.start[i + 1] = n;
    }
    match(&a->nodes, 0, 0, nodes, NULL, a->node_named, a->scratch);
}

/* Rename ranks within their nodes, and nodes as wholes, so that as many copies as possible are there already; zero, and
 * nothing renamed, where that certainly leaves more than `limit` arrivals. */
int relabel(Work *w, const Problem *problem, const int32_t *current, int64_t limit, int32_t *slot, double *rank_load) {
    const int32_t ranks = (int32_t)problem->ranks, nodes = (int32_t)problem->nodes, size = w->ranks_per_node;
    size_t held = 0;
    for (int32_t r = 0; r < ranks; r++) held += (size_t)problem->held[r];
    Names a;
    if (names_init(&a, problem, held)) { /* without memory the names stay, which is right too, but moves more */
        names_free(&a);
        return 1;
    }
    if (problem->slots - measure_overlap(&a, problem, current, slot) > limit) {
        names_free(&a);
        return 0;
    }
    name_nodes(&a, nodes, size, problem->capacity);
    for (int32_t i = 0; i < ranks; i++) {
        const int32_t node = i / size, to_node = a.node_named[node];
        const int32_t to = to_node * size + a.named[((size_t)node * nodes + to_node) * size + i % size];
        memcpy(a.slot + a.offset[to], slot + a.offset[i], sizeof *slot * (size_t)problem->capacity[i]);
        a.load[to] = rank_load[i];
    }
    memcpy(slot, a.slot, sizeof *slot * (size_t)problem->slots);
    memcpy(rank_load, a.load, sizeof *rank_load * (size_t)ranks);
    names_free(&a);
    return 1;
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
