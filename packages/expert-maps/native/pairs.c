/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Swaps of two slots for two: many more differences to choose from than single swaps have.
 */
#include "layer.h"

/* The rank's pairs in order of their sum, computed when they are first needed. */
static Pair *pairs_of(Layer *p, int32_t rank) {
    Pair *pairs = p->pairs + (size_t)rank * PAIRS_OF(p->stride);
    if (!p->stale[rank]) return pairs;
    const double *value = values_of(p, rank);
    int32_t n = 0;
    for (int16_t i = 0; i < p->fill[rank]; i++)
        for (int16_t j = (int16_t)(i + 1); j < p->fill[rank]; j++) {
            const double sum = value[i] + value[j];
            int32_t k = n++;
            for (; k > 0 && pairs[k - 1].sum > sum; k--) pairs[k] = pairs[k - 1];
            pairs[k] = (Pair){sum, i, j};
        }
    p->stale[rank] = 0;
    return pairs;
}

typedef struct {
    double value;
    int32_t cold, given[2], taken[2];
} PairSwap;

static int may_swap_pairs(const Layer *p, int32_t hot, const PairSwap *s) {
    for (int i = 0; i < 2; i++)
        if (!fits(p, s->cold, s->given[i]) || !fits(p, hot, s->taken[i])) return 0;
    return 1;
}

static int scan_pairs(Layer *p, int32_t hot, int32_t cold, double target, PairSwap *best) {
    const double mean = (p->load[hot] + p->load[cold]) / 2, half = (p->load[hot] - p->load[cold]) / 2;
    const Pair *give = pairs_of(p, hot), *take = pairs_of(p, cold);
    const int32_t *given = slots_of(p, hot), *taken = slots_of(p, cold);
    const int32_t n = (int32_t)PAIRS_OF(p->fill[hot]), m = (int32_t)PAIRS_OF(p->fill[cold]);
    double limit = best->value - mean;
    int32_t first = 0;
    for (int32_t i = 0; i < n; i++) {
        const double wanted = give[i].sum - half;
        while (first < m && take[first].sum <= wanted - limit) first++;
        for (int32_t j = first; j < m && take[j].sum < wanted + limit; j++) {
            const double miss = fabs(take[j].sum - wanted);
            if (miss >= limit) continue;
            const PairSwap swap = {mean + miss,
                                   cold,
                                   {given[give[i].first], given[give[i].second]},
                                   {taken[take[j].first], taken[take[j].second]}};
            if (!may_swap_pairs(p, hot, &swap)) continue;
            limit = miss;
            *best = swap;
            if (best->value <= target) return 1;
        }
    }
    return 0;
}

/* Swap two for two if that brings the hotter of both ranks below `value`. */
int swap_pairs(Layer *p, int32_t hot, const Goal *goal, double value) {
    /* With two slots a rank, that is ranks changing places. */
    if (p->stride < 3 || p->stride > MOST_PAIRED_SLOTS) return 0;
    PairSwap best = {value, -1, {0, 0}, {0, 0}};
    for (int32_t i = 0; i < p->num_ranks - 1; i++) {
        const int32_t cold = p->order[i];
        if ((p->load[hot] + p->load[cold]) / 2 >= best.value) break;
        if (scan_pairs(p, hot, cold, goal->target, &best)) break;
    }
    if (best.cold < 0) return 0;
    for (int i = 0; i < 2; i++) apply_swap(p, hot, best.cold, best.given[i], best.taken[i]);
    return 1;
}
