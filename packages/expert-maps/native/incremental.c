/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Start from the present placement: copies that are there stay where that is possible.
 */
#include "plan.h"

/* One copy of each expert that is kept for it, as far as the ranks have room: a matching of experts to ranks. */
typedef struct {
    int32_t *rank; /* [E], where that copy is; -1 for none */
    int32_t *used; /* [R], how many a rank keeps */
    int32_t *seen; /* [R], the search that was here last */
} Keep;

/* Keep a copy of the expert, moving what others keep where that makes room; zero if it cannot be. */
static int keep_one(const Layer *p, Keep *k, int32_t expert, int32_t search) {
    const int32_t *holder = holders_of(p, expert);
    for (int32_t i = 0; i < p->count[expert]; i++) {
        const int32_t r = holder[i];
        if (k->seen[r] == search) continue;
        k->seen[r] = search;
        int found = k->used[r] < p->capacity[r];
        if (found) k->used[r]++;
        for (int32_t j = 0; j < p->fill[r] && !found; j++) {
            const int32_t other = slots_of(p, r)[j];
            found = k->rank[other] == r && keep_one(p, k, other, search);
        }
        if (!found) continue;
        k->rank[expert] = r;
        return 1;
    }
    return 0;
}

static Keep keep_all(const Layer *p) {
    Keep k = {p->index, p->index + p->num_experts, p->index + p->num_experts + p->num_ranks};
    for (int32_t e = 0; e < p->num_experts; e++) k.rank[e] = -1;
    for (int32_t r = 0; r < p->num_ranks; r++) k.used[r] = k.seen[r] = 0;
    for (int32_t e = 0; e < p->num_experts; e++) keep_one(p, &k, e, e + 1);
    return k;
}

/* The copy on this rank whose loss hurts least: one of several copies, the lightest; without one, the lightest
 * expert. -1 if there is none. What is kept for its expert stays. */
static int32_t dispensable(const Layer *p, int32_t rank, const Keep *keep) {
    int32_t best = -1;
    double least = INFINITY;
    for (int32_t i = 0; i < p->fill[rank]; i++) {
        const int32_t e = slots_of(p, rank)[i], c = p->count[e];
        if (keep ? keep->rank[e] == rank : c < 2) continue;
        const double harm = c < 2 ? p->weight[e] : p->weight[e] / (c - 1) - p->share[e];
        if (harm < least) {
            least = harm;
            best = e;
        }
    }
    return best;
}

/* Take over the present copies. `current` lists the experts of every rank, -1 for none, by their number here. */
void start_from(Layer *p, const int32_t *current, const int32_t *held) {
    layer_clear(p);
    memset(p->was, 0, sizeof *p->was * (size_t)p->num_ranks * p->words);
    memset(p->count, 0, sizeof *p->count * (size_t)p->num_experts);
    p->tracked = 1;
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < held[r]; i++, current++) {
            if (*current < 0 || in_set(p->was, p, r, *current)) continue;
            put_in_set(p->was, p, r, *current);
            holders_of(p, *current)[p->count[*current]++] = r;
        }
    for (int32_t e = 0; e < p->num_experts; e++) {
        p->share[e] = p->count[e] ? p->weight[e] / p->count[e] : p->weight[e];
        for (int32_t i = 0; i < p->count[e]; i++) insert_copy(p, holders_of(p, e)[i], e);
    }
    for (int32_t r = 0; r < p->num_ranks; r++) p->order[r] = p->position[r] = r;
    sort_ranks(p);
}

/* The lightest rank that has room and lacks the expert; -1 if there is none. */
static int32_t room_for(const Layer *p, int32_t expert) {
    for (int32_t i = 0; i < p->num_ranks; i++) {
        const int32_t r = p->order[i];
        if (p->fill[r] < p->capacity[r] && !holds(p, r, expert)) return r;
    }
    return -1;
}

/* The lightest rank with room; -1 if all are full. */
static int32_t room_for_any(const Layer *p) {
    for (int32_t i = 0; i < p->num_ranks; i++)
        if (p->fill[p->order[i]] < p->capacity[p->order[i]]) return p->order[i];
    return -1;
}

/* The rank whose most dispensable copy hurts least. */
static int32_t make_place(Layer *p) {
    int32_t best = -1;
    double least = INFINITY;
    for (int32_t r = 0; r < p->num_ranks; r++) {
        const int32_t e = dispensable(p, r, NULL);
        if (e < 0) continue;
        const double harm = p->weight[e] / (p->count[e] - 1) - p->share[e] + 1e-3 * p->load[r];
        if (harm < least) {
            least = harm;
            best = r;
        }
    }
    drop_copy(p, best, dispensable(p, best, NULL));
    return best;
}

/* An expert's heaviest possible further copy for this rank; -1 if the rank holds all. */
static int32_t most_wanted(const Layer *p, int32_t rank) {
    int32_t best = -1;
    for (int32_t e = 0; e < p->num_experts; e++)
        if (!holds(p, rank, e) && (best < 0 || p->share[e] > p->share[best])) best = e;
    return best;
}

/* Make the present copies a placement: no rank has too many, no expert is missing, no slot is empty. All
 * arrivals that this takes are unavoidable. */
void complete(Layer *p) {
    int overfull = 0;
    for (int32_t r = 0; r < p->num_ranks; r++) overfull |= p->fill[r] > p->capacity[r];
    if (overfull) {
        const Keep keep = keep_all(p);
        for (int32_t r = 0; r < p->num_ranks; r++)
            while (p->fill[r] > p->capacity[r]) drop_copy(p, r, dispensable(p, r, &keep));
    }
    sort_descending(p->weight, p->num_experts, p->index + p->num_ranks, p->radix);
    int32_t *heaviest_first = p->index + p->num_ranks;
    for (int32_t i = 0; i < p->num_experts; i++) {
        const int32_t e = heaviest_first[i];
        if (p->count[e]) continue;
        int32_t rank = room_for(p, e);
        if (rank < 0) rank = make_place(p);
        add_copy(p, rank, e);
    }
    for (int32_t r; (r = room_for_any(p)) >= 0;) add_copy(p, r, most_wanted(p, r));
}

/* Count the experts that were not on their rank before. */
int32_t arrivals(const Layer *p) {
    int32_t n = 0;
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < p->fill[r]; i++) n += arrival(p, r, slots_of(p, r)[i]);
    return n;
}
