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

#define MANY_SLOTS 65536 /* slots times slots of a rank: so many that not every step can be weighed */
#define MOST_TRIES 20000 /* of those steps, each time */

/* What the steps of one hot rank have in common. */
typedef struct {
    double target, excess; /* the hot rank's */
    double enough;         /* a step of this worth is taken without weighing others */
    int64_t tries;         /* candidates that may still be weighed */
    int32_t hot, from;     /* slot of the hot rank that `best` is about, as far as that is looked at */
    int32_t spares;
    Spare *spare;
    Step best;
} Choice;

/* A candidate whose bound is below this cannot be as good as the best, whatever the rounding. */
static double bar(const Choice *c, double price) { return c->best.worth * price * (1 - 1e-10); }

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

/* Whether at most `most` less the loss of other holders cannot come up to the limit. Where a holder of the expert that leaves has
 * the one that gets a copy too, this falls there, by the same for each of its copies. */
static inline int falls_short(const Layer *p, double most, double loss, int32_t out, int32_t in, double limit) {
    if (most - loss >= limit) return 0;
    if (most < limit) return 1;
    const int32_t common = meetings(p, out, in);
    return !common || most - loss + common * (p->share[in] - p->next_share[in]) < limit;
}

/* Weigh a candidate whose bound is not below the bar. */
static void weigh(const Layer *p, Choice *c, int32_t from, int32_t rank, int32_t out, int32_t in, int moves) {
    const double worth = reassignment_gain(p, rank, out, in, c->target) / price(moves);
    if (--c->tries <= 0) c->enough = 0; /* whatever there is */
    if (worth < c->best.worth || (worth == c->best.worth && (!c->best.kind || c->from == from))) return;
    c->best = (Step){worth, 2, rank, out, in};
    c->from = from;
}

/* The hot rank gives up a copy for one of another expert. */
static void give_up(const Layer *p, Choice *c, int32_t from) {
    const int32_t hot = c->hot, out = slots_of(p, hot)[from];
    if (p->count[out] < 2) return;
    const int came = arrival(p, hot, out), least_moves = !p->left_any[hot] - came;
    if (least_moves > p->moves_left) return;
    const double without = p->load[hot] - p->share[out] - c->target;
    const double loss = loss_of_others(p, out, hot, c->target);
    double seen = INFINITY, limit = bar(c, price(least_moves)) - c->excess;
    for (int32_t in = 0; in < p->num_experts; in++) {
        const double left = without + p->next_share[in], most = p->relief[in] - (left > 0 ? left : 0);
        if (falls_short(p, most, loss, out, in, limit)) continue;
        if (p->count[in] >= p->most_copies || holds(p, hot, in)) continue;
        const int moves = arrival(p, hot, in) - came;
        const double paid = price(moves);
        if (moves > p->moves_left || falls_short(p, most, loss, out, in, bar(c, paid) - c->excess)) continue;
        /* Many change no other rank's excess: the first of them at a price stands for all. */
        const int flat = loss == 0 && most == 0;
        if (flat && seen <= paid) continue;
        if (flat) seen = paid;
        weigh(p, c, from, hot, out, in, moves);
        if (c->best.worth >= c->enough) return;
        limit = bar(c, price(least_moves)) - c->excess;
    }
}

/* One of the hot rank's experts gets another copy, in place of any copy that can be spared elsewhere. */
static void copy_elsewhere(const Layer *p, Choice *c, int32_t from) {
    const int32_t in = slots_of(p, c->hot)[from];
    if (p->count[in] >= p->most_copies) return;
    const double fresh = p->next_share[in], relief = p->relief[in];
    double seen = INFINITY, limit[2] = {bar(c, 0.5) - relief, bar(c, 1) - relief};
    for (int32_t k = 0; k < c->spares; k++) {
        const Spare *s = c->spare + k;
        const double after = s->without + fresh, most = s->excess - (after > 0 ? after : 0);
        if (falls_short(p, most, s->loss, s->out, in, limit[s->dear])) continue;
        if (s->out == in || holds(p, s->rank, in)) continue;
        const int moves = arrival(p, s->rank, in) - s->came;
        const double paid = price(moves);
        if (moves > p->moves_left || falls_short(p, most, s->loss, s->out, in, bar(c, paid) - relief)) continue;
        const int flat = most == 0 && s->loss == 0;
        if (flat && seen <= paid) continue;
        if (flat) seen = paid;
        weigh(p, c, from, s->rank, s->out, in, moves);
        if (c->best.worth >= c->enough) return;
        limit[0] = bar(c, 0.5) - relief;
        limit[1] = bar(c, 1) - relief;
    }
}

