/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Plans layer after layer: groups to nodes, then each node's copies to its ranks.
 */
#include "plan.h"

#define SMALL 128     /* slots */
#define CHEAP 65536   /* visits of the search that tries all placements, times slots: it takes no longer than restarts */
#define DEAR 1000000  /* where a proof is asked for */
#define LOOSE 0.005   /* from this tolerance on less is searched */

static int32_t most_slots(const Problem *problem) {
    int32_t most = 1;
    for (int64_t r = 0; r < problem->ranks; r++) {
        if (problem->capacity[r] > most) most = problem->capacity[r];
        if (problem->held && problem->held[r] > most) most = problem->held[r];
    }
    return most;
}

static void work_free(Work *w) {
    void *const arrays[] = {w->node_of,   w->members,    w->local,  w->part,    w->kept, w->slot,
                            w->rank_load, w->group_load, w->proved, w->doubles, w->ints, w->words};
    layer_free(&w->now);
    layer_free(&w->saved);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static int work_init(Work *w, const Problem *problem) {
    const size_t groups = (size_t)problem->groups, ranks = (size_t)problem->ranks, experts = (size_t)problem->experts;
    const size_t both = 4 * (groups + ranks) + 8;
    size_t held = 1;
    for (size_t r = 0; problem->held && r < ranks; r++) held += (size_t)problem->held[r];
    memset(w, 0, sizeof *w);
    w->ranks_per_node = (int32_t)(problem->ranks / problem->nodes);
    w->experts_per_node = (int32_t)(problem->experts / problem->nodes);
    w->node_of = calloc(groups, sizeof *w->node_of);
    w->members = calloc(experts, sizeof *w->members);
    w->local = calloc(experts, sizeof *w->local);
    w->part = calloc(experts, sizeof *w->part);
    w->proved = calloc((size_t)problem->nodes, sizeof *w->proved);
    w->kept = calloc(held, sizeof *w->kept);
    w->slot = calloc((size_t)problem->slots, sizeof *w->slot);
    w->rank_load = calloc(ranks, sizeof *w->rank_load);
    w->group_load = calloc(groups, sizeof *w->group_load);
    w->doubles = calloc(both, sizeof *w->doubles);
    w->ints = calloc(both, sizeof *w->ints);
    w->words = calloc(both, sizeof *w->words);
    const int32_t stride = most_slots(problem);
    const int failed = !w->node_of || !w->members || !w->local || !w->part || !w->proved || !w->kept || !w->slot || !w->rank_load ||
                       !w->group_load || !w->doubles || !w->ints || !w->words ||
                       layer_init(&w->now, w->experts_per_node, w->ranks_per_node, stride) ||
                       layer_init(&w->saved, w->experts_per_node, w->ranks_per_node, stride);
    if (failed) work_free(w);
    w->now.cancelled = w->saved.cancelled = problem->cancelled;
    return failed;
}

void write_ranks(const Layer *p, const int32_t *members, int32_t *slot, double *rank_load) {
    for (int32_t r = 0; r < p->num_ranks; r++) {
        for (int32_t i = 0; i < p->fill[r]; i++) *slot++ = members[slots_of(p, r)[i]];
        rank_load[r] = p->load[r];
    }
}

/* A target that is near from the start leaves few swaps that meet it, and each step would then weigh all. */
static int descend_in_stages(Layer *p, Goal *goal, double bound, double tolerance) {
    const double target = goal->target;
    for (double gap = 0.01; gap > 2 * tolerance; gap /= 2) {
        goal->target = bound * (1 + gap);
        if (!descend(p, goal)) { /* no step helps, whatever the target */
            goal->target = target;
            return 0;
        }
    }
    goal->target = target;
    return descend(p, goal);
}

/* Seek dear bounds of what is planned. */
static double certify(Layer *p, double bound, double tolerance, int two_slots) {
    if (two_slots && tolerance < LOOSE) bound = two_slot_bound(p, bound, peak(p), tolerance);
    return peak(p) > bound * (1 + tolerance) ? try_all(p, bound, DEAR, 0) : bound;
}

/* Plan the experts and ranks of `p` below bound * (1 + tolerance) if that can be; returns the bound, raised where
 * it was not reached and a dearer bound says that it could not be. */
static double solve(Layer *p, Layer *saved, double bound, const Problem *problem) {
    const double tolerance = problem->tolerance;
    const int two_slots = has_two_slots(p);
    int bounded = 0;
    replicate(p);
    if (two_slots) {
        double largest = 0;
        for (int32_t e = 0; e < p->num_experts; e++)
            if (p->share[e] > largest) largest = p->share[e];
        if (largest > 0.75 * bound) { /* else far from every limit but the mean */
            bounded = 1;
            bound = replica_bound(p, bound);
        }
        search_counts(p, bound, tolerance);
    }
    pack(p);
    sort_ranks(p);
    /* A loose tolerance is had for little more if a tenth of it is left: the mean over layers is what users see. */
    const double aim = tolerance < LOOSE ? tolerance : 0.9 * tolerance;
    Goal goal = {bound * (1 + aim), bound * tolerance * 0.03, 1000 + 30 * (int64_t)p->num_ranks, 1};
    /* The counts were searched for already, as far as this tolerance is worth it. */
    if (two_slots && tolerance >= LOOSE) goal.recount = 0;
    if (descend_in_stages(p, &goal, bound, aim) || peak(p) <= bound * (1 + tolerance)) return bound;
    if (!bounded) bound = replica_bound(p, bound);
    bound = try_all(p, bound, CHEAP / p->num_slots, 1);
    goal.target = bound * (1 + tolerance);
    layer_shape(saved, p->num_experts, p->num_ranks, p->capacity);
    /* Restarts of small problems cost next to nothing, and there a descent is soonest caught. */
    const int64_t few = 4096 / p->num_slots, kicks = problem->max_kicks > few ? problem->max_kicks : few;
    kick_and_descend(p, &goal, saved, (int32_t)(p->num_slots <= SMALL ? kicks : problem->max_kicks));
    /* Last, so that the plan is the same whether it is asked for or not. */
    return problem->certify && peak(p) > goal.target ? certify(p, bound, tolerance, two_slots && bounded) : bound;
}

/* Plan what one node has, of which no rank of the hottest one is below the bound; returns what is proved for it. */
double plan_part(Work *w, const Problem *problem, const double *load, const int32_t *members, double bound,
                 int32_t *slot, double *rank_load) {
    Layer *p = &w->now;
    layer_shape(p, w->experts_per_node, w->ranks_per_node, problem->capacity);
    for (int32_t i = 0; i < w->experts_per_node; i++) p->weight[i] = load[members[i]];
    const double own = mean_bound(p), proved = solve(p, &w->saved, own > bound ? own : bound, problem);
    write_ranks(p, members, slot, rank_load);
    return proved;
}

/* Plan one layer anew; returns a load that no placement's hottest rank is below. */
double plan_from_scratch(Work *w, const Problem *problem, int64_t layer, int32_t *slot, double *rank_load) {
    const double *load = problem->load + layer * problem->experts;
    const int64_t nodes = problem->nodes, slots = problem->slots / nodes;
    const double bound = split_over_nodes(w, problem, load) / w->ranks_per_node;
    for (int64_t n = 0; n < nodes; n++)
        w->proved[n] = plan_part(w, problem, load, w->members + n * w->experts_per_node, bound, slot + n * slots,
                                 rank_load + n * w->ranks_per_node);
    if (nodes == 1) return w->proved[0];
    /* What is proved of nodes holds for these groups on them only. */
    return try_assignments(w, problem, load, bound, slot, rank_load);
}

/* Whether every layer places every expert, and none twice on a rank: what is returned is checked, not trusted. `last`
 * is [experts] and starts below every rank. */
static int is_placement(const Problem *problem, int64_t *last) {
    const int32_t *slot = problem->slot;
    for (int64_t layer = 0; layer < problem->layers; layer++) {
        const int64_t base = layer * problem->ranks + 1;
        int64_t missing = problem->experts;
        for (int64_t r = 0; r < problem->ranks; r++)
            for (int32_t i = 0; i < problem->capacity[r]; i++) {
                const int32_t e = *slot++;
                if (e < 0 || e >= problem->experts || last[e] == base + r) return 0;
                missing -= last[e] < base;
                last[e] = base + r;
            }
        if (missing) return 0;
    }
    return 1;
}

/* Whether no bound is above what its plan's hottest rank carries: the plan has been checked, so such a bound is wrong. */
static int bounds_hold(const Problem *problem) {
    for (int64_t layer = 0; layer < problem->layers; layer++) {
        const double *rank_load = problem->rank_load + layer * problem->ranks;
        double most = 0;
        for (int64_t r = 0; r < problem->ranks; r++)
            if (rank_load[r] > most) most = rank_load[r];
        if (problem->bound[layer] > most * (1 + 1e-9)) return 0;
    }
    return 1;
}

/* Look at an answer before it is returned; `last` as in is_placement. */
int check_answer(const Problem *problem, int64_t *last) {
    if (!is_placement(problem, last)) return BROKEN;
    return bounds_hold(problem) ? PLANNED : WRONG_BOUND;
}

int64_t expert_maps_interface(void) { return INTERFACE_VERSION; }

int expert_maps_plan(const Problem *problem) {
    Work w;
    if (problem->size != (int64_t)sizeof *problem || problem->version != INTERFACE_VERSION) return OTHER_INTERFACE;
    int64_t *forced = calloc((size_t)problem->layers, sizeof *forced);
    int64_t *last = calloc((size_t)problem->experts, sizeof *last);
    if (!forced || !last || work_init(&w, problem)) {
        free(forced);
        free(last);
        return OUT_OF_MEMORY;
    }
    int status = PLANNED;
    for (int64_t layer = 0; layer < problem->layers && !is_cancelled(&w.now); layer++) {
        double *bound = problem->bound + layer;
        if (problem->current) *bound = replan(&w, problem, layer, forced + layer);
        else
            *bound = plan_from_scratch(&w, problem, layer, problem->slot + layer * problem->slots,
                                       problem->rank_load + layer * problem->ranks);
        if (*bound < 0) status = NOT_GROUPED;
    }
    if (is_cancelled(&w.now)) status = INTERRUPTED;
    work_free(&w);
    if (status == PLANNED && problem->windows > 1) status = plan_over_time(problem, forced);
    if (status == PLANNED) status = check_answer(problem, last);
    free(forced);
    free(last);
    return status;
}

const char *expert_maps_source_hash(void) {
#ifdef EXPERT_MAPS_SOURCE_HASH
    return EXPERT_MAPS_SOURCE_HASH;
#else
    return "";
#endif
}
