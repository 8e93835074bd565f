/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Expert groups to nodes: every node takes equally many, and the hottest node carries as little as possible.
 */
#include "plan.h"

#define MOST_VISITS 20000 /* of the search tree; beyond it the bound is the mean */

typedef struct {
    int32_t groups, nodes, room;
    const double *load;    /* [groups], descending */
    double *sum;           /* [nodes] */
    int32_t *fill, *trial; /* [nodes]; [groups] */
    int32_t *best;         /* [groups] */
    double best_value, enough;
    int32_t visits;
} Search;

static void visit(Search *s, int32_t group, double value) {
    if (s->visits-- <= 0 || s->best_value <= s->enough) return;
    if (group == s->groups) {
        s->best_value = value;
        memcpy(s->best, s->trial, sizeof *s->best * (size_t)s->groups);
        return;
    }
    for (int32_t tried = 0; tried < s->nodes; tried++) {
        const int32_t node = tried;
        int same = 0;
        for (int32_t other = 0; other < node && !same; other++)
            same = s->sum[other] == s->sum[node] && s->fill[other] == s->fill[node];
        const double sum = s->sum[node] + s->load[group];
        if (same || s->fill[node] == s->room || sum >= s->best_value) continue;
        const double before = s->sum[node];
        s->sum[node] = sum;
        s->fill[node]++;
        s->trial[group] = node;
        visit(s, group + 1, sum > value ? sum : value);
        s->sum[node] = before;
        s->fill[node]--;
    }
}

/* The heaviest group first, each to the lightest node with room. */
static double greedy(Search *s) {
    for (int32_t g = 0; g < s->groups; g++) {
        int32_t lightest = -1;
        for (int32_t n = 0; n < s->nodes; n++)
            if (s->fill[n] < s->room && (lightest < 0 || s->sum[n] < s->sum[lightest])) lightest = n;
        s->sum[lightest] += s->load[g];
        s->fill[lightest]++;
        s->best[g] = lightest;
    }
    double value = 0;
    for (int32_t n = 0; n < s->nodes; n++) {
        if (s->sum[n] > value) value = s->sum[n];
        s->sum[n] = 0;
        s->fill[n] = 0;
    }
    return value;
}

/* Assign groups to nodes. `load` is [groups]; `node_of` [groups] is set. Scratch: doubles [groups + nodes], ints
 * [3 groups + nodes], words [2 groups]. Returns a lower bound on the hottest node's load, over all assignments. */
static double assign_groups(int32_t groups, int32_t nodes, const double *load, double tolerance, int32_t *node_of,
                     double *doubles, int32_t *ints, uint64_t *words) {
    Search s = {groups, nodes, groups / nodes, doubles, doubles + groups, ints, ints + nodes, ints + nodes + groups,
                0,      0,     MOST_VISITS};
    int32_t *sorted = ints + nodes + 2 * groups;
    double total = 0;
    sort_descending(load, groups, sorted, words);
    for (int32_t g = 0; g < groups; g++) total += doubles[g] = load[sorted[g]];
    for (int32_t n = 0; n < nodes; n++) {
        s.sum[n] = 0;
        s.fill[n] = 0;
    }
    s.best_value = greedy(&s);
    s.enough = total / nodes * (1 + tolerance / 4);
    visit(&s, 0, 0);
    for (int32_t g = 0; g < groups; g++) node_of[sorted[g]] = s.best[g];
    if (s.visits > 0 && s.best_value > s.enough) return s.best_value;
    return total / nodes > doubles[0] ? total / nodes : doubles[0];
}

/* Sum the load of every group. */
static int32_t sum_groups(Work *w, const Problem *problem, const double *load) {
    const int32_t size = (int32_t)(problem->experts / problem->groups);
    for (int32_t g = 0; g < problem->groups; g++) {
        w->group_load[g] = 0;
        for (int32_t i = 0; i < size; i++) w->group_load[g] += load[g * size + i];
    }
    return size;
}

static void list_members(Work *w, const Problem *problem, int32_t size) {
    int32_t next = 0;
    for (int32_t n = 0; n < problem->nodes; n++)
        for (int32_t g = 0; g < problem->groups; g++)
            for (int32_t i = 0; w->node_of[g] == n && i < size; i++) {
                w->local[g * size + i] = next % w->experts_per_node;
                w->members[next++] = g * size + i;
            }
}

static double best_assignment(Work *w, const Problem *problem) {
    return assign_groups((int32_t)problem->groups, (int32_t)problem->nodes, w->group_load, problem->tolerance,
                         w->node_of, w->doubles, w->ints, w->words);
}

/* Decide which experts each node has; returns a lower bound on the hottest node's load. */
double split_over_nodes(Work *w, const Problem *problem, const double *load) {
    if (problem->nodes == 1) {
        for (int32_t e = 0; e < problem->experts; e++) w->members[e] = w->local[e] = e;
        return 0;
    }
    const int32_t size = sum_groups(w, problem, load);
    const double bound = best_assignment(w, problem);
    list_members(w, problem, size);
    return bound;
}

/* The same with every group on the node that holds it now; those that no node holds go to the lightest with room.
 * Zero where the present placement has a group on two nodes, or a node has more groups than it should. */
int split_as_before(Work *w, const Problem *problem, const int32_t *current, const double *load, double *bound) {
    *bound = split_over_nodes(w, problem, load);
    if (problem->nodes == 1) return 1;
    const int32_t groups = (int32_t)problem->groups, nodes = (int32_t)problem->nodes, room = groups / nodes;
    const int32_t size = (int32_t)(problem->experts / groups);
    int32_t *count = w->ints;
    double *sum = w->doubles;
    for (int32_t g = 0; g < groups; g++) w->node_of[g] = -1;
    for (int32_t r = 0; r < problem->ranks; r++)
        for (int32_t i = 0; i < problem->held[r]; i++, current++) {
            if (*current < 0) continue;
            const int32_t g = *current / size, n = r / w->ranks_per_node;
            if (w->node_of[g] >= 0 && w->node_of[g] != n) return 0;
            w->node_of[g] = n;
        }
    for (int32_t n = 0; n < nodes; n++) {
        count[n] = 0;
        sum[n] = 0;
    }
    for (int32_t g = 0; g < groups; g++)
        if (w->node_of[g] >= 0) {
            if (++count[w->node_of[g]] > room) return 0;
            sum[w->node_of[g]] += w->group_load[g];
        }
    for (int32_t g = 0; g < groups; g++) {
        if (w->node_of[g] >= 0) continue;
        int32_t lightest = -1;
        for (int32_t n = 0; n < nodes; n++)
            if (count[n] < room && (lightest < 0 || sum[n] < sum[lightest])) lightest = n;
        w->node_of[g] = lightest;
        count[lightest]++;
        sum[lightest] += w->group_load[g];
    }
    list_members(w, problem, size);
    return 1;
}
