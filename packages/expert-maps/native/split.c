/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The best split of every expert's tokens over its copies, for a placement that is given.
 *
 * If some experts X have all their copies on the ranks N(X), then one of these carries load(X) / |N(X)| or more. Which set
 * says most is found by maximum flows: send all tokens through ranks that take t each; where they do not pass, the minimum
 * cut is a set with load(X) / |N(X)| > t, which is the next t. Where they pass, t was reached by a set: its ranks
 * carry t exactly, and the rest is a smaller problem of the same kind. So the whole answer is as level as can be.
 */
#include "plan.h"

typedef struct {
    int32_t experts, ranks, slots;
    const int32_t *rank_of;  /* [slots] */
    const int32_t *slot;     /* [slots], expert of each */
    const int32_t *first;    /* [ranks + 1], each rank's first slot */
    const double *load;      /* [experts] */
    int32_t *start, *copies; /* [experts + 1], [slots]: the slots of each expert */
    double *flow;            /* [slots] */
    double *left;            /* [experts], tokens not sent yet */
    double *room;            /* [ranks] */
    int32_t *level;          /* [experts + ranks] */
    int32_t *next;           /* [experts + ranks], the edge to try next */
    int32_t *queue, *path;   /* [experts + ranks] */
    uint8_t *settled;        /* [experts + ranks], no longer part of the problem */
    double least;            /* what is less is rounding */
} Flow;

/* Measure distances from the experts that have tokens left; nonzero if a rank with room can be reached. */
static int reach_ranks(Flow *f) {
    int32_t head = 0, tail = 0;
    int found = 0;
    for (int32_t i = 0; i < f->experts + f->ranks; i++) f->level[i] = -1;
    for (int32_t e = 0; e < f->experts; e++)
        if (!f->settled[e] && f->left[e] > f->least) {
            f->level[e] = 0;
            f->queue[tail++] = e;
        }
    while (head < tail) {
        const int32_t node = f->queue[head++];
        if (node < f->experts) {
            for (int32_t i = f->start[node]; i < f->start[node + 1]; i++) {
                const int32_t rank = f->experts + f->rank_of[f->copies[i]];
                if (f->settled[rank] || f->level[rank] >= 0) continue;
                f->level[rank] = f->level[node] + 1;
                f->queue[tail++] = rank;
            }
            continue;
        }
        const int32_t rank = node - f->experts;
        if (f->room[rank] > f->least) found = 1;
        for (int32_t p = f->first[rank]; p < f->first[rank + 1]; p++) {
            const int32_t e = f->slot[p];
            if (f->flow[p] <= f->least || f->settled[e] || f->level[e] >= 0) continue;
            f->level[e] = f->level[node] + 1;
            f->queue[tail++] = e;
        }
    }
    return found;
}

/* The edge of `node` by which the path goes on, or -1: a slot, from its expert or back to it. */
static int32_t next_edge(const Flow *f, int32_t node) {
    if (node < f->experts) {
        for (int32_t *i = f->next + node; f->start[node] + *i < f->start[node + 1]; ++*i) {
            const int32_t p = f->copies[f->start[node] + *i], rank = f->experts + f->rank_of[p];
            if (!f->settled[rank] && f->level[rank] == f->level[node] + 1) return p;
        }
        return -1;
    }
    const int32_t rank = node - f->experts;
    for (int32_t *i = f->next + node; f->first[rank] + *i < f->first[rank + 1]; ++*i) {
        const int32_t p = f->first[rank] + *i;
        if (f->flow[p] > f->least && f->level[f->slot[p]] == f->level[node] + 1) return p;
    }
    return -1;
}

/* Send what an expert has left along shortest paths. */
static void send(Flow *f, int32_t expert) {
    while (f->left[expert] > f->least) {
        int32_t length = 0, node = expert;
        for (;;) {
            if (node >= f->experts && f->room[node - f->experts] > f->least) break;
            const int32_t p = next_edge(f, node);
            if (p >= 0) {
                f->path[length++] = p;
                node = node < f->experts ? f->experts + f->rank_of[p] : f->slot[p];
                continue;
            }
            if (!length) return; /* no path is left */
            const int32_t back = f->path[--length];
            node = node < f->experts ? f->experts + f->rank_of[back] : f->slot[back];
            f->next[node]++;
        }
        double amount = f->left[expert];
        if (f->room[node - f->experts] < amount) amount = f->room[node - f->experts];
        for (int32_t i = 1; i < length; i += 2)
            if (f->flow[f->path[i]] < amount) amount = f->flow[f->path[i]];
        for (int32_t i = 0; i < length; i++) f->flow[f->path[i]] += i % 2 ? -amount : amount;
        f->left[expert] -= amount;
        f->room[node - f->experts] -= amount;
    }
}

