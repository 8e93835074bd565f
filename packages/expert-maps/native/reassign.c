/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Time-aware descent, the other kind of step: a rank holds a copy of one expert in place of a copy of another.
 */
#include "windows.h"

/* The change of the whole if `rank` held `in` in place of `out`. */
static float reassigned(const Windowed *p, int32_t rank, int32_t out, int32_t in) {
    const float keep = (float)p->count[out] / (float)(p->count[out] - 1) - 1;
    const float cut = (float)p->count[in] / (float)(p->count[in] + 1);
    const float *from = share_of(p, out), *to = share_of(p, in);
    const int32_t windows = p->windows & ~(LANES - 1);
    double sum[MOST_WINDOWS];
    float term[MOST_WINDOWS] = {0};
    for (int32_t w = 0; w < windows; w++) sum[w] = p->sum[w];
    const int32_t *with_out = ranks_of(p, out), *with_in = ranks_of(p, in);
    const int32_t *const last_out = with_out + p->count[out], *const last_in = with_in + p->count[in];
    while (with_out < last_out || with_in < last_in) { /* both in the order of ranks, and `rank` is one of the first */
        const int has_out = with_out < last_out && (with_in == last_in || *with_out <= *with_in);
        const int has_in = with_in < last_in && (with_out == last_out || *with_in <= *with_out);
        const int32_t r = has_out ? *with_out : *with_in;
        with_out += has_out;
        with_in += has_in;
        const float rise = r == rank ? -1 : has_out ? keep : 0, gain = r == rank ? cut : has_in ? cut - 1 : 0;
        const float *load = loads_of(p, r), *before = powers_of(p, r);
        for (int32_t w = 0; w < windows; w++)
            sum[w] += (double)power((load[w] + rise * from[w] + gain * to[w]) * p->unit[w]) - before[w];
    }
    for (int32_t w = 0; w < windows; w++) term[w] = p->worth[w] * root(larger((float)sum[w], 0));
    return sum_windows(term, windows) - p->value;
}

/* No less than this is the change if `rank` held `in` in place of `out`: what the slopes say. `felt` is what an expert's
 * shares count at the slopes of all its ranks. */
static float reassigned_at_least(const Windowed *p, int32_t rank, int32_t out, int32_t in) {
    const float keep = (float)p->count[out] / (float)(p->count[out] - 1) - 1;
    const float cut = (float)p->count[in] / (float)(p->count[in] + 1);
    const float gone = rise(p, slopes_of(p, rank), out), come = rise(p, slopes_of(p, rank), in);
    return cut * come - gone + keep * (p->felt[out] - gone) + (cut - 1) * p->felt[in] - 1e-6f * p->value;
}

static void consider_reassignment(Windowed *p, int32_t rank, int32_t out, int32_t in, Change *best) {
    if (p->count[out] < 2 || windowed_in(p->on, p, rank, in) || p->effort <= 0) return;
    if (p->node_of_expert && p->node_of_expert[in] != rank / p->ranks_per_node) return;
    if (reassigned_at_least(p, rank, out, in) >= best->change) return;
    const int32_t moves = p->was ? !windowed_in(p->was, p, rank, in) - !windowed_in(p->was, p, rank, out) : 0;
    if (!may_move(p, moves)) return;
    p->effort -= (int64_t)p->windows * (p->count[out] + p->count[in] + 1);
    const float change = reassigned(p, rank, out, in);
    if (change < best->change) *best = (Change){change, 2, rank, rank, out, in, moves};
}

void consider_reassignments(Windowed *p, int32_t hot, Change *best) {
    const int32_t first = hot / p->ranks_per_node * p->ranks_per_node;
    for (int32_t i = 0; i < p->capacity[hot]; i++) {
        const int32_t e = p->slot[p->offset[hot] + i];
        for (int32_t in = 0; p->count[e] > 1 && in < p->num_experts; in++) consider_reassignment(p, hot, e, in, best);
        for (int32_t r = first; r < first + p->ranks_per_node; r++)
            for (int32_t j = 0; r != hot && j < p->capacity[r]; j++)
                consider_reassignment(p, r, p->slot[p->offset[r] + j], e, best);
    }
}
