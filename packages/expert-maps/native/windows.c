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

#define FLOOR 0.1f /* of the hottest rank's load: to the 32nd what is below counts as nothing, and must not underflow */
#define LEAST 3e-5f /* of the whole: improvements below this are rounding */

/* Sums over windows are taken in LANES sums, which a processor adds to at once. */
static inline float sum_lanes(const float *sum) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

static float *loads_of(const Windowed *p, int32_t rank) { return p->load + (size_t)rank * p->windows; }
static float *share_of(const Windowed *p, int32_t e) { return p->share + (size_t)e * p->windows; }
static float *slopes_of(const Windowed *p, int32_t rank) { return p->slope + (size_t)rank * p->windows; }
static float *powers_of(const Windowed *p, int32_t rank) { return p->power + (size_t)rank * p->windows; }

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

/* The 32nd power of a load in units of the window's hottest one. Beyond 16 it is infinite, and so is the sum: no step goes there. */
static inline float power(float load) {
    const float x = larger(load, FLOOR), x2 = x * x, x4 = x2 * x2, x8 = x4 * x4, x16 = x8 * x8;
    return x16 * x16;
}

static inline float root(float sum) { return sqrtf(sqrtf(sqrtf(sqrtf(sqrtf(sum))))); }

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

/* By how much more is counted, at the present slopes, where a rank gets the shares of an expert. */
static float rise(const Windowed *p, const float *slope, int32_t e) {
    const float *share = share_of(p, e);
    float sum[LANES] = {0};
    for (int32_t v = 0; v < p->windows; v += LANES)
        for (int32_t w = v; w < v + LANES; w++) sum[w - v] += slope[w] * share[w];
    return sum_lanes(sum);
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
    memset(p->felt, 0, sizeof *p->felt * (size_t)p->num_experts);
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < p->capacity[r]; i++) {
            const int32_t e = p->slot[p->offset[r] + i];
            p->felt[e] += rise(p, slopes_of(p, r), e);
        }
}

static int may_move(const Windowed *p, int32_t moves) { return p->moves_left == UNLIMITED || moves <= p->moves_left; }

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

static void sum_others(const Windowed *p, int32_t a, int32_t b, Others *others) {
    for (int32_t w = 0; w < p->windows; w++) {
        const double own = (double)powers_of(p, a)[w] + powers_of(p, b)[w], sum = p->sum[w] - own;
        others->own[w] = (float)own;
        others->sum[w] = sum > 0 ? (float)sum : 0;
    }
    for (int32_t w = 0; w < p->windows; w++) {
        others->least[w] = p->worth[w] * root(others->sum[w]);
        others->slope[w] = (p->worth[w] * root(others->sum[w] + others->own[w]) - others->least[w]) / others->own[w];
    }
}

/* What is counted where two ranks carry the loads x and y; infinite where it is seen at once to be `enough` or more. */
static float value_with(const Windowed *p, const Others *others, const float *x, const float *y, float enough) {
    float own[MOST_WINDOWS], hotter[LANES] = {0}, least[LANES] = {0}, value[LANES] = {0};
    /* A window counts at least its hotter rank; */
    for (int32_t v = 0; v < p->windows; v += LANES)
        for (int32_t w = v; w < v + LANES; w++)
            hotter[w - v] += larger(others->least[w], p->tokens[w] * larger(x[w], y[w]));
    if (sum_lanes(hotter) * (1 - 1e-5f) >= enough) return INFINITY;
    /* and, as the root is concave, at least the chord. */
    for (int32_t v = 0; v < p->windows; v += LANES)
        for (int32_t w = v; w < v + LANES; w++) {
            own[w] = power(x[w] * p->unit[w]) + power(y[w] * p->unit[w]);
            const float chord = others->least[w] + others->slope[w] * smaller(own[w], others->own[w]);
            least[w - v] += larger(chord, p->tokens[w] * larger(x[w], y[w]));
        }
    if (sum_lanes(least) * (1 - 1e-5f) >= enough) return INFINITY;
    for (int32_t v = 0; v < p->windows; v += LANES)
        for (int32_t w = v; w < v + LANES; w++) value[w - v] += p->worth[w] * root(others->sum[w] + own[w]);
    return sum_lanes(value);
}

