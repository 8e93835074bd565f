/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Small layers with groups on nodes: which groups share a node is part of the search.
 *
 * Nodes are alike, so what counts is into which sets the groups are parted. Every set has a value: what its hottest rank
 * carries once it is planned, before that a bound. The parts whose highest value is lowest are planned, until all of them
 * are: no other parts are cooler. The same over what is proved of every set is a bound on all placements.
 */
#include "plan.h"

#define MOST_SETS 256
#define MOST_GROUPS 30
#define MOST_VISITS 100000 /* of the search for parts, each time */
#define MOST_SLOTS 128     /* of a layer; beyond it the coolest assignment is planned alone */
#define PLANNED_SLOTS 4096 /* slots of sets that are planned, in all */

typedef struct {
    int32_t num, groups, nodes;
    uint32_t set[MOST_SETS];
    double value[MOST_SETS], proved[MOST_SETS];
    uint8_t is_planned[MOST_SETS];
    int32_t *slot;     /* [num, slots of a node] */
    double *rank_load; /* [num, ranks of a node] */
} Sets;

typedef struct {
    const Sets *sets;
    const double *value;
    int32_t *trial, *best; /* [nodes] */
    double best_value;
    int64_t visits;
} Parting;

/* List the sets of so many groups; zero where there are too many. */
static int list_sets(Sets *s, int32_t room) {
    if (s->groups > MOST_GROUPS) return 0;
    /* The next number with as many bits [Gosper]. */
    const uint32_t end = (uint32_t)1 << s->groups;
    for (uint32_t set = ((uint32_t)1 << room) - 1; set < end;) {
        if (s->num == MOST_SETS) return 0;
        s->set[s->num++] = set;
        const uint32_t low = set & -set, next = set + low;
        set = ((next ^ set) / low >> 2) | next;
    }
    return 1;
}

/* Go through the parts of the groups that are left: the first of them is in one of the sets. */
static void part(Parting *a, int32_t node, uint32_t taken, double value) {
    const Sets *s = a->sets;
    if (node == s->nodes) {
        a->best_value = value;
        memcpy(a->best, a->trial, sizeof *a->best * (size_t)s->nodes);
        return;
    }
    const uint32_t first = ~taken & (taken + 1);
    for (int32_t i = 0; i < s->num && a->visits-- > 0; i++) {
        if (!(s->set[i] & first) || s->set[i] & taken || a->value[i] >= a->best_value) continue;
        a->trial[node] = i;
        part(a, node + 1, taken | s->set[i], a->value[i] > value ? a->value[i] : value);
    }
}

/* Find the parts whose highest value is lowest; zero where there are too many to see. */
static int best_parts(const Sets *s, const double *value, int32_t *trial, int32_t *best, double *best_value) {
    Parting a = {s, value, trial, best, INFINITY, MOST_VISITS};
    part(&a, 0, 0, 0);
    *best_value = a.best_value;
    return a.visits > 0;
}

/* Write the experts of a set, in order. */
static void list_experts(const Problem *problem, uint32_t set, int32_t *members) {
    const int32_t size = (int32_t)(problem->experts / problem->groups);
    for (int32_t g = 0; g < problem->groups; g++)
        for (int32_t i = 0; set >> g & 1 && i < size; i++) *members++ = g * size + i;
}

/* What no placement of a set is below. */
static double bound_of_set(Work *w, const Problem *problem, const double *load, uint32_t set) {
    Layer *p = &w->now;
    list_experts(problem, set, w->part);
    layer_shape(p, w->experts_per_node, w->ranks_per_node, problem->capacity);
    for (int32_t i = 0; i < w->experts_per_node; i++) p->weight[i] = load[w->part[i]];
    return replica_bound(p, mean_bound(p));
}

static void plan_set(Work *w, const Problem *problem, const double *load, Sets *s, int32_t i) {
    const int32_t slots = (int32_t)(problem->slots / problem->nodes), ranks = w->ranks_per_node;
    double *rank_load = s->rank_load + (size_t)i * ranks;
    list_experts(problem, s->set[i], w->part);
    s->proved[i] = plan_part(w, problem, load, w->part, s->value[i], s->slot + (size_t)i * slots, rank_load);
    s->value[i] = 0;
    for (int32_t r = 0; r < ranks; r++)
        if (rank_load[r] > s->value[i]) s->value[i] = rank_load[r];
    s->is_planned[i] = 1;
}

