/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Plans that start from the present placement and move no more slots than allowed.
 */
#include "plan.h"

#define NARROWINGS 3 /* of the target, between what is wished for and what there is */
#define MOST_SPENT 150 /* moves of all those attempts: after more of them there is no further one */
#define NEAR_PLAN 1.05 /* with two slots a rank steps bring no placement that is hotter than this down to a plan anew */
#define RAISES 3     /* of the target of a descent that has no moves left */
#define NEAR_TARGET 0.998 /* of the target: such a rank has no room */
#define FAIR 1.3     /* what the last target saves, beside the excess that it takes away: steps that need not be so good */
#define FEW 0.4      /* of a layer's slots: with a budget of fewer no plan anew is within reach */
#define SMALL 128    /* slots of a layer for which it is made all the same */

#define MOST_EFFORT 150000000 /* for a layer; about a second, which only those of many slots take */

/* Number the present copies as their node does; those of experts that the node does not have are dropped. */
static void localize(Work *w, const Problem *problem, const int32_t *current) {
    const int32_t experts = w->experts_per_node;
    int32_t *kept = w->kept;
    for (int32_t r = 0; r < problem->ranks; r++) {
        const int32_t *members = w->members + r / w->ranks_per_node * experts;
        for (int32_t i = 0; i < problem->held[r]; i++, current++, kept++)
            *kept = *current >= 0 && members[w->local[*current]] == *current ? w->local[*current] : -1;
    }
}

typedef struct {
    double peak;
    int64_t moves; /* beyond those that cannot be avoided */
    int reached;
    double left;   /* the excess over the target that the moves were not enough for */
    int32_t hot;   /* the ranks that had any */
    double before; /* the hottest rank's load before the steps: with what cannot be avoided alone */
} Outcome;

static double sum_excess(const Layer *p, double target) {
    double sum = 0;
    for (int32_t r = 0; r < p->num_ranks; r++) sum += p->load[r] > target ? p->load[r] - target : 0;
    return sum;
}

static int32_t count_above(const Layer *p, double load) {
    int32_t n = 0;
    for (int32_t r = 0; r < p->num_ranks; r++) n += p->load[r] > load;
    return n;
}

/* Without moves, what is left can still be spread: at a higher target others have room, and what changed may change again. */
static void raise_target(Layer *p, double target, double least) {
    for (int i = 0; i < RAISES && peak(p) > target; i++) {
        const double before = peak(p);
        target += sum_excess(p, target) / (count_above(p, target * NEAR_TARGET) + 1);
        Goal goal = {target, least, 200 + 10 * (int64_t)p->num_ranks, 1};
        descend_by_excess(p, &goal);
        if (peak(p) >= before) break;
    }
}

static int is_of_two(const Problem *problem) { return problem->nodes == 1 && problem->slots == 2 * problem->ranks; }

/* Bring every node to the target with at most `budget` moves, and write the answer. */
static Outcome attempt(Work *w, const Problem *problem, const double *load, double target, double least,
                       int64_t budget, int32_t *slot, double *rank_load) {
    const int32_t ranks = w->ranks_per_node, experts = w->experts_per_node;
    const int32_t *kept = w->kept;
    const int64_t limit = budget;
    Outcome outcome = {0, 0, 1, 0, 0, 0};
    for (int32_t n = 0; n < problem->nodes; n++) {
        const int32_t *members = w->members + n * experts, *held = problem->held + n * ranks;
        Layer *p = &w->now;
        layer_shape(p, experts, ranks, problem->capacity + n * ranks);
        for (int32_t i = 0; i < experts; i++) p->weight[i] = load[members[i]];
        start_from(p, kept, held);
        complete(p);
        const int32_t forced = arrivals(p);
        p->effort -= (int64_t)forced * experts / 8; /* what it took to choose those */
        p->moves_left = budget;
        if (peak(p) > outcome.before) outcome.before = peak(p);
        outcome.hot += count_above(p, target);
        Goal goal = {target, least, 200 + 10 * (int64_t)ranks, 1};
        if (limit == UNLIMITED && is_of_two(problem) && peak(p) > NEAR_PLAN * target) goal.steps = 0;
        outcome.reached &= descend_by_excess(p, &goal) || (limit == UNLIMITED && !has_many_slots(p) && descend(p, &goal));
        outcome.left += sum_excess(p, target);
        if (limit != UNLIMITED && !has_many_slots(p)) raise_target(p, target, least);
        if (limit == UNLIMITED) outcome.moves += arrivals(p) - forced;
        else outcome.moves += budget - p->moves_left;
        budget = limit == UNLIMITED ? UNLIMITED : p->moves_left;
        if (peak(p) > outcome.peak) outcome.peak = peak(p);
        write_ranks(p, members, slot, rank_load);
        for (int32_t r = 0; r < ranks; r++) kept += held[r];
        slot += p->num_slots;
        rank_load += ranks;
    }
    return outcome;
}

/* Find the lowest target that the budget is enough for: a target that is too ambitious spends it on a few ranks. What was missing
 * at one target says what the next may be: each rank that is above it saves as much as it is raised. */