/* List the copies of an expert that can be spared. */
static Spare *list_copies(const Layer *p, const Choice *c, int32_t out, Spare *next) {
    const int32_t *holder = holders_of(p, out);
    const double share = p->share[out], rise = p->weight[out] / (p->count[out] - 1) - share;
    double sum = 0;
    Spare *s = next;
    for (int32_t k = 0; k < p->count[out]; k++) {
        const int32_t r = holder[k];
        const double load = p->load[r] - c->target, above = load > 0 ? load : 0;
        const double loss = load + rise > 0 ? load + rise - above : 0;
        sum += loss;
        if (r == c->hot) continue;
        s->rank = r;
        s->out = out;
        s->without = load - share;
        s->excess = above;
        s->came = arrival(p, r, out);
        s->dear = !p->left_any[r] && !s->came;
        s->loss = loss;
        s++;
    }
    for (Spare *own = next; own < s; own++) own->loss = sum - own->loss; /* what the others lose */
    return s;
}

/* Weigh swaps with a cold rank. `least` is what any taken expert costs at least beside the given one. What is given less what is
 * taken must be more than the bar, and not so much that the cold rank loses the gain. */
static void swap_with(const Layer *p, Choice *c, int32_t cold, double room, int least) {
    const int32_t hot = c->hot;
    const double *give = values_of(p, hot), *take = values_of(p, cold);
    const double target = c->target, rounding = 1e-12 * p->load[hot];
    Step *best = &c->best;
    int32_t first = p->fill[cold];
    for (int32_t i = p->fill[hot] - 1; i >= 0; i--) {
        const int32_t given = slots_of(p, hot)[i];
        const double wanted = best->worth * price(least + arrival(p, cold, given) - arrival(p, hot, given)) - rounding;
        const double low = give[i] - (c->excess + room - best->worth / 2) - rounding;
        while (first > 0 && take[first - 1] > low) first--;
        for (int32_t j = first; j < p->fill[cold] && take[j] < give[i]; j++) {
            const double d = give[i] - take[j];
            if (d < wanted) break;
            const double gain = c->excess - excess(p->load[hot] - d, target) - excess(p->load[cold] + d, target);
            if (gain <= wanted) continue;
            const int32_t taken = slots_of(p, cold)[j];
            if (!fits(p, cold, given) || !fits(p, hot, taken)) continue;
            const int moves = swap_moves(p, hot, cold, given, taken);
            if (moves > p->moves_left || gain / price(moves) <= best->worth) continue;
            *best = (Step){gain / price(moves), 1, cold, given, taken};
        }
    }
}

static void consider_swaps(const Layer *p, Choice *c) {
    const int32_t hot = c->hot;
    for (int32_t k = 0; k < p->num_ranks - 1; k++) {
        const int32_t cold = p->order[k];
        const double room = c->target - p->load[cold];
        const double most = (room < c->excess ? room : c->excess) * (1 + 1e-9);
        /* No room there, or too little at the least price; the ranks that follow have no more. */
        if (room <= 0 || most <= c->best.worth * price(0)) return;
        /* An arrival is saved where an expert returns, a departure where one goes that had come. */
        const int least = !p->left_any[hot] - p->came_any[cold];
        const int least_moves = least + !p->left_any[cold] - p->came_any[hot];
        if (least_moves > p->moves_left || most <= c->best.worth * price(least_moves)) continue;
        swap_with(p, c, cold, room, least);
    }
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

static Step best_step(Layer *p, const Goal *goal) {
    const int32_t hot = hottest(p);
    const int many = (int64_t)p->num_slots * p->stride > MANY_SLOTS;
    Choice c = {.target = goal->target,
                .excess = excess(p->load[hot], goal->target),
                .hot = hot,
                .from = -1,
                .spare = p->spare,
                .best = {goal->least, 0, -1, -1, -1}};
    c.enough = many ? c.excess * (1 - 1e-9) : INFINITY;
    c.tries = many ? MOST_TRIES : INT64_MAX;
    Spare *end = c.spare;
    for (int32_t out = 0; out < p->num_experts; out++)
        if (p->count[out] > 1) end = list_copies(p, &c, out, end);
    c.spares = (int32_t)(end - c.spare);
    for (int32_t i = p->fill[hot] - 1; i >= 0 && c.best.worth < c.enough; i--) {
        give_up(p, &c, i);
        if (c.best.worth < c.enough) copy_elsewhere(p, &c, i);
    }
    if (c.best.worth < c.enough) consider_swaps(p, &c);
    return c.best;
}

/* Bring all ranks to the target while moves are left; nonzero if that was possible. */
int descend_by_excess(Layer *p, Goal *goal) {
    memset(p->changed, 1, (size_t)p->num_ranks);
    while (goal->steps-- > 0 && peak(p) > goal->target) {
        const int32_t hot = hottest(p);
        note_changes(p, goal->target);
        const Step step = best_step(p, goal);
        if (step.kind == 0) break;
        if (step.kind == 1) {
            apply_swap(p, hot, step.rank, step.out, step.in);
        } else {
            drop_copy(p, step.rank, step.out);
            add_copy(p, step.rank, step.in);
        }
    }
    return peak(p) <= goal->target;
}