static double peak_of(const double *rank_load, int64_t ranks) {
    double most = 0;
    for (int64_t r = 0; r < ranks; r++)
        if (rank_load[r] > most) most = rank_load[r];
    return most;
}

/* Plan sets until the best parts are planned; writes their plan where it is cooler than what there is. */
static void plan_parts(Work *w, const Problem *problem, const double *load, Sets *s, int32_t *parts, int32_t *slot,
                       double *rank_load) {
    const int32_t slots = (int32_t)(problem->slots / problem->nodes), ranks = w->ranks_per_node;
    int32_t *trial = parts + s->nodes, left = PLANNED_SLOTS / slots;
    for (;;) {
        double value;
        int32_t planned = 0;
        const double peak = peak_of(rank_load, problem->ranks);
        if (!best_parts(s, s->value, trial, parts, &value) || peak <= value * (1 + problem->tolerance)) return;
        for (int32_t n = 0; n < s->nodes; n++)
            if (!s->is_planned[parts[n]]) {
                if (left-- <= 0) return;
                plan_set(w, problem, load, s, parts[n]);
                planned++;
            }
        if (planned) continue;
        for (int32_t n = 0; n < s->nodes; n++) {
            memcpy(slot + (size_t)n * slots, s->slot + (size_t)parts[n] * slots, sizeof *slot * (size_t)slots);
            memcpy(rank_load + n * ranks, s->rank_load + (size_t)parts[n] * ranks, sizeof *rank_load * (size_t)ranks);
        }
        return;
    }
}

/* Take the plan of the assignment there is as that of its sets. */
static void take_parts(const Work *w, const Problem *problem, Sets *s, const int32_t *slot, const double *rank_load) {
    const int32_t size = (int32_t)(problem->experts / problem->groups);
    const int64_t slots = problem->slots / problem->nodes, ranks = problem->ranks / problem->nodes;
    for (int64_t n = 0; n < problem->nodes; n++) {
        uint32_t set = 0;
        int32_t i = 0;
        for (int64_t k = 0; k < slots; k++) set |= (uint32_t)1 << slot[n * slots + k] / size;
        while (s->set[i] != set) i++;
        memcpy(s->slot + i * slots, slot + n * slots, sizeof *slot * (size_t)slots);
        memcpy(s->rank_load + i * ranks, rank_load + n * ranks, sizeof *rank_load * (size_t)ranks);
        s->value[i] = peak_of(rank_load + n * ranks, ranks);
        s->proved[i] = w->proved[n];
        s->is_planned[i] = 1;
    }
}

/* Look for cooler parts than those of a plan, and take them. Returns what no placement is below: `bound` or more. */
double try_assignments(Work *w, const Problem *problem, const double *load, double bound, int32_t *slot,
                       double *rank_load) {
    const int32_t nodes = (int32_t)problem->nodes, groups = (int32_t)problem->groups;
    Sets *s;
    if (problem->slots > MOST_SLOTS || peak_of(rank_load, problem->ranks) <= bound * (1 + problem->tolerance) ||
        !(s = calloc(1, sizeof *s)))
        return bound;
    s->groups = groups;
    s->nodes = nodes;
    if (list_sets(s, groups / nodes)) {
        int32_t *parts = calloc(2 * (size_t)nodes, sizeof *parts);
        s->slot = calloc((size_t)s->num * (size_t)(problem->slots / nodes), sizeof *s->slot);
        s->rank_load = calloc((size_t)s->num * (size_t)w->ranks_per_node, sizeof *s->rank_load);
        if (parts && s->slot && s->rank_load) {
            double proved = bound;
            for (int32_t i = 0; i < s->num; i++)
                s->value[i] = s->proved[i] = bound_of_set(w, problem, load, s->set[i]);
            take_parts(w, problem, s, slot, rank_load);
            plan_parts(w, problem, load, s, parts, slot, rank_load);
            if (best_parts(s, s->proved, parts + nodes, parts, &proved) && proved > bound) bound = proved;
        }
        free(parts);
        free(s->slot);
        free(s->rank_load);
    }
    free(s);
    return bound;
}
