/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Time-aware descent, for the sum over windows of what the window's hottest rank carries.
 *
 * The hottest rank is taken smoothly: a window counts the 32nd root of the sum over its ranks of load to the 32nd. That
 * is its hottest load or a little more, in tokens; but ranks just below the hottest count too: any of them may be the
 * hottest in a window to come.
 */
#include "windows.h"

#define LEAST 3e-5f /* of the whole: improvements below this are rounding */

static void set_share(Windowed *p, int32_t e) {
    const float *weight = p->weight + (size_t)e * p->windows;
    for (int32_t w = 0; w < p->windows; w++) share_of(p, e)[w] = weight[w] / (float)p->count[e];
}

static void sum_loads(Windowed *p, int32_t rank) {
    float *load = loads_of(p, rank);
    for (int32_t w = 0; w < p->windows; w++) load[w] = 0;
    for (int32_t i = 0; i < p->capacity[rank]; i++) {
        const float *share = share_of(p, p->slot[p->offset[rank] + i]);
        for (int32_t w = 0; w < p->windows; w++) load[w] += share[w];
    }
}

/* Weigh the placement anew: each window's unit, sum and worth, what all count, what every rank counts of it, and by how
 * much more it would count with a little more load. */
static void weigh(Windowed *p) {
    float value[LANES] = {0};
    for (int32_t w = 0; w < p->windows; w++) {
        float top = 0;
        double sum = 0;
        for (int32_t r = 0; r < p->num_ranks; r++) top = larger(top, loads_of(p, r)[w]);
        p->unit[w] = top > 0 ? 1 / top : 0;
        for (int32_t r = 0; r < p->num_ranks; r++) sum += powers_of(p, r)[w] = power(loads_of(p, r)[w] * p->unit[w]);
        p->sum[w] = sum;
        p->worth[w] = p->tokens[w] * top;
        value[w % LANES] += p->worth[w] * root((float)sum);
    }
    p->value = sum_lanes(value);
    for (int32_t r = 0; r < p->num_ranks; r++) {
        const float *load = loads_of(p, r);
        float total = 0;
        for (int32_t w = 0; w < p->windows; w++) {
            const float part = p->worth[w] * root((float)p->sum[w]) * (powers_of(p, r)[w] / (float)p->sum[w]);
            slopes_of(p, r)[w] = load[w] * p->unit[w] > FLOOR ? part / load[w] : 0;
            total += part;
        }
        p->total[r] = total;
    }
    for (int32_t i = 1; i < p->num_ranks; i++) { /* few are out of order */
        const int32_t r = p->order[i];
        int32_t j = i;
        for (; j > 0 && p->total[p->order[j - 1]] > p->total[r]; j--) p->order[j] = p->order[j - 1];
        p->order[j] = r;
    }
    for (int32_t e = 0, first = 0; e < p->num_experts; first += p->count[e++]) p->first[e] = p->end[e] = first;
    memset(p->felt, 0, sizeof *p->felt * (size_t)p->num_experts);
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < p->capacity[r]; i++) {
            const int32_t e = p->slot[p->offset[r] + i];
            p->holder[p->end[e]++] = r;
            p->felt[e] += rise(p, slopes_of(p, r), e);
        }
}

static int32_t cost_of_swap(const Windowed *p, int32_t a, int32_t b, int32_t given, int32_t taken) {
    if (!p->was) return 0;
    return !windowed_in(p->was, p, a, taken) - !windowed_in(p->was, p, a, given) +
           !windowed_in(p->was, p, b, given) - !windowed_in(p->was, p, b, taken);
}

/* What a pair of ranks leaves to the others in each window, as far as it does not depend on what the two carry. */
typedef struct {
    float sum[MOST_WINDOWS];   /* of the powers of the others */
    float least[MOST_WINDOWS]; /* what they count alone */
    float own[MOST_WINDOWS];   /* the powers of the two as they are */
    float slope[MOST_WINDOWS]; /* of the chord from the others alone to what is counted now */
} Others;

static inline void sum_others(const Windowed *p, int32_t a, int32_t b, Others *others, const int32_t windows) {
    for (int32_t w = 0; w < windows; w++) {
        const double own = (double)powers_of(p, a)[w] + powers_of(p, b)[w], sum = p->sum[w] - own;
        others->own[w] = (float)own;
        others->sum[w] = sum > 0 ? (float)sum : 0;
    }
    for (int32_t w = 0; w < windows; w++) {
        others->least[w] = p->worth[w] * root(others->sum[w]);
        others->slope[w] = (p->worth[w] * root(others->sum[w] + others->own[w]) - others->least[w]) / others->own[w];
    }
}

/* What is counted where two ranks carry the loads x and y; infinite where it is seen at once to be `enough` or more. */
static float value_with(const Windowed *p, const Others *restrict others, const float *restrict x, const float *restrict y,
                        float enough, const int32_t all) {
    const int32_t windows = all & ~(LANES - 1); /* which it is: now a compiler knows that there is no rest */
    float own[MOST_WINDOWS], hotter[MOST_WINDOWS] = {0}, term[MOST_WINDOWS] = {0};
    /* A window counts at least its hotter rank; */
    for (int32_t w = 0; w < windows; w++) hotter[w] = larger(others->least[w], p->tokens[w] * larger(x[w], y[w]));
    if (sum_windows(hotter, windows) * (1 - 1e-5f) >= enough) return INFINITY;
    /* and, as the root is concave, at least the chord. */
    for (int32_t w = 0; w < windows; w++) {
        own[w] = power(x[w] * p->unit[w]) + power(y[w] * p->unit[w]);
        term[w] = larger(others->least[w] + others->slope[w] * smaller(own[w], others->own[w]), hotter[w]);
    }
    if (sum_windows(term, windows) * (1 - 1e-5f) >= enough) return INFINITY;
    for (int32_t w = 0; w < windows; w++) term[w] = p->worth[w] * root(others->sum[w] + own[w]);
    return sum_windows(term, windows);
}