/* Send all tokens of the experts in question through ranks that take `most` each; nonzero if all pass. */
static int passes(Flow *f, double most) {
    for (int32_t r = 0; r < f->ranks; r++) f->room[r] = most;
    for (int32_t e = 0; e < f->experts; e++) {
        if (f->settled[e]) continue;
        f->left[e] = f->load[e];
        for (int32_t i = f->start[e]; i < f->start[e + 1]; i++) f->flow[f->copies[i]] = 0;
    }
    while (reach_ranks(f)) {
        memset(f->next, 0, sizeof *f->next * (size_t)(f->experts + f->ranks));
        for (int32_t e = 0; e < f->experts; e++)
            if (!f->settled[e] && f->left[e] > f->least) send(f, e);
    }
    for (int32_t e = 0; e < f->experts; e++)
        if (!f->settled[e] && f->left[e] > f->least) return 0;
    return 1;
}

/* The load of the experts that the last search reached over the number of the ranks it reached. */
static double cut(const Flow *f, uint8_t *inside) {
    double load = 0;
    int32_t ranks = 0;
    for (int32_t i = 0; i < f->experts + f->ranks; i++) {
        inside[i] = !f->settled[i] && f->level[i] >= 0;
        if (!inside[i]) continue;
        if (i < f->experts) load += f->load[i];
        else ranks++;
    }
    return load / ranks;
}

/* Level one layer; returns what the hottest rank carries, and no split can go below. */
static double level_layer(Flow *f, uint8_t *inside) {
    double hottest = -1;
    memset(f->settled, 0, (size_t)(f->experts + f->ranks));
    for (;;) {
        double load = 0, most = 0;
        int32_t ranks = 0;
        for (int32_t e = 0; e < f->experts; e++) load += f->settled[e] ? 0 : f->load[e];
        for (int32_t r = 0; r < f->ranks; r++) ranks += !f->settled[f->experts + r];
        if (!ranks) return hottest;
        most = load / ranks;
        int whole = 1;
        while (!passes(f, most)) {
            const double higher = cut(f, inside);
            if (!(higher > most * (1 + 1e-13))) break; /* rounding */
            most = higher;
            whole = 0;
        }
        if (hottest < 0) hottest = most;
        if (whole) return hottest;
        for (int32_t i = 0; i < f->experts + f->ranks; i++) f->settled[i] |= inside[i];
    }
}

static void list_copies(Flow *f) {
    int32_t *start = f->start;
    memset(start, 0, sizeof *start * ((size_t)f->experts + 1));
    for (int32_t p = 0; p < f->slots; p++) start[f->slot[p] + 1]++;
    for (int32_t e = 0; e < f->experts; e++) start[e + 1] += start[e];
    for (int32_t p = 0; p < f->slots; p++) f->copies[start[f->slot[p]]++] = p;
    for (int32_t e = f->experts; e > 0; e--) start[e] = start[e - 1];
    start[0] = 0;
}

/* Split every layer. `first` [ranks + 1], `rank_of` [slots], `slot` [layers, slots], `load` [layers, experts]; out: `share`
 * [layers, slots], the fraction of its expert's tokens that each slot takes, and `bound` [layers]. */
int expert_maps_split(int64_t layers, int64_t experts, int64_t ranks, int64_t slots, const int32_t *first,
                      const int32_t *rank_of, const int32_t *slot, const double *load, double *share, double *bound) {
    const size_t nodes = (size_t)(experts + ranks);
    Flow f = {.experts = (int32_t)experts, .ranks = (int32_t)ranks, .slots = (int32_t)slots, .rank_of = rank_of,
              .first = first};
    uint8_t *inside = calloc(nodes, 1);
    f.start = calloc((size_t)experts + 1, sizeof *f.start);
    f.copies = calloc((size_t)slots, sizeof *f.copies);
    f.left = calloc((size_t)experts, sizeof *f.left);
    f.room = calloc((size_t)ranks, sizeof *f.room);
    f.level = calloc(nodes, sizeof *f.level);
    f.next = calloc(nodes, sizeof *f.next);
    f.queue = calloc(nodes, sizeof *f.queue);
    f.path = calloc(nodes, sizeof *f.path);
    f.settled = calloc(nodes, 1);
    const int failed = !inside || !f.start || !f.copies || !f.left || !f.room || !f.level || !f.next || !f.queue ||
                       !f.path || !f.settled;
    for (int64_t layer = 0; !failed && layer < layers; layer++) {
        double total = 0;
        f.slot = slot + layer * slots;
        f.load = load + layer * experts;
        f.flow = share + layer * slots;
        for (int64_t e = 0; e < experts; e++) total += f.load[e];
        f.least = total * 1e-13;
        list_copies(&f);
        bound[layer] = level_layer(&f, inside);
        for (int32_t e = 0; e < f.experts; e++) {
            double sent = 0;
            for (int32_t i = f.start[e]; i < f.start[e + 1]; i++) sent += f.flow[f.copies[i]];
            for (int32_t i = f.start[e]; i < f.start[e + 1]; i++)
                f.flow[f.copies[i]] = sent > 0 ? f.flow[f.copies[i]] / sent : 1.0 / (f.start[e + 1] - f.start[e]);
        }
    }
    void *const arrays[] = {inside, f.start, f.copies, f.left, f.room, f.level, f.next, f.queue, f.path, f.settled};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    return failed ? OUT_OF_MEMORY : PLANNED;
}
