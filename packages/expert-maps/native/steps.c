/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Another expert's copy in a slot: which such step removes most excess for each slot moved. A bound tells most candidates from
 * the best at a glance; only what it leaves is weighed.
 */
#include "steps.h"

#define BLOCK BOUNDS_AT_ONCE

/* What of a number is above zero: without a comparison, so that compilers do it for several numbers at once. */
static inline float above_zero(float x) { return (x + fabsf(x)) * 0.5f; }

/* Whether all of a block are below zero. */
static inline int all_below_zero(const float *value) {
    uint32_t sign[BLOCK], all = ~(uint32_t)0;
    memcpy(sign, value, sizeof sign);
    for (int32_t i = 0; i < BLOCK; i++) all &= sign[i];
    return (int)(all >> 31);
}

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

/* What the other holders of an expert lose if `rank` gives up its copy. */
static double loss_of_others(const Layer *p, int32_t out, int32_t rank, double target) {
    const double rise = p->weight[out] / (p->count[out] - 1) - p->share[out];
    const int32_t *holder = holders_of(p, out);
    double loss = 0;
    for (int32_t i = 0; i < p->count[out]; i++) {
        const double load = p->load[holder[i]];
        if (holder[i] != rank) loss += excess(load + rise, target) - excess(load, target);
    }
    return loss;
}

static int32_t bits(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    return (int32_t)(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

/* The experts' common holders. */
static inline int32_t meetings(const Layer *p, int32_t a, int32_t b) {
    const uint64_t *x = p->places + (size_t)a * p->rank_words, *y = p->places + (size_t)b * p->rank_words;
    int32_t common = 0;
    for (int32_t i = 0; i < p->rank_words; i++)
        if (x[i] & y[i]) common += bits(x[i] & y[i]);
    return common;
}

/* What is weighed: `rank` takes `in` for `out`. Among equals the first slot of the hot rank wins, then the first place in the order
 * of all candidates of that slot, in whatever order they are looked at. */
typedef struct {
    int32_t from, place;
    int32_t rank, out, in;
    double most; /* its gain, before the other holders of `out` lose what is theirs to lose */
    double loss; /* at most that, as far as they do not hold `in` too */
} Candidate;

static void weigh(const Layer *p, Choice *c, const Candidate *k, double paid) {
    const double worth = reassignment_gain(p, k->rank, k->out, k->in, c->target) / paid;
    if (--c->tries <= 0) c->enough = 0; /* whatever there is */
    c->effort += p->count[k->out] + p->count[k->in];
    if (worth < c->best.worth) return;
    if (worth == c->best.worth && (c->best.kind != 2 || (c->from == k->from && c->place < k->place))) return;
    c->best = (BudgetStep){worth, 2, k->rank, k->out, k->in};
    c->from = k->from;
    c->place = k->place;
}

/* Weigh a candidate unless its bound says that it is not good enough. Where a holder of `out` has `in` too, this falls there, by
 * the same for each of its copies. `seen` is the least price of those that change no other rank's excess: they are many, and
 * the first of them stands for all. */
static void try_one(const Layer *p, Choice *c, const Candidate *k, double *seen) {
    if (k->out == k->in || p->count[k->in] >= p->most_copies || holds(p, k->rank, k->in)) return;
    const int moves = arrival(p, k->rank, k->in) - arrival(p, k->rank, k->out);
    const double paid = price(moves), wanted = bar(c, paid), least = k->most - k->loss;
    if (moves > p->moves_left || k->most < wanted) return;
    c->effort += p->rank_words;
    if (least < wanted &&
        least + meetings(p, k->out, k->in) * (p->share[k->in] - p->next_share[k->in]) < wanted)
        return;
    if (k->loss == 0 && k->most == (k->rank == c->hot ? c->excess : p->relief[k->in])) {
        if (*seen <= paid) return;
        *seen = paid;
    }
    weigh(p, c, k, paid);
}

/* The same for experts that share a rank with the copies that stay: they lose less than that. */
static void give_up_to_neighbours(const Layer *p, Choice *c, int32_t from, double without, double loss) {
    const int32_t hot = c->hot, out = slots_of(p, hot)[from], copies = p->count[out];
    const int many = (int64_t)copies * p->stride > p->num_experts; /* then nearly all do */
    double seen = INFINITY;
    for (int32_t k = 0; k < (many ? 1 : copies); k++) {
        const int32_t r = holders_of(p, out)[k], n = many ? p->num_experts : r == hot ? 0 : p->fill[r];
        for (int32_t i = 0; i < n && c->best.worth < c->enough; i++) {
            const int32_t in = many ? i : slots_of(p, r)[i];
            const double left = without + p->next_share[in], most = p->relief[in] - (left > 0 ? left : 0) + c->excess;
            try_one(p, c, &(Candidate){from, in - p->num_experts, hot, out, in, most, loss}, &seen);
        }
    }
}

/* The hot rank gives up a copy for one of another expert. */
static void give_up(const Layer *p, Choice *c, int32_t from) {
    const int32_t hot = c->hot, out = slots_of(p, hot)[from];
    if (p->count[out] < 2) return;
    const int least_moves = !p->left_any[hot] - arrival(p, hot, out);
    if (least_moves > p->moves_left) return;
    const double without = p->load[hot] - p->share[out] - c->target, loss = loss_of_others(p, out, hot, c->target);
    const float rounding = ROUNDING * (float)p->load[hot], base = (float)without - rounding;
    const float *next = p->share_bound, *relief = p->relief_bound;
    double seen = INFINITY;
    float beyond[BLOCK];
    for (int32_t start = 0; start < p->num_experts && c->best.worth < c->enough; start += BLOCK) {
        const float limit = (float)(bar(c, price(least_moves)) - c->excess + loss) - 2 * rounding;
        for (int32_t i = 0; i < BLOCK; i++)
            beyond[i] = relief[start + i] - above_zero(base + next[start + i]) - limit;
        if (all_below_zero(beyond)) continue;
        for (int32_t i = 0; i < BLOCK; i++) {
            const int32_t in = start + i, place = in - p->num_experts; /* before all that copy_elsewhere weighs */
            if (beyond[i] < 0) continue;
            const double left = without + p->next_share[in], most = p->relief[in] - (left > 0 ? left : 0) + c->excess;
            try_one(p, c, &(Candidate){from, place, hot, out, in, most, loss}, &seen);
        }
    }
    if (loss > 0) give_up_to_neighbours(p, c, from, without, loss);
}

/* A copy of `in` in the place of a spare. */
static Candidate in_place_of(const Layer *p, const Choice *c, int32_t from, int32_t place, int32_t in) {
    const int32_t rank = p->spare[place].rank, out = p->spare[place].out;
    const double above = p->load[rank] - c->target, share = p->share[out], after = above - share + p->next_share[in];
    const double loss = p->loss[out] - loss_of(above, p->weight[out] / (p->count[out] - 1) - share);
    const double most = p->relief[in] + ((above > 0 ? above : 0) - (after > 0 ? after : 0));
    return (Candidate){from, place, rank, out, in, most, loss};
}

/* The same if it is good enough, where the others that have what goes lose nothing. */
static void try_in_place_of(const Layer *p, Choice *c, int32_t from, int32_t place, int32_t in, double *seen) {
    const float after = p->spare_without[place] + p->share_bound[in];
    const float most = p->relief_bound[in] + p->spare_above[place] - (after > 0 ? after : 0);
    if (p->loss[p->spare[place].out] == 0 || most < c->least_gain) return;
    const Candidate candidate = in_place_of(p, c, from, place, in);
    if (candidate.loss > 0) try_one(p, c, &candidate, seen);
}

/* The same in place of what the holders of the expert have beside it: that loses less. */
static void copy_beside_neighbours(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from], copies = p->count[in];
    const int many = (int64_t)copies * p->stride > c->spares; /* then nearly all can be */
    double seen = INFINITY;
    c->least_gain = (float)(bar(c, price(0)) - 4e-6 * p->load[c->hot]);
    for (int32_t k = 0; many && k < c->spares && c->best.worth < c->enough; k++)
        try_in_place_of(p, c, from, k, in, &seen);
    for (int32_t h = 0; !many && h < copies; h++) {
        const int32_t r = holders_of(p, in)[h];
        for (int32_t i = 0; i < p->fill[r]; i++) {
            const int32_t out = slots_of(p, r)[i];
            if (p->count[out] < 2) continue;
            for (int32_t k = p->index[out]; k >= 0 && k < c->spares && p->spare[k].out == out; k++)
                if (c->best.worth < c->enough) try_in_place_of(p, c, from, k, in, &seen);
        }
    }
}

/* The same on ranks that had the expert before: that is cheaper. */
static void copy_back(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from];
    for (int32_t k = 0; k < c->backs; k++) {
        const int32_t r = p->index[p->num_experts + k];
        if (arrival(p, r, in) || holds(p, r, in) || p->position[r] >= c->cold_ranks) continue;
        for (int32_t i = 0; i < p->fill[r] && c->best.worth < c->enough; i++) {
            const int32_t out = slots_of(p, r)[i];
            if (p->count[out] < 2) continue;
            double seen = INFINITY;
            int32_t place = p->index[out];
            while (p->spare[place].rank != r) place++;
            const Candidate candidate = in_place_of(p, c, from, place, in);
            try_one(p, c, &candidate, &seen);
        }
    }
}