static Outcome seek_target(Work *w, const Problem *problem, const double *load, double wished, int64_t budget,
                           int32_t *slot, double *rank_load) {
    const double least = wished * 1e-6;
    Outcome best = attempt(w, problem, load, wished, least, budget, slot, rank_load), last = best;
    if (best.reached || budget == UNLIMITED) return best;
    double low = wished, high = best.peak, target = wished;
    int64_t spent = budget;
    for (int i = 0; i < NARROWINGS && high > low * (1 + problem->tolerance / 4) && w->now.effort > 0 && spent < MOST_SPENT; i++) {
        spent += budget;
        const int is_last = i == NARROWINGS - 1 || spent >= MOST_SPENT;
        target += (is_last ? FAIR : 1) * last.left / last.hot;
        if (last.reached || target >= high) target = (low + high) / 2;
        last = attempt(w, problem, load, target, least, budget, w->slot, w->rank_load);
        if (last.peak < best.peak) {
            best = last;
            memcpy(slot, w->slot, sizeof *slot * (size_t)problem->slots);
            memcpy(rank_load, w->rank_load, sizeof *rank_load * (size_t)problem->ranks);
        }
        if (last.reached) high = target;
        else low = target;
        if (best.peak < high) high = best.peak;
    }
    return best;
}

/* As seek_target. Steps make the sum of what is above the target less, and one rank can get hotter by that: then nothing moves that may
 * stay. */
static Outcome within_budget(Work *w, const Problem *problem, const double *load, double wished, int64_t budget,
                             int32_t *slot, double *rank_load) {
    Outcome best = seek_target(w, problem, load, wished, budget, slot, rank_load);
    if (best.peak <= best.before * (1 + 1e-12)) return best;
    const int64_t effort = w->now.effort;
    best = attempt(w, problem, load, INFINITY, 0, 0, slot, rank_load);
    w->now.effort = effort;
    best.reached = 0;
    return best;
}

static double hottest_load(const Problem *problem, const double *rank_load) {
    double most = 0;
    for (int64_t r = 0; r < problem->ranks; r++)
        if (rank_load[r] > most) most = rank_load[r];
    return most;
}

/* Put a plan anew under the names with which little moves, where that is cooler and within the limit. */
static int take_anew(Work *w, const Problem *problem, const int32_t *current, int64_t limit, int32_t *slot, double *rank_load) {
    if (!relabel(w, problem, current, limit, w->slot, w->rank_load) ||
        count_arrivals(problem, current, w->slot) > limit)
        return 0;
    memcpy(slot, w->slot, sizeof *slot * (size_t)problem->slots);
    memcpy(rank_load, w->rank_load, sizeof *rank_load * (size_t)problem->ranks);
    return 1;
}

/* Plan one layer from the present placement; returns a load that no placement's hottest rank is below, or -1 where
 * groups are spread over nodes and the budget does not allow to put that right. Counts the moves that could not be
 * avoided. */
double replan(Work *w, const Problem *problem, int64_t layer, int64_t *forced) {
    const double *load = problem->load + layer * problem->experts;
    int64_t held = 0;
    for (int64_t r = 0; r < problem->ranks; r++) held += problem->held[r];
    const int32_t *current = problem->current + layer * held;
    int32_t *slot = problem->slot + layer * problem->slots;
    double *rank_load = problem->rank_load + layer * problem->ranks;
    const int64_t budget = problem->max_moves < 0 ? UNLIMITED : problem->max_moves;
    double bound = 0, total = 0, reached = INFINITY;
    for (int64_t e = 0; e < problem->experts; e++) total += load[e];
    const int grouped = split_as_before(w, problem, current, load, &bound);
    bound /= w->ranks_per_node;
    if (total / (double)problem->ranks > bound) bound = total / (double)problem->ranks;
    *forced = 0;
    w->now.effort = problem->effort > 0 && problem->effort < MOST_EFFORT ? problem->effort : MOST_EFFORT;
    /* With two slots a rank the mean is seldom reached: then what a plan anew reaches is what is aimed at. */
    const int first = budget == UNLIMITED && is_of_two(problem);
    double proved = first ? plan_from_scratch(w, problem, layer, w->slot, w->rank_load) : 0;
    if (grouped) {
        localize(w, problem, current);
        double wished = bound * (1 + problem->tolerance);
        if (first && hottest_load(problem, w->rank_load) > wished) wished = hottest_load(problem, w->rank_load);
        const Outcome best = within_budget(w, problem, load, wished, budget, slot, rank_load);
        reached = best.peak;
        *forced = count_arrivals(problem, current, slot) - best.moves;
        const int few = problem->nodes == 1 && problem->slots > SMALL && (double)budget < FEW * (double)problem->slots;
        if (best.reached || few) {
            keep_places(problem, current, slot);
            if (!best.reached) return replica_bound(&w->now, bound);
            return proved > bound ? proved : bound;
        }
    }
    /* The certificate fails: plan anew, and let ranks change names so that little moves. */
    if (!first) proved = plan_from_scratch(w, problem, layer, w->slot, w->rank_load);
    if (proved > bound) bound = proved;
    const int64_t limit = budget == UNLIMITED ? UNLIMITED : *forced + budget;
    if ((!grouped || hottest_load(problem, w->rank_load) < reached) &&
        !take_anew(w, problem, current, limit, slot, rank_load) && !grouped)
        return -1;
    keep_places(problem, current, slot);
    return bound;
}
