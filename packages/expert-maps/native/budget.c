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

/* What the steps of one hot rank have in common. */
typedef struct {
    double target, excess; /* the hot rank's */
    int32_t hot, from;     /* slot of the hot rank that `best` is about, as far as that is looked at */
    int32_t spares;
    Spare *spare;
    Step best;
} Choice;

/* A candidate whose bound is below this cannot be as good as the best, whatever the rounding. */
static double bar(const Choice *c, double price) { return c->best.worth * price * (1 - 1e-12); }

/* What the other holders of an expert lose if `rank` gives up its copy; and a set in which their numbers are, modulo 64. */
static uint64_t others(const Layer *p, int32_t out, int32_t rank, double target, double *loss) {
    const double rise = p->weight[out] / (p->count[out] - 1) - p->share[out];
    const int32_t *holder = holders_of(p, out);
    uint64_t places = 0;
    *loss = 0;
    for (int32_t i = 0; i < p->count[out]; i++) {
        const int32_t r = holder[i];
        if (r == rank) continue;
        places |= (uint64_t)1 << (r & 63);
        *loss += excess(p->load[r] + rise, target) - excess(p->load[r], target);
    }
    return places;
}

static void consider_reassignment(const Layer *p, Choice *c, int32_t from, int32_t rank, int32_t out, int32_t in) {
    const int moves = arrival(p, rank, in) - arrival(p, rank, out);
    if (moves > p->moves_left) return;
    const double worth = reassignment_gain(p, rank, out, in, c->target) / price(moves);
    if (worth < c->best.worth || (worth == c->best.worth && (!c->best.kind || c->from == from))) return;
    c->best = (Step){worth, 2, rank, out, in};
    c->from = from;
}

/* The hot rank gives up a copy for one of another expert. */
static void give_up(const Layer *p, Choice *c, int32_t from) {
    const int32_t hot = c->hot, out = slots_of(p, hot)[from];
    if (p->count[out] < 2) return;
    const double least_price = p->left_any[hot] || arrival(p, hot, out) ? 0.5 : 1;
    const double without = p->load[hot] - p->share[out] - c->target;
    double loss;
    const uint64_t places = others(p, out, hot, c->target, &loss);
    double limit = bar(c, least_price) - c->excess;
    for (int32_t in = 0; in < p->num_experts; in++) {
        const double left = without + p->next_share[in], bound = p->relief[in] - (left > 0 ? left : 0);
        if (bound < limit || (bound - loss < limit && !(places & p->places[in]))) continue;
        if (p->count[in] >= p->most_copies || holds(p, hot, in)) continue;
        consider_reassignment(p, c, from, hot, out, in);
        limit = bar(c, least_price) - c->excess;
    }
}

/* One of the hot rank's experts gets another copy, in place of any copy that can be spared elsewhere. */
static void copy_elsewhere(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from];
    if (p->count[in] >= p->most_copies) return;
    const double fresh = p->next_share[in];
    const uint64_t places = p->places[in];
    double seen = INFINITY, limit[2] = {bar(c, 0.5) - p->relief[in], bar(c, 1) - p->relief[in]};
    for (int32_t k = 0; k < c->spares; k++) {
        const Spare *s = c->spare + k;
        const double after = s->without + fresh, bound = s->excess - (after > 0 ? after : 0), wanted = limit[s->dear];
        if (bound < wanted || (bound - s->loss < wanted && !(places & s->places))) continue;
        /* Many change no other rank's excess, and the first of them at a price stands for all. */
        const int flat = bound == 0 && s->loss == 0 && !(places & s->places);
        if (flat && seen <= (s->dear ? 1 : 0.5)) continue;
        if (s->out == in || holds(p, s->rank, in)) continue;
        consider_reassignment(p, c, from, s->rank, s->out, in);
        if (flat) {
            const double paid = price(arrival(p, s->rank, in) - arrival(p, s->rank, s->out));
            if (paid < seen) seen = paid;
        }
        limit[0] = bar(c, 0.5) - p->relief[in];
        limit[1] = bar(c, 1) - p->relief[in];
    }
}