/* What is counted is convex in the loads: it changes by no less than the slopes say. */
static void swap_with(Windowed *p, int32_t hot, int32_t cold, const Others *others, Change *best) {
    const float *hot_load = loads_of(p, hot), *cold_load = loads_of(p, cold);
    const int32_t *given = p->slot + p->offset[hot], *taken = p->slot + p->offset[cold];
    float x[MOST_WINDOWS], y[MOST_WINDOWS], slope[MOST_WINDOWS];
    const float rounding = 1e-6f * p->value;
    for (int32_t w = 0; w < p->windows; w++) slope[w] = slopes_of(p, cold)[w] - slopes_of(p, hot)[w];
    for (int32_t j = 0; j < p->capacity[cold]; j++) p->rise[j] = rise(p, slope, taken[j]);
    for (int32_t i = 0; i < p->capacity[hot]; i++) {
        if (windowed_in(p->on, p, cold, given[i])) continue;
        const float gained = rise(p, slope, given[i]);
        for (int32_t j = 0; j < p->capacity[cold]; j++) {
            if (gained - p->rise[j] - rounding >= best->change || windowed_in(p->on, p, hot, taken[j])) continue;
            const float *give = share_of(p, given[i]), *take = share_of(p, taken[j]);
            for (int32_t v = 0; v < p->windows; v += LANES)
                for (int32_t w = v; w < v + LANES; w++) {
                    x[w] = hot_load[w] - (give[w] - take[w]);
                    y[w] = cold_load[w] + (give[w] - take[w]);
                }
            const float change = value_with(p, others, x, y, p->value + best->change) - p->value;
            if (change >= best->change) continue;
            const int32_t moves = cost_of_swap(p, hot, cold, given[i], taken[j]);
            if (may_move(p, moves)) *best = (Change){change, 1, hot, cold, given[i], taken[j], moves};
        }
    }
}

static void consider_swaps(Windowed *p, int32_t hot, Change *best) {
    const int32_t first = hot / p->ranks_per_node * p->ranks_per_node;
    for (int32_t i = 0; i < p->num_ranks; i++) {
        const int32_t cold = p->order[i];
        if (cold == hot || cold < first || cold >= first + p->ranks_per_node) continue;
        Others others;
        float level[MOST_WINDOWS];
        sum_others(p, hot, cold, &others);
        for (int32_t w = 0; w < p->windows; w++) level[w] = (loads_of(p, hot)[w] + loads_of(p, cold)[w]) / 2;
        p->effort -= 2 * p->windows;
        /* Both level in every window is the best that a swap can do. */
        const float enough = (p->value + best->change) * (1 + 3e-6f);
        if (value_with(p, &others, level, level, enough) >= enough) continue;
        p->effort -= 2 * (int64_t)p->capacity[hot] * p->capacity[cold] * p->windows;
        swap_with(p, hot, cold, &others, best);
    }
}

/* The change of the whole if `rank` held `in` in place of `out`. */
static float reassigned(const Windowed *p, int32_t rank, int32_t out, int32_t in) {
    const float keep = (float)p->count[out] / (float)(p->count[out] - 1) - 1;
    const float cut = (float)p->count[in] / (float)(p->count[in] + 1);
    const float *from = share_of(p, out), *to = share_of(p, in);
    const int32_t first = rank / p->ranks_per_node * p->ranks_per_node;
    double sum[MOST_WINDOWS];
    float value[LANES] = {0};
    for (int32_t w = 0; w < p->windows; w++) sum[w] = p->sum[w];
    for (int32_t r = first; r < first + p->ranks_per_node; r++) {
        const int has_out = windowed_in(p->on, p, r, out), has_in = windowed_in(p->on, p, r, in);
        if (r != rank && !has_out && !has_in) continue;
        const float rise = r == rank ? -1 : has_out ? keep : 0, gain = r == rank ? cut : has_in ? cut - 1 : 0;
        const float *load = loads_of(p, r), *before = powers_of(p, r);
        for (int32_t w = 0; w < p->windows; w++)
            sum[w] += (double)power((load[w] + rise * from[w] + gain * to[w]) * p->unit[w]) - before[w];
    }
    for (int32_t v = 0; v < p->windows; v += LANES)
        for (int32_t w = v; w < v + LANES; w++) value[w - v] += p->worth[w] * root(larger((float)sum[w], 0));
    return sum_lanes(value) - p->value;
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
