/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Time-aware descent, for the sum over windows of what the window's hottest rank carries.
 *
 * The hottest rank is taken smoothly: a window counts the sum over its ranks of (load / mean) to the 32nd, times
 * its tokens. Nearly all of that is its hottest ranks, but those just below count too: any of them may be the hottest in a
 * window to come.
 */
#include "windows.h"

static float *loads_of(const Windowed *p, int32_t rank) { return p->load + (size_t)rank * p->windows; }
static float *share_of(const Windowed *p, int32_t e) { return p->share + (size_t)e * p->windows; }

static inline float heat(float load) {
    if (load > 15) load = 15; /* beyond it the power overflows, and no plan is any good */
    const float x2 = load * load, x4 = x2 * x2, x8 = x4 * x4, x16 = x8 * x8;
    return x16 * x16;
}

static void set_share(Windowed *p, int32_t e) {
    const float *weight = p->weight + (size_t)e * p->windows;
    for (int32_t w = 0; w < p->windows; w++) share_of(p, e)[w] = weight[w] / (float)p->count[e];
}

static void sum_loads(Windowed *p, int32_t rank) {
    float *load = loads_of(p, rank), total = 0;
    for (int32_t w = 0; w < p->windows; w++) load[w] = 0;
    for (int32_t i = 0; i < p->capacity[rank]; i++) {
        const float *share = share_of(p, p->slot[p->offset[rank] + i]);
        for (int32_t w = 0; w < p->windows; w++) load[w] += share[w];
    }
    for (int32_t w = 0; w < p->windows; w++) total += p->tokens[w] * heat(load[w]);
    p->total[rank] = total;
}

static int may_move(const Windowed *p, int32_t moves) { return p->moves_left == UNLIMITED || moves <= p->moves_left; }

static int32_t cost_of_swap(const Windowed *p, int32_t a, int32_t b, int32_t given, int32_t taken) {
    if (!p->was) return 0;
    return !windowed_in(p->was, p, a, taken) - !windowed_in(p->was, p, a, given) +
           !windowed_in(p->was, p, b, given) - !windowed_in(p->was, p, b, taken);
}

/* The change of the sum if both ranks were level, which is the best that a swap can do. */
static float at_best(const Windowed *p, int32_t a, int32_t b) {
    const float *x = loads_of(p, a), *y = loads_of(p, b);
    float sum = 0;
    for (int32_t w = 0; w < p->windows; w++) sum += p->tokens[w] * heat((x[w] + y[w]) / 2);
    return 2 * sum - p->total[a] - p->total[b];
}

static void consider_swaps(Windowed *p, int32_t hot, Change *best) {
    const int32_t first = hot / p->ranks_per_node * p->ranks_per_node;
    for (int32_t cold = first; cold < first + p->ranks_per_node; cold++) {
        p->effort -= p->windows;
        if (cold == hot || at_best(p, hot, cold) >= best->change) continue;
        p->effort -= 2 * (int64_t)p->capacity[hot] * p->capacity[cold] * p->windows;
        const float *hot_load = loads_of(p, hot), *cold_load = loads_of(p, cold);
        const float before = p->total[hot] + p->total[cold];
        for (int32_t i = 0; i < p->capacity[hot]; i++) {
            const int32_t a = p->slot[p->offset[hot] + i];
            if (windowed_in(p->on, p, cold, a)) continue;
            for (int32_t j = 0; j < p->capacity[cold]; j++) {
                const int32_t b = p->slot[p->offset[cold] + j];
                if (windowed_in(p->on, p, hot, b)) continue;
                const float *give = share_of(p, a), *take = share_of(p, b);
                float sum = 0;
                for (int32_t w = 0; w < p->windows; w++) {
                    const float d = give[w] - take[w];
                    sum += p->tokens[w] * (heat(hot_load[w] - d) + heat(cold_load[w] + d));
                }
                if (sum - before >= best->change) continue;
                const int32_t moves = cost_of_swap(p, hot, cold, a, b);
                if (may_move(p, moves)) *best = (Change){sum - before, 1, hot, cold, a, b, moves};
            }
        }
    }
}

