/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Descent on the hottest rank: swaps, then swaps of two for two, then another split of the copies.
 */
#include "layer.h"

/* Moves that a swap costs: two, less for experts that return to a rank of theirs. */
int swap_moves(const Layer *p, int32_t hot, int32_t cold, int32_t given, int32_t taken) {
    if (!p->tracked) return 0;
    return arrival(p, hot, taken) - arrival(p, hot, given) + arrival(p, cold, given) - arrival(p, cold, taken);
}

static int may_swap(const Layer *p, int32_t hot, int32_t cold, int32_t given, int32_t taken) {
    return given != taken && fits(p, cold, given) && fits(p, hot, taken);
}

void apply_swap(Layer *p, int32_t hot, int32_t cold, int32_t given, int32_t taken) {
    if (p->moves_left != UNLIMITED) p->moves_left -= swap_moves(p, hot, cold, given, taken);
    erase_copy(p, hot, given);
    erase_copy(p, cold, taken);
    insert_copy(p, hot, taken);
    insert_copy(p, cold, given);
    change_holder(p, given, hot, cold);
    change_holder(p, taken, cold, hot);
    sum_rank(p, hot);
    sum_rank(p, cold);
    reorder_rank(p, hot);
    reorder_rank(p, cold);
}

typedef struct {
    double value; /* of the hotter of the two ranks */
    int32_t cold, given, taken;
} Swap;

/* Look for a better swap with `cold`: given − taken as near as possible to half the difference of the
 * ranks. Nonzero once both would carry the target at most. */
static int scan(const Layer *p, int32_t hot, int32_t cold, double target, Swap *best) {
    const double mean = (p->load[hot] + p->load[cold]) / 2, half = (p->load[hot] - p->load[cold]) / 2;
    const double *give = values_of(p, hot), *take = values_of(p, cold);
    const int32_t *given = slots_of(p, hot), *taken = slots_of(p, cold);
    double limit = best->value - mean;
    int32_t first = 0;
    for (int32_t i = 0; i < p->fill[hot]; i++) {
        const double wanted = give[i] - half;
        while (first < p->fill[cold] && take[first] <= wanted - limit) first++;
        for (int32_t j = first; j < p->fill[cold] && take[j] < wanted + limit; j++) {
            const double miss = fabs(take[j] - wanted);
            if (miss >= limit || !may_swap(p, hot, cold, given[i], taken[j])) continue;
            limit = miss;
            *best = (Swap){mean + miss, cold, given[i], taken[j]};
            if (best->value <= target) return 1;
        }
    }
    return 0;
}

static int swap_once(Layer *p, int32_t hot, const Goal *goal) {
    Swap best = {p->load[hot] - goal->least, -1, -1, -1};
    for (int32_t i = 0; i < p->num_ranks - 1; i++) {
        const int32_t cold = p->order[i];
        /* The lightest come first: none of the rest can do better. */
        if ((p->load[hot] + p->load[cold]) / 2 >= best.value) break;
        if (scan(p, hot, cold, goal->target, &best)) break;
    }
    if (best.value > goal->target && swap_pairs(p, hot, goal, best.value)) return 1;
    if (best.cold < 0) return 0;
    apply_swap(p, hot, best.cold, best.given, best.taken);
    return 1;
}

typedef struct {
    double value; /* of the hottest rank that is touched */
    int32_t rank, dropped, added;
} Reassignment;

/* The load of the hottest touched rank if `rank` held `added` in place of `dropped`; ranks that only get
 * lighter are left out. At least `limit` where it would be more. */
static double reassigned(const Layer *p, int32_t rank, int32_t dropped, int32_t added, double limit) {
    const double rise = p->weight[dropped] / (p->count[dropped] - 1) - p->share[dropped];
    const double fresh = p->weight[added] / (p->count[added] + 1), fall = p->share[added] - fresh;
    const int32_t *holder = holders_of(p, dropped);
    double value = p->load[rank] - p->share[dropped] + fresh;
    for (int32_t i = 0; i < p->count[dropped] && value < limit; i++) {
        if (holder[i] == rank) continue;
        const double load = p->load[holder[i]] + rise - (holds(p, holder[i], added) ? fall : 0);
        if (load > value) value = load;
    }
    return value;
}

/* Another copy of one of the hottest rank's experts, in place of some other expert's copy elsewhere. */
static void relieve(const Layer *p, int32_t hot, double target, Reassignment *best) {
    for (int32_t i = p->fill[hot] - 1; i >= 0; i--) {
        const int32_t added = slots_of(p, hot)[i];
        if (p->count[added] >= p->most_copies) continue;
        const double cooled = p->load[hot] - p->share[added] + p->weight[added] / (p->count[added] + 1);
        if (cooled >= best->value) continue;
        for (int32_t a = 0; a < p->num_experts; a++) {
            if (p->count[a] < 2 || a == added) continue;
            const int32_t *holder = holders_of(p, a);
            double own = cooled;
            if (holds(p, hot, a)) own += p->weight[a] / (p->count[a] - 1) - p->share[a];
            for (int32_t k = 0; k < p->count[a] && own < best->value; k++) {
                if (holder[k] == hot || holds(p, holder[k], added)) continue;
                const double others = reassigned(p, holder[k], a, added, best->value);
                const double value = others > own ? others : own;
                if (value < best->value) *best = (Reassignment){value, holder[k], a, added};
                if (best->value <= target) return;
            }
        }
    }
}

