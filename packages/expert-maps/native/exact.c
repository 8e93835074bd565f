/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Small layers: all placements are tried, so that what is left is the best one, and its peak a bound.
 *
 * Experts follow each other, the heaviest first; each gets all its copies at once, in every number and on every set of
 * ranks. Ranks with the same load and room are alike, so of those only the first are taken. A branch ends where a rank
 * would carry as much as the best placement so far, or where what is left has no room below that.
 */
#include "layer.h"

#define NEARLY (1 - 1e-9) /* what is less cool than this part of the best is rounding */

typedef struct {
    int32_t experts, ranks;
    double weight[MOST_TRIED_SLOTS];   /* descending */
    double rest[MOST_TRIED_SLOTS + 1]; /* what an expert and all after it weigh */
    double load[MOST_TRIED_SLOTS];     /* [ranks] */
    int32_t room[MOST_TRIED_SLOTS];    /* [ranks] */
    uint32_t on[MOST_TRIED_SLOTS];     /* [experts], their ranks as a set */
    uint32_t best[MOST_TRIED_SLOTS];   /* the same in the coolest placement so far */
    double limit;                      /* only what is cooler than this is of use */
    int64_t visits;                    /* that are left */
    int found;
} Trial;

static void place_expert(Trial *t, int32_t expert, int32_t left);

/* Put `copies` more copies of a share on ranks from `from` on; `left` slots are for the experts that follow. */
static void place_copies(Trial *t, int32_t expert, int32_t copies, double share, int32_t from, int32_t left) {
    if (copies == 0) {
        place_expert(t, expert + 1, left);
        return;
    }
    for (int32_t r = from; r <= t->ranks - copies && t->visits-- > 0; r++) {
        const double before = t->load[r];
        if (!t->room[r] || before + share >= t->limit) continue;
        int like = 0; /* one that was passed over */
        for (int32_t q = 0; q < r && !like; q++)
            like = !(t->on[expert] >> q & 1) && t->room[q] == t->room[r] && t->load[q] == before;
        if (like) continue;
        t->load[r] += share;
        t->room[r]--;
        t->on[expert] |= (uint32_t)1 << r;
        place_copies(t, expert, copies - 1, share, r + 1, left);
        t->on[expert] &= ~((uint32_t)1 << r);
        t->room[r]++;
        t->load[r] = before;
    }
}

/* Whether the experts from this one on have room below the limit. */
static int has_room(const Trial *t, int32_t expert) {
    double space = 0;
    for (int32_t r = 0; r < t->ranks; r++) {
        if (t->room[r] > t->experts - expert) return 0; /* each of them stands on it once at most */
        if (t->room[r]) space += t->limit - t->load[r];
    }
    return space > t->rest[expert];
}

static void place_expert(Trial *t, int32_t expert, int32_t left) {
    const int32_t after = t->experts - expert - 1;
    if (after < 0) {
        double peak = 0;
        for (int32_t r = 0; r < t->ranks; r++)
            if (t->load[r] > peak) peak = t->load[r];
        t->limit = peak * NEARLY;
        t->found = 1;
        memcpy(t->best, t->on, sizeof t->best);
        return;
    }
    if (!has_room(t, expert)) return;
    for (int32_t copies = 1; copies <= t->ranks && copies <= left - after && t->visits > 0; copies++)
        if (left - copies <= after * t->ranks && t->weight[expert] / copies < t->limit)
            place_copies(t, expert, copies, t->weight[expert] / copies, 0, left - copies);
}

static void take(Layer *p, const Trial *t, const int32_t *expert) {
    for (int32_t i = 0; i < t->experts; i++) {
        const int32_t e = expert[i];
        p->count[e] = 0;
        for (int32_t r = 0; r < t->ranks; r++) p->count[e] += t->best[i] >> r & 1;
        p->share[e] = p->weight[e] / p->count[e];
    }
    layer_clear(p);
    for (int32_t r = 0; r < t->ranks; r++)
        for (int32_t i = 0; i < t->experts; i++)
            if (t->best[i] >> r & 1) insert_copy(p, r, expert[i]);
    for (int32_t i = 0; i < t->experts; i++) {
        int32_t *holder = holders_of(p, expert[i]);
        for (int32_t r = 0; r < t->ranks; r++)
            if (t->best[i] >> r & 1) *holder++ = r;
    }
    sort_ranks(p);
}

/* Try all placements that are cooler than this one, up to so many visits. Where there is one and it may `change`, it is
 * taken. Returns what no placement is below: the least peak where all were tried, else the bound so far. */
double try_all(Layer *p, double bound, int64_t visits, int change) {
    Trial t = {.experts = p->num_experts, .ranks = p->num_ranks, .limit = peak(p) * NEARLY, .visits = visits};
    int32_t expert[MOST_TRIED_SLOTS];
    if (p->num_slots > MOST_TRIED_SLOTS || p->num_ranks > MOST_TRIED_SLOTS || t.limit <= bound) return bound;
    sort_descending(p->weight, p->num_experts, expert, p->radix);
    for (int32_t i = p->num_experts - 1; i >= 0; i--) {
        t.weight[i] = p->weight[expert[i]];
        t.rest[i] = t.rest[i + 1] + t.weight[i];
    }
    for (int32_t r = 0; r < p->num_ranks; r++) t.room[r] = p->capacity[r];
    place_expert(&t, 0, p->num_slots);
    if (t.found && change) take(p, &t, expert);
    return t.visits > 0 && t.limit > bound ? t.limit : bound;
}