/* The change of the sum if `rank` held `in` in place of `out`. */
static float reassigned(const Windowed *p, int32_t rank, int32_t out, int32_t in) {
    const float keep = (float)p->count[out] / (float)(p->count[out] - 1) - 1;
    const float cut = (float)p->count[in] / (float)(p->count[in] + 1);
    const float *from = share_of(p, out), *to = share_of(p, in);
    const int32_t first = rank / p->ranks_per_node * p->ranks_per_node;
    float change = 0;
    for (int32_t r = first; r < first + p->ranks_per_node; r++) {
        const int has_out = windowed_in(p->on, p, r, out), has_in = windowed_in(p->on, p, r, in);
        if (r != rank && !has_out && !has_in) continue;
        const float rise = r == rank ? -1 : has_out ? keep : 0, gain = r == rank ? cut : has_in ? cut - 1 : 0;
        const float *load = loads_of(p, r);
        float sum = 0;
        for (int32_t w = 0; w < p->windows; w++) sum += p->tokens[w] * heat(load[w] + rise * from[w] + gain * to[w]);
        change += sum - p->total[r];
    }
    return change;
}

static void consider_reassignment(Windowed *p, int32_t rank, int32_t out, int32_t in, Change *best) {
    if (p->count[out] < 2 || windowed_in(p->on, p, rank, in) || p->effort <= 0) return;
    if (p->node_of_expert && p->node_of_expert[in] != rank / p->ranks_per_node) return;
    const int32_t moves = p->was ? !windowed_in(p->was, p, rank, in) - !windowed_in(p->was, p, rank, out) : 0;
    if (!may_move(p, moves)) return;
    p->effort -= (int64_t)p->windows * (p->count[out] + p->count[in] + 1);
    const float change = reassigned(p, rank, out, in);
    if (change < best->change) *best = (Change){change, 2, rank, rank, out, in, moves};
}

static void consider_reassignments(Windowed *p, int32_t hot, Change *best) {
    const int32_t first = hot / p->ranks_per_node * p->ranks_per_node;
    for (int32_t i = 0; i < p->capacity[hot]; i++) {
        const int32_t e = p->slot[p->offset[hot] + i];
        for (int32_t in = 0; p->count[e] > 1 && in < p->num_experts; in++) consider_reassignment(p, hot, e, in, best);
        for (int32_t r = first; r < first + p->ranks_per_node; r++)
            for (int32_t j = 0; r != hot && j < p->capacity[r]; j++)
                consider_reassignment(p, r, p->slot[p->offset[r] + j], e, best);
    }
}

static void exchange(Windowed *p, int32_t rank, int32_t out, int32_t in) {
    int32_t *slot = p->slot + p->offset[rank];
    while (*slot != out) slot++;
    *slot = in;
    windowed_flip(p->on, p, rank, out);
    windowed_flip(p->on, p, rank, in);
}

static void apply(Windowed *p, const Change *change) {
    if (p->moves_left != UNLIMITED) p->moves_left -= change->moves;
    exchange(p, change->rank, change->out, change->in);
    if (change->kind == 1) {
        exchange(p, change->other, change->in, change->out);
        sum_loads(p, change->rank);
        sum_loads(p, change->other);
        return;
    }
    p->count[change->out]--;
    p->count[change->in]++;
    set_share(p, change->out);
    set_share(p, change->in);
    for (int32_t r = 0; r < p->num_ranks; r++)
        if (r == change->rank || windowed_in(p->on, p, r, change->out) || windowed_in(p->on, p, r, change->in))
            sum_loads(p, r);
}

/* Improve the ranks, the one that counts most first, until no swap and no other split of the copies helps. */
void descend_windows(Windowed *p) {
    for (int32_t e = 0; e < p->num_experts; e++) set_share(p, e);
    for (int32_t r = 0; r < p->num_ranks; r++) sum_loads(p, r);
    for (int64_t steps = 20 * (int64_t)p->num_ranks + 200; steps > 0; steps--) {
        Change best = {0, 0, -1, -1, -1, -1, 0};
        for (int kind = 1; kind <= 2 && !best.kind; kind++) {
            memset(p->tried, 0, (size_t)p->num_ranks);
            for (int32_t n = 0; n < p->num_ranks && !best.kind && p->effort > 0; n++) {
                int32_t hot = -1;
                for (int32_t r = 0; r < p->num_ranks; r++)
                    if (!p->tried[r] && (hot < 0 || p->total[r] > p->total[hot])) hot = r;
                p->tried[hot] = 1;
                best.change = -1e-5f * p->total[hot];
                if (kind == 1) consider_swaps(p, hot, &best);
                else consider_reassignments(p, hot, &best);
            }
        }
        if (!best.kind) return;
        apply(p, &best);
    }
}
