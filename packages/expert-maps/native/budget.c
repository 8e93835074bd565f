/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Descent where every moved slot counts: the step that removes most excess over the target for each slot moved.
 */
#include "layer.h"

typedef struct {
    double worth; /* excess removed for each slot moved */
    int kind;     /* 0: none, 1: swap, 2: reassignment */
    int32_t rank, out, in;
} Step;

static double excess(double load, double target) { return load > target ? load - target : 0; }

/* A step that moves nothing, or puts something back, is cheap but not free: else such steps could go round. */
static double price(int moves) { return moves > 0 ? moves : 0.5; }

/* The excess that is gone once `rank` holds `in` in place of `out`, a copy of which is left elsewhere. */
static double reassignment_gain(const Layer *p, int32_t rank, int32_t out, int32_t in, double target) {
    const double rise = p->weight[out] / (p->count[out] - 1) - p->share[out];
    const double fresh = p->weight[in] / (p->count[in] + 1), fall = p->share[in] - fresh;
    double gain = excess(p->load[rank], target) - excess(p->load[rank] - p->share[out] + fresh, target);
    const int32_t *holder = holders_of(p, out);
    for (int32_t i = 0; i < p->count[out]; i++) {
        if (holder[i] == rank) continue;
        const double load = p->load[holder[i]], less = holds(p, holder[i], in) ? fall : 0;
        gain += excess(load, target) - excess(load + rise - less, target);
    }
    holder = holders_of(p, in);
    for (int32_t i = 0; i < p->count[in]; i++) {
        const double load = p->load[holder[i]];
        if (load <= target || holds(p, holder[i], out)) continue; /* counted above, or nothing to gain */
        gain += load - target - excess(load - fall, target);
    }
    return gain;
}

static void consider_reassignment(const Layer *p, int32_t rank, int32_t out, int32_t in, double target, Step *best) {
    if (p->count[out] < 2 || p->count[in] >= p->most_copies || holds(p, rank, in)) return;
    const int moves = arrival(p, rank, in) - arrival(p, rank, out);
    if (moves > p->moves_left) return;
    const double worth = reassignment_gain(p, rank, out, in, target) / price(moves);
    if (worth > best->worth) *best = (Step){worth, 2, rank, out, in};
}

static void consider_reassignments(const Layer *p, int32_t hot, double target, Step *best) {
    for (int32_t i = 0; i < p->fill[hot]; i++) {
        const int32_t e = slots_of(p, hot)[i];
        /* The hot rank gives up a copy for one of another expert, */
        for (int32_t in = 0; p->count[e] > 1 && in < p->num_experts; in++)
            consider_reassignment(p, hot, e, in, target, best);
        /* or one of its experts gets another copy, in place of any copy that can be spared elsewhere. */
        for (int32_t out = 0; out < p->num_experts; out++)
            for (int32_t k = 0; p->count[out] > 1 && out != e && k < p->count[out]; k++)
                if (holders_of(p, out)[k] != hot)
                    consider_reassignment(p, holders_of(p, out)[k], out, e, target, best);
    }
}

static void consider_swaps(const Layer *p, int32_t hot, double target, Step *best) {
    const double *give = values_of(p, hot);
    const double before = excess(p->load[hot], target);
    for (int32_t k = 0; k < p->num_ranks - 1; k++) {
        const int32_t cold = p->order[k];
        if (p->load[cold] >= target) return; /* no room there */
        const double *take = values_of(p, cold);
        for (int32_t i = p->fill[hot] - 1; i >= 0; i--)
            for (int32_t j = 0; j < p->fill[cold] && take[j] < give[i]; j++) {
                const int32_t given = slots_of(p, hot)[i], taken = slots_of(p, cold)[j];
                const double d = give[i] - take[j];
                const double gain = before - excess(p->load[hot] - d, target) - excess(p->load[cold] + d, target);
                if (gain <= best->worth / 2) continue; /* the cheapest swap has a price of a half */
                if (!fits(p, cold, given) || !fits(p, hot, taken)) continue;
                const int moves = swap_moves(p, hot, cold, given, taken);
                if (moves > p->moves_left || gain / price(moves) <= best->worth) continue;
                *best = (Step){gain / price(moves), 1, cold, given, taken};
            }
    }
}

/* Bring all ranks to the target while moves are left; nonzero if that was possible. */
int descend_by_excess(Layer *p, Goal *goal) {
    while (goal->steps-- > 0 && peak(p) > goal->target) {
        const int32_t hot = hottest(p);
        Step best = {goal->least, 0, -1, -1, -1};
        consider_reassignments(p, hot, goal->target, &best);
        consider_swaps(p, hot, goal->target, &best);
        if (best.kind == 0) break;
        if (best.kind == 1) {
            apply_swap(p, hot, best.rank, best.out, best.in);
        } else {
            drop_copy(p, best.rank, best.out);
            add_copy(p, best.rank, best.in);
        }
    }
    return peak(p) <= goal->target;
}