/* What is counted is convex in the loads: it changes by no less than the slopes say. */
static inline void swap_with(Windowed *p, int32_t hot, int32_t cold, const Others *others, Change *best, const int32_t windows) {
    const float *hot_load = loads_of(p, hot), *cold_load = loads_of(p, cold);
    const int32_t *given = p->slot + p->offset[hot], *taken = p->slot + p->offset[cold];
    float x[MOST_WINDOWS], y[MOST_WINDOWS], slope[MOST_WINDOWS];
    const float rounding = 1e-6f * p->value;
    for (int32_t w = 0; w < windows; w++) slope[w] = slopes_of(p, cold)[w] - slopes_of(p, hot)[w];
    for (int32_t j = 0; j < p->capacity[cold]; j++) p->rise[j] = rise_over(p, slope, taken[j], windows);
    for (int32_t i = 0; i < p->capacity[hot]; i++) {
        if (windowed_in(p->on, p, cold, given[i])) continue;
        const float gained = rise_over(p, slope, given[i], windows);
        for (int32_t j = 0; j < p->capacity[cold]; j++) {
            if (gained - p->rise[j] - rounding >= best->change || windowed_in(p->on, p, hot, taken[j])) continue;
            const float *give = share_of(p, given[i]), *take = share_of(p, taken[j]);
            for (int32_t w = 0; w < windows; w++) {
                x[w] = hot_load[w] - (give[w] - take[w]);
                y[w] = cold_load[w] + (give[w] - take[w]);
            }
            const float change = value_with(p, others, x, y, p->value + best->change, windows) - p->value;
            if (change >= best->change) continue;
            const int32_t moves = cost_of_swap(p, hot, cold, given[i], taken[j]);
            if (may_move(p, moves)) *best = (Change){change, 1, hot, cold, given[i], taken[j], moves};
        }
    }
}

/* Whether the two ranks would be near enough to level: both level in every window is the best that a swap can do. */
static int may_swap(Windowed *p, int32_t hot, int32_t cold, Others *others, const Change *best) {
    float level[MOST_WINDOWS];
    sum_others(p, hot, cold, others, p->windows);
    for (int32_t w = 0; w < p->windows; w++) level[w] = (loads_of(p, hot)[w] + loads_of(p, cold)[w]) / 2;
    const float enough = (p->value + best->change) * (1 + 3e-6f);
    return value_with(p, others, level, level, enough, p->windows) < enough;
}

/* A swap is the same from either side: where a rank was `seen` to give nothing, none with it is tried again. But it counts as
 * effort as if it were, so that a search ends where it did. */
static void consider_swaps(Windowed *p, int32_t hot, Change *best) {
    const int32_t first = hot / p->ranks_per_node * p->ranks_per_node;
    for (int32_t i = 0; i < p->num_ranks; i++) {
        const int32_t cold = p->order[i];
        if (cold == hot || cold < first || cold >= first + p->ranks_per_node) continue;
        Others others;
        uint8_t *const may = p->may + (size_t)hot * p->num_ranks + cold;
        *may = (uint8_t)(p->seen[cold] && !best->kind ? p->may[(size_t)cold * p->num_ranks + hot] : may_swap(p, hot, cold, &others, best));
        p->effort -= 2 * p->windows;
        if (!*may) continue;
        p->effort -= 2 * (int64_t)p->capacity[hot] * p->capacity[cold] * p->windows;
        if (!p->seen[cold]) swap_with(p, hot, cold, &others, best, p->windows);
    }
    p->seen[hot] = 1;
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
        weigh(p);
        return;
    }
    p->count[change->out]--;
    p->count[change->in]++;
    set_share(p, change->out);
    set_share(p, change->in);
    for (int32_t r = 0; r < p->num_ranks; r++)
        if (r == change->rank || windowed_in(p->on, p, r, change->out) || windowed_in(p->on, p, r, change->in))
            sum_loads(p, r);
    weigh(p);
}

/* Improve the ranks, the one that counts most first, until no swap and no other split of the copies helps. */
void descend_windows(Windowed *p) {
    for (int32_t e = 0; e < p->num_experts; e++) set_share(p, e);
    for (int32_t r = 0; r < p->num_ranks; r++) sum_loads(p, r);
    for (int32_t r = 0; r < p->num_ranks; r++) p->order[r] = r;
    weigh(p);
    for (int64_t steps = 20 * (int64_t)p->num_ranks + 200; steps > 0; steps--) {
        Change best = {0, 0, -1, -1, -1, -1, 0};
        memset(p->seen, 0, sizeof *p->seen * (size_t)p->num_ranks);
        for (int kind = 1; kind <= 2 && !best.kind; kind++) {
            for (int32_t n = p->num_ranks - 1; n >= 0 && !best.kind && p->effort > 0; n--) {
                const int32_t hot = p->order[n];
                best.change = -LEAST * p->value;
                if (kind == 1) consider_swaps(p, hot, &best);
                else consider_reassignments(p, hot, &best);
            }
        }
        if (!best.kind) return;
        apply(p, &best);
    }
}
