/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Descent where every moved slot counts: the step that removes most excess over the target for each slot moved.
 */
#include "plan.h"
#include "steps.h"

#define MANY_SLOTS 65536 /* slots times slots of a rank: so many that not every step can be weighed */
#define MOST_TRIES 1000  /* of those steps, each time: */
#define MOST_SPARES 1024 /* with these slots of the lightest ranks, */
#define MOST_GIVEN 16    /* and these of the hottest */
#define MOST_SLOTS_FOR_COPIES 2
#define GOOD_ENOUGH 0.75 /* of the hot rank's excess, removed for each move */

/* Weigh a swap of a slot of the hot rank with one of a cold one. Of equal ones the lightest cold rank's wins, then the heaviest
 * given, then the lightest taken. */
static void weigh_swap(const Layer *p, Choice *c, int32_t cold, int32_t i, int32_t j) {
    const int32_t hot = c->hot, given = slots_of(p, hot)[i], taken = slots_of(p, cold)[j];
    const double d = values_of(p, hot)[i] - values_of(p, cold)[j];
    const double gain = c->excess - excess(p->load[hot] - d, c->target) - excess(p->load[cold] + d, c->target);
    if (gain < bar(c, 0.5) || !fits(p, cold, given) || !fits(p, hot, taken)) return;
    const int moves = swap_moves(p, hot, cold, given, taken);
    const double worth = gain / price(moves);
    if (moves > p->moves_left || worth < c->best.worth) return;
    if (worth == c->best.worth) {
        if (c->best.kind != 1 || c->best.rank != cold) return;
        if (i < c->from || (i == c->from && j >= c->place)) return;
    }
    c->best = (BudgetStep){worth, 1, cold, given, taken};
    c->from = i;
    c->place = j;
}

/* Weigh swaps of experts that neither rank had, or both: they cost two moves. What is given less what is taken must be more
 * than the bar, and not so much that the cold rank loses the gain. */
static void swap_with(const Layer *p, Choice *c, int32_t cold, double room) {
    const double *give = values_of(p, c->hot), *take = values_of(p, cold);
    const double rounding = 1e-12 * p->load[c->hot];
    int32_t first = p->fill[cold];
    for (int32_t i = p->fill[c->hot] - 1; i >= 0; i--) {
        const double wanted = c->best.worth * 2 - rounding;
        const double low = give[i] - (c->excess + room - wanted), high = give[i] - wanted;
        if (take[0] > high) return; /* nor does any lighter slot differ enough */
        while (first > 0 && take[first - 1] > low) first--;
        for (int32_t j = first; j < p->fill[cold] && take[j] <= high && take[j] < give[i]; j++) weigh_swap(p, c, cold, i, j);
    }
}

/* Weigh swaps in which the expert of a slot of the hot rank came to it, or goes back: those are cheaper. */
static void swap_given(const Layer *p, Choice *c, int32_t cold, int32_t i, double room, int least) {
    const int32_t given = slots_of(p, c->hot)[i];
    const int moves = arrival(p, cold, given) - arrival(p, c->hot, given);
    if (moves > 0) return;
    const double give = values_of(p, c->hot)[i], *take = values_of(p, cold);
    const double wanted = bar(c, price(least + moves)) - 1e-12 * p->load[c->hot], most = give - c->excess - room + wanted;
    for (int32_t j = p->fill[cold] - 1; j >= 0 && take[j] >= most; j--)
        if (give - take[j] >= wanted && take[j] < give) weigh_swap(p, c, cold, i, j);
}

/* The same for what a slot of the cold rank gives. */
static void swap_taken(const Layer *p, Choice *c, int32_t cold, int32_t j, double room, int least) {
    const int32_t taken = slots_of(p, cold)[j];
    const int moves = arrival(p, c->hot, taken) - arrival(p, cold, taken);
    if (moves > 0) return;
    const double take = values_of(p, cold)[j], *give = values_of(p, c->hot);
    const double wanted = bar(c, price(least + moves)) - 1e-12 * p->load[c->hot], most = take + c->excess + room - wanted;
    for (int32_t i = p->fill[c->hot] - 1; i >= 0 && give[i] - take >= wanted && give[i] > take; i--)
        if (give[i] <= most) weigh_swap(p, c, cold, i, j);
}

