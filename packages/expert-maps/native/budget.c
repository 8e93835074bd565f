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

/* Weigh swaps with a cold rank. `least` is what any taken expert costs at least beside the given one, and no swap costs less than
 * `least_price`. What is given less what is
 * taken must be more than the bar, and not so much that the cold rank loses the gain. */
static void swap_with(const Layer *p, Choice *c, int32_t cold, double room, int least, double least_price) {
    const int32_t hot = c->hot;
    const double *give = values_of(p, hot), *take = values_of(p, cold);
    const double target = c->target, rounding = 1e-12 * p->load[hot];
    BudgetStep *best = &c->best;
    int32_t first = p->fill[cold];
    for (int32_t i = p->fill[hot] - 1; i >= 0; i--) {
        const double low = give[i] - (c->excess + room - best->worth * least_price) - rounding;
        const double high = give[i] - best->worth * least_price + rounding;
        if (take[0] > high) return; /* nor does any lighter slot differ enough */
        while (first > 0 && take[first - 1] > low) first--;
        if (first == p->fill[cold] || take[first] > high) continue;
        const int32_t given = slots_of(p, hot)[i];
        const double wanted = best->worth * price(least + arrival(p, cold, given) - arrival(p, hot, given)) - rounding;
        for (int32_t j = first; j < p->fill[cold] && take[j] < give[i]; j++) {
            const double d = give[i] - take[j];
            if (d < wanted) break;
            const double gain = c->excess - excess(p->load[hot] - d, target) - excess(p->load[cold] + d, target);
            if (gain <= wanted) continue;
            const int32_t taken = slots_of(p, cold)[j];
            if (!fits(p, cold, given) || !fits(p, hot, taken)) continue;
            const int moves = swap_moves(p, hot, cold, given, taken);
            if (moves > p->moves_left || gain / price(moves) <= best->worth) continue;
            *best = (BudgetStep){gain / price(moves), 1, cold, given, taken};
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
        const int least = !p->gives_back[cold] - p->came_any[cold];
        const int least_moves = least + !p->gets_back[cold] - p->came_any[hot];
        if (least_moves > p->moves_left || most <= c->best.worth * price(least_moves)) continue;
        swap_with(p, c, cold, room, least, price(least_moves));
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
    list_spares(p, &c);
    for (int32_t i = p->fill[hot] - 1; i >= p->fill[hot] - c.slots && c.best.worth < c.enough; i--) consider_slot(p, &c, i);
    if (c.best.worth < c.enough) consider_swaps(p, &c);
    p->effort -= c.effort + c.spares;
    return c.best;
}

/* Bring all ranks to the target while moves are left; nonzero if that was possible. */
int descend_by_excess(Layer *p, Goal *goal) {
    note_all(p, goal->target);
    while (goal->steps-- > 0 && peak(p) > goal->target && p->effort > 0 && !is_cancelled(p)) {
        const int32_t hot = hottest(p);
        note_changes(p, goal->target);
        const BudgetStep step = best_step(p, goal);
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
    note_all(p, target);
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