/* List what can be spared on other ranks, by expert. */
static void list_spares(const Layer *p, Choice *c) {
    c->spares = 0;
    for (int32_t out = 0; out < p->num_experts; out++) {
        if (p->count[out] < 2) continue;
        const int32_t *holder = holders_of(p, out);
        for (int32_t k = 0; k < p->count[out]; k++) {
            const int32_t r = holder[k];
            if (r == c->hot) continue;
            Spare *s = c->spare + c->spares++;
            s->rank = r;
            s->out = out;
            s->without = p->load[r] - p->share[out] - c->target;
            s->excess = excess(p->load[r], c->target);
            s->dear = !p->left_any[r] && !arrival(p, r, out);
            s->places = others(p, out, r, c->target, &s->loss);
        }
    }
}

static void consider_swaps(const Layer *p, Choice *c) {
    const int32_t hot = c->hot;
    const double *give = values_of(p, hot);
    const double target = c->target, before = c->excess;
    Step *best = &c->best;
    for (int32_t k = 0; k < p->num_ranks - 1; k++) {
        const int32_t cold = p->order[k];
        if (p->load[cold] >= target) return; /* no room there */
        const double room = target - p->load[cold], most = room < before ? room : before;
        if (most * (1 + 1e-9) <= best->worth / 2) return; /* the cheapest swap has a price of a half; the rest has less room */
        /* Where nothing has moved yet, and nothing returns, a swap costs two. */
        const int cheap = p->left_any[hot] || p->left_any[cold] || p->came_any[hot] || p->came_any[cold];
        if (!cheap && most * (1 + 1e-9) <= 2 * best->worth) continue;
        const double *take = values_of(p, cold);
        for (int32_t i = p->fill[hot] - 1; i >= 0; i--)
            for (int32_t j = 0; j < p->fill[cold] && take[j] < give[i]; j++) {
                const double d = give[i] - take[j];
                const double gain = before - excess(p->load[hot] - d, target) - excess(p->load[cold] + d, target);
                if (gain <= best->worth * (cheap ? 0.5 : 2)) continue;
                const int32_t given = slots_of(p, hot)[i], taken = slots_of(p, cold)[j];
                if (!fits(p, cold, given) || !fits(p, hot, taken)) continue;
                const int moves = swap_moves(p, hot, cold, given, taken);
                if (moves > p->moves_left || gain / price(moves) <= best->worth) continue;
                *best = (Step){gain / price(moves), 1, cold, given, taken};
            }
    }
}

/* What is remembered of an expert: what its holders' excess loses by one more copy, and that copy's share. */
static void note_expert(Layer *p, int32_t e, double target) {
    const double fresh = p->weight[e] / (p->count[e] + 1), fall = p->share[e] - fresh;
    const int32_t *holder = holders_of(p, e);
    double relief = 0;
    uint64_t places = 0;
    for (int32_t i = 0; i < p->count[e]; i++) {
        const double load = p->load[holder[i]];
        places |= (uint64_t)1 << (holder[i] & 63);
        if (load > target) relief += load - target < fall ? load - target : fall;
    }
    p->next_share[e] = fresh;
    p->relief[e] = relief;
    p->places[e] = places;
}

/* Note anew what the last step changed. */
static void note_changes(Layer *p, double target) {
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

/* Bring all ranks to the target while moves are left; nonzero if that was possible. */
int descend_by_excess(Layer *p, Goal *goal) {
    memset(p->changed, 1, (size_t)p->num_ranks);
    while (goal->steps-- > 0 && peak(p) > goal->target) {
        const int32_t hot = hottest(p);
        note_changes(p, goal->target);
        Choice c = {goal->target, excess(p->load[hot], goal->target), hot, -1, 0, p->spare, {goal->least, 0, -1, -1, -1}};
        list_spares(p, &c);
        for (int32_t i = p->fill[hot] - 1; i >= 0; i--) {
            give_up(p, &c, i);
            copy_elsewhere(p, &c, i);
        }
        consider_swaps(p, &c);
        if (c.best.kind == 0) break;
        if (c.best.kind == 1) {
            apply_swap(p, hot, c.best.rank, c.best.out, c.best.in);
        } else {
            drop_copy(p, c.best.rank, c.best.out);
            add_copy(p, c.best.rank, c.best.in);
        }
    }
    return peak(p) <= goal->target;
}
