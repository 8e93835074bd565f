/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Another expert's copy in a slot: which such step removes most excess for each slot moved. A bound tells most candidates from
 * the best at a glance; only what it leaves is weighed.
 */
#include "steps.h"

#define BLOCK BOUNDS_AT_ONCE

/* What of a number is above zero: without a comparison, so that compilers do it for several numbers at once. Exact. */
static inline double above_zero(double x) { return (x + fabs(x)) * 0.5; }

/* Whether all of a block are below zero. */
static inline int all_below_zero(const double *value) {
    uint64_t sign[BLOCK], all = ~(uint64_t)0;
    memcpy(sign, value, sizeof sign);
    for (int32_t i = 0; i < BLOCK; i++) all &= sign[i];
    return (int)(all >> 63);
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
    if (worth == c->best.worth && (!c->best.kind || (c->from == k->from && c->place < k->place))) return;
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
    const double *next = p->next_share, *relief = p->relief;
    double seen = INFINITY, most[BLOCK], beyond[BLOCK];
    for (int32_t start = 0; start < p->num_experts && c->best.worth < c->enough; start += BLOCK) {
        const double limit = bar(c, price(least_moves)) - c->excess + loss;
        for (int32_t i = 0; i < BLOCK; i++) {
            most[i] = relief[start + i] - above_zero(without + next[start + i]);
            beyond[i] = most[i] - limit;
        }
        if (all_below_zero(beyond)) continue;
        for (int32_t i = 0; i < BLOCK; i++) {
            const int32_t in = start + i, place = in - p->num_experts; /* before all that copy_elsewhere weighs */
            if (beyond[i] < 0) continue;
            try_one(p, c, &(Candidate){from, place, hot, out, in, most[i] + c->excess, loss}, &seen);
        }
    }
    if (loss > 0) give_up_to_neighbours(p, c, from, without, loss);
}

/* A copy of `in` in the place of a spare. */
static Candidate in_place_of(const Layer *p, int32_t from, int32_t place, int32_t in) {
    const double after = p->spare_without[place] + p->next_share[in];
    const double most = p->relief[in] + (p->spare_above[place] - (after > 0 ? after : 0));
    return (Candidate){from, place, p->spare[place].rank, p->spare[place].out, in, most, p->spare_loss[place]};
}

/* The same in place of what the holders of the expert have beside it: that loses less. */
static void copy_beside_neighbours(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from], copies = p->count[in];
    const int many = (int64_t)copies * p->stride > c->spares; /* then nearly all can be */
    double seen = INFINITY;
    for (int32_t k = 0; many && k < c->spares && c->best.worth < c->enough; k++) {
        const Candidate candidate = in_place_of(p, from, k, in);
        if (candidate.loss > 0) try_one(p, c, &candidate, &seen);
    }
    for (int32_t h = 0; !many && h < copies; h++) {
        const int32_t r = holders_of(p, in)[h];
        for (int32_t i = 0; i < p->fill[r]; i++) {
            const int32_t out = slots_of(p, r)[i];
            if (p->count[out] < 2) continue;
            for (int32_t k = p->index[out]; k >= 0 && k < c->spares && p->spare[k].out == out; k++) {
                const Candidate candidate = in_place_of(p, from, k, in);
                if (candidate.loss > 0 && c->best.worth < c->enough) try_one(p, c, &candidate, &seen);
            }
        }
    }
}

/* One of the hot rank's experts gets another copy, in place of any copy that can be spared elsewhere. */
static void copy_elsewhere(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from];
    if (p->count[in] >= p->most_copies) return;
    const double fresh = p->next_share[in], relief = p->relief[in];
    const double *without = p->spare_without, *above = p->spare_above, *loss = p->spare_loss, *paid = p->spare_price;
    double seen = INFINITY, bound[BLOCK];
    for (int32_t start = 0; start < c->spares && c->best.worth < c->enough; start += BLOCK) {
        const double least = bar(c, 1);
        for (int32_t i = 0; i < BLOCK; i++) {
            const double gain = relief + (above[start + i] - above_zero(without[start + i] + fresh)) - loss[start + i];
            bound[i] = gain - least * paid[start + i];
        }
        if (all_below_zero(bound)) continue;
        for (int32_t i = 0; i < BLOCK; i++) {
            if (bound[i] < 0 || start + i >= c->spares) continue;
            const Candidate candidate = in_place_of(p, from, start + i, in);
            try_one(p, c, &candidate, &seen);
        }
    }
    copy_beside_neighbours(p, c, from);
}