/* The hottest rank gives up a copy for one of a lighter expert. */
static void exchange(const Layer *p, int32_t hot, double target, Reassignment *best) {
    for (int32_t i = 0; i < p->fill[hot]; i++) {
        const int32_t dropped = slots_of(p, hot)[i];
        if (p->count[dropped] < 2) continue;
        for (int32_t b = 0; b < p->num_experts; b++) {
            if (p->count[b] >= p->most_copies || p->weight[b] / (p->count[b] + 1) >= p->share[dropped]) continue;
            if (holds(p, hot, b)) continue;
            const double value = reassigned(p, hot, dropped, b, best->value);
            if (value < best->value) *best = (Reassignment){value, hot, dropped, b};
            if (best->value <= target) return;
        }
    }
}

static int reassign_once(Layer *p, int32_t hot, const Goal *goal) {
    Reassignment best = {p->load[hot] - goal->least, -1, -1, -1};
    relieve(p, hot, goal->target, &best);
    if (best.value > goal->target) exchange(p, hot, goal->target, &best);
    if (best.rank < 0) return 0;
    drop_copy(p, best.rank, best.dropped);
    add_copy(p, best.rank, best.added);
    return 1;
}

/* Improve the hottest rank until the target is met (nonzero), or no step helps (zero). Moves are not limited: with a
 * budget it is descend_by_excess that plans. */
int descend(Layer *p, Goal *goal) {
    while (goal->steps-- > 0 && !is_cancelled(p)) {
        const int32_t hot = hottest(p);
        if (p->load[hot] <= goal->target) return 1;
        if (swap_once(p, hot, goal)) continue;
        if (goal->recount && reassign_once(p, hot, goal)) continue;
        break;
    }
    return peak(p) <= goal->target;
}

/* Copy what a descent changes; both must have room for the same counts. */
void copy_state(Layer *to, const Layer *from) {
    const size_t e = (size_t)from->num_experts, r = (size_t)from->num_ranks, s = (size_t)from->stride;
    memcpy(to->count, from->count, e * sizeof *to->count);
    memcpy(to->share, from->share, e * sizeof *to->share);
    for (size_t i = 0; i < e; i++)
        memcpy(to->holder + i * from->most_copies, from->holder + i * from->most_copies,
               (size_t)from->count[i] * sizeof *to->holder);
    memcpy(to->slot, from->slot, r * s * sizeof *to->slot);
    memcpy(to->value, from->value, r * s * sizeof *to->value);
    memcpy(to->fill, from->fill, r * sizeof *to->fill);
    memcpy(to->load, from->load, r * sizeof *to->load);
    memcpy(to->order, from->order, r * sizeof *to->order);
    memcpy(to->position, from->position, r * sizeof *to->position);
    memcpy(to->on, from->on, r * from->words * sizeof *to->on);
    memset(to->stale, 1, r);
    to->moves_left = from->moves_left;
}

static uint32_t next_random(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static void kick(Layer *p, uint32_t *random, int32_t a, int32_t b, int recount) {
    if (a == b || !p->fill[a] || !p->fill[b]) return;
    const int32_t given = slots_of(p, a)[next_random(random) % p->fill[a]];
    const int32_t taken = slots_of(p, b)[next_random(random) % p->fill[b]];
    if (recount && next_random(random) % 3 == 0) { /* b's expert in place of a's, which is left elsewhere */
        if (p->count[given] < 2 || p->count[taken] >= p->most_copies || holds(p, a, taken)) return;
        drop_copy(p, a, given);
        add_copy(p, a, taken);
    } else if (may_swap(p, a, b, given, taken)) {
        apply_swap(p, a, b, given, taken);
    }
}

/* Change a few slots at random, one of the hottest rank's among them, and descend again; keep what is better. */
int kick_and_descend(Layer *p, Goal *goal, Layer *saved, int32_t kicks) {
    uint32_t random = 2463534242u;
    for (; kicks > 0 && peak(p) > goal->target && goal->steps > 0 && p->num_ranks > 1 && !is_cancelled(p); kicks--) {
        copy_state(saved, p);
        const double before = peak(p);
        const int recount = p->num_slots > p->num_experts;
        for (int i = 0; i < 3; i++) {
            const int32_t a = i ? (int32_t)(next_random(&random) % p->num_ranks) : hottest(p);
            kick(p, &random, a, (int32_t)(next_random(&random) % p->num_ranks), recount);
        }
        if (!descend(p, goal) && peak(p) > before) copy_state(p, saved);
    }
    return peak(p) <= goal->target;
}