static void consider_swaps(const Layer *p, Choice *c) {
    const int32_t hot = c->hot;
    for (int32_t k = 0; k < p->num_ranks - 1; k++) {
        const int32_t cold = p->order[k];
        const double room = c->target - p->load[cold];
        const double most = (room < c->excess ? room : c->excess) * (1 + 1e-9);
        /* No room there, or too little at the least price; the ranks that follow have no more. */
        if (room <= 0 || most < c->best.worth * price(0)) return;
        if (p->moves_left >= 2 && most > c->best.worth * 2) swap_with(p, c, cold, room);
        /* An arrival is saved where an expert returns, a departure where one goes that had come. */
        const int given = !p->gets_back[cold] - (p->num_came[hot] > 0);
        const int taken = !p->gives_back[cold] - (p->num_came[cold] > 0);
        if (given + taken > 1 || given + taken > p->moves_left || most < c->best.worth * price(given + taken)) continue;
        const int32_t slots = p->gets_back[cold] ? p->fill[hot] : p->num_came[hot];
        for (int32_t i = 0; i < slots; i++)
            swap_given(p, c, cold, p->gets_back[cold] ? i : came_to(p, hot)[i], room, taken);
        const int32_t others = p->gives_back[cold] ? p->fill[cold] : p->num_came[cold];
        for (int32_t j = 0; j < others; j++)
            swap_taken(p, c, cold, p->gives_back[cold] ? j : came_to(p, cold)[j], room, given);
    }
}

int has_many_slots(const Layer *p) { return (int64_t)p->num_slots * p->stride > MANY_SLOTS; }

/* The best step for the hottest rank; of kind 0 if none is worth more than the goal's least. */
BudgetStep best_step(Layer *p, const Goal *goal) {
    const int32_t hot = hottest(p);
    const int many = has_many_slots(p);
    Choice c = {.target = goal->target,
                .excess = excess(p->load[hot], goal->target),
                .hot = hot,
                .from = -1,
                .best = {goal->least, 0, -1, -1, -1}};
    c.enough = many ? c.excess * (1 - 1e-9) : INFINITY;
    c.tries = many ? MOST_TRIES : INT64_MAX;
    c.slots = many && p->fill[hot] > MOST_GIVEN ? MOST_GIVEN : p->fill[hot];
    c.cold_ranks = p->num_ranks;
    if (many && c.cold_ranks > MOST_SPARES / p->stride + 1) c.cold_ranks = MOST_SPARES / p->stride + 1;
    list_returns(p, &c);
    /* With few slots a rank, or many in all, it is not swaps that help most. */
    const int swaps_first = !many && p->stride > MOST_SLOTS_FOR_COPIES;
    if (swaps_first) consider_swaps(p, &c);
    /* Any number of moves is allowed: then a step that is nearly the best is sought no further. */
    if (swaps_first && p->moves_left == UNLIMITED && c.best.worth >= GOOD_ENOUGH * c.excess) return c.best;
    list_spares(p, &c);
    for (int32_t i = p->fill[hot] - 1; i >= p->fill[hot] - c.slots && c.best.worth < c.enough; i--) consider_slot(p, &c, i);
    if (!swaps_first && c.best.worth < c.enough) consider_swaps(p, &c);
    p->effort -= c.effort + c.spares;
    return c.best;
}

/* Bring all ranks to the target while moves are left; nonzero if that was possible. */
int descend_by_excess(Layer *p, Goal *goal) {
    note_all(p);
    while (goal->steps-- > 0 && peak(p) > goal->target && p->effort > 0 && !is_cancelled(p)) {
        const int32_t hot = hottest(p);
        note_changes(p);
        const BudgetStep step = best_step(p, goal);
        if (step.kind == 0) break;
        if (step.kind == 1) {
            apply_swap(p, hot, step.rank, step.out, step.in);
        } else {
            drop_copy(p, step.rank, step.out);
            add_copy(p, step.rank, step.in);
            list_anew(p, step.out);
            list_anew(p, step.in);
        }
    }
    return peak(p) <= goal->target;
}

/* For the tests, which have a twin of it: the best step from the slots `now` where those of `before` are the placement in use, both [ranks, room]; zero if there is
 * memory. Out: its worth; its kind, rank, and what goes and comes. */
EXPORTED int expert_maps_part_best_step(int64_t experts, int64_t ranks, int64_t room, const double *load,
                                        const int32_t *before, const int32_t *now, double target, int64_t moves_left,
                                        double *worth, int32_t *step) {
    Layer layer, *p = &layer;
    int32_t *held = malloc(sizeof *held * (size_t)ranks);
    if (!held || layer_init(p, (int32_t)experts, (int32_t)ranks, (int32_t)room)) {
        free(held);
        return OUT_OF_MEMORY;
    }
    for (int64_t r = 0; r < ranks; r++) held[r] = (int32_t)room;
    layer_shape(p, (int32_t)experts, (int32_t)ranks, held);
    memcpy(p->weight, load, sizeof *load * (size_t)experts);
    p->effort = INT64_MAX;
    start_from(p, now, held);
    memset(p->was, 0, sizeof *p->was * (size_t)ranks * (size_t)p->words);
    for (int32_t r = 0; r < ranks; r++)
        for (int64_t i = 0; i < room; i++) put_in_set(p->was, p, r, *before++);
    p->moves_left = moves_left;
    const Goal goal = {target, 0, 1, 1};
    note_all(p);
    const BudgetStep best = best_step(p, &goal);
    *worth = best.worth;
    step[0] = best.kind;
    step[1] = best.rank;
    step[2] = best.out;
    step[3] = best.in;
    layer_free(p);
    free(held);
    return PLANNED;
}