/* List the copies of an expert that can be spared, from place k on; returns the next place. */
static int32_t list_copies(Layer *p, const Choice *c, int32_t out, int32_t k) {
    const int32_t *holder = holders_of(p, out);
    const double share = p->share[out], rise = p->weight[out] / (p->count[out] - 1) - share;
    double sum = 0;
    p->index[out] = k;
    for (int32_t i = 0; i < p->count[out]; i++) {
        const int32_t r = holder[i];
        const double load = p->load[r] - c->target, above = load > 0 ? load : 0;
        const double loss = load + rise > 0 ? load + rise - above : 0;
        sum += loss;
        if (r == c->hot || p->position[r] >= c->cold_ranks) continue;
        p->spare[k] = (Spare){r, out};
        p->spare_without[k] = load - share;
        p->spare_above[k] = above;
        p->spare_loss[k] = loss;
        p->spare_price[k++] = price(!p->gets_back[r] - arrival(p, r, out));
    }
    for (int32_t own = p->index[out]; own < k; own++) p->spare_loss[own] = sum - p->spare_loss[own]; /* of the others */
    return k;
}

/* What is remembered of an expert: what its holders' excess loses by one more copy, and that copy's share. */
static void note_expert(Layer *p, int32_t e, double target) {
    const double fresh = p->weight[e] / (p->count[e] + 1), fall = p->share[e] - fresh;
    const int32_t *holder = holders_of(p, e);
    double relief = 0;
    uint64_t *places = p->places + (size_t)e * p->rank_words;
    memset(places, 0, sizeof *places * (size_t)p->rank_words);
    for (int32_t i = 0; i < p->count[e]; i++) {
        const double load = p->load[holder[i]];
        places[holder[i] >> 6] |= (uint64_t)1 << (holder[i] & 63);
        if (load > target) relief += load - target < fall ? load - target : fall;
    }
    p->next_share[e] = fresh;
    p->relief[e] = relief;
    p->effort -= p->rank_words + p->count[e];
}

/* Note anew what the last step changed. */
void note_changes(Layer *p, double target) {
    for (int32_t r = 0; r < p->num_ranks; r++) {
        if (!p->changed[r]) continue;
        p->changed[r] = 0;
        const uint64_t *on = p->on + (size_t)r * p->words, *was = p->was + (size_t)r * p->words;
        uint64_t left = 0, came = 0;
        for (int32_t i = 0; i < p->words; i++) {
            left |= was[i] & ~on[i];
            came |= on[i] & ~was[i];
        }
        p->left_any[r] = left != 0;
        p->came_any[r] = came != 0;
        for (int32_t i = 0; i < p->fill[r]; i++) note_expert(p, slots_of(p, r)[i], target);
    }
}

void note_all(Layer *p, double target) {
    memset(p->changed, 1, (size_t)p->num_ranks);
    for (int32_t i = 0; i < BLOCK; i++) p->relief[p->num_experts + i] = -INFINITY;
    note_changes(p, target);
}

/* Whether a rank had one of another's experts before, and has it no longer. */
static int had_one_of(const Layer *p, int32_t rank, int32_t other) {
    const uint64_t *on = p->on + (size_t)rank * p->words, *was = p->was + (size_t)rank * p->words;
    const uint64_t *theirs = p->on + (size_t)other * p->words;
    uint64_t back = 0;
    for (int32_t i = 0; i < p->words; i++) back |= theirs[i] & was[i] & ~on[i];
    return back != 0;
}

void list_spares(Layer *p, Choice *c) {
    c->spares = 0;
    for (int32_t r = 0; r < p->num_ranks; r++) {
        p->gets_back[r] = p->left_any[r] && had_one_of(p, r, c->hot);
        p->gives_back[r] = p->left_any[c->hot] && had_one_of(p, c->hot, r);
    }
    for (int32_t out = 0; out < p->num_experts; out++) p->index[out] = -1;
    if (c->cold_ranks == p->num_ranks) {
        for (int32_t out = 0; out < p->num_experts; out++)
            if (p->count[out] > 1) c->spares = list_copies(p, c, out, c->spares);
        return;
    }
    for (int32_t k = 0; k < c->cold_ranks; k++) {
        const int32_t r = p->order[k];
        for (int32_t i = 0; i < p->fill[r]; i++) {
            const int32_t out = slots_of(p, r)[i];
            if (p->count[out] > 1 && p->index[out] < 0) c->spares = list_copies(p, c, out, c->spares);
        }
    }
}

void consider_slot(const Layer *p, Choice *c, int32_t from) {
    give_up(p, c, from);
    if (c->best.worth < c->enough) copy_elsewhere(p, c, from);
}