/* One of the hot rank's experts gets another copy, in place of any copy that can be spared elsewhere. */
static void copy_elsewhere(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from];
    if (p->count[in] >= p->most_copies) return;
    const float rounding = ROUNDING * (float)p->load[c->hot];
    /* What is gained is at most what the expert's ranks lose, and the rank of the spare. */
    if (p->num_ranks > 1 && p->relief[in] + excess(p->load[p->order[p->num_ranks - 2]], c->target) < bar(c, price(0))) return;
    const float fresh = p->share_bound[in] - rounding, relief = p->relief_bound[in] + 2 * rounding;
    const float *without = p->spare_without, *above = p->spare_above, *loss = p->spare_loss, *paid = p->spare_price;
    double seen = INFINITY;
    float bound[BLOCK];
    for (int32_t start = 0; start < c->spares && c->best.worth < c->enough; start += BLOCK) {
        const float least = (float)bar(c, 1) * (1 - ROUNDING);
        for (int32_t i = 0; i < BLOCK; i++) {
            const float gain = relief + (above[start + i] - above_zero(without[start + i] + fresh)) - loss[start + i];
            bound[i] = gain - least * paid[start + i];
        }
        if (all_below_zero(bound)) continue;
        for (int32_t i = 0; i < BLOCK; i++) {
            if (bound[i] < 0 || start + i >= c->spares) continue;
            const Candidate candidate = in_place_of(p, c, from, start + i, in);
            try_one(p, c, &candidate, &seen);
        }
    }
    copy_back(p, c, from);
    copy_beside_neighbours(p, c, from);
}

void consider_slot(const Layer *p, Choice *c, int32_t from) {
    give_up(p, c, from);
    if (c->best.worth < c->enough) copy_elsewhere(p, c, from);
}
