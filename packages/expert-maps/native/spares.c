/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What is remembered between steps from a placement in use: which experts came to a rank and left it, and which copies can be
 * spared. A step changes a few ranks; only what is on them is noted anew, and only where it is read.
 */
#include "steps.h"

/* List the copies of an expert that can be spared, from place k on; returns the next place. */
static int32_t list_copies(Layer *p, double target, int32_t cold_ranks, int32_t out, int32_t k) {
    const int32_t *holder = holders_of(p, out), copies = p->count[out];
    const double share = p->share[out], rise = p->weight[out] / (copies - 1) - share;
    double sum = 0;
    p->index[out] = k;
    for (int32_t i = 0; i < copies; i++) sum += p->key[i] = loss_of(p->load[holder[i]] - target, rise);
    p->loss[out] = sum;
    for (int32_t i = 0; i < copies; i++) {
        const int32_t r = holder[i];
        const double load = p->load[r] - target;
        if (p->position[r] >= cold_ranks) continue;
        p->spare[k] = (Spare){r, out};
        p->spare_without[k] = (float)(load - share);
        p->spare_above[k] = load > 0 ? (float)load * (1 + ROUNDING) : 0;
        p->spare_loss[k] = (float)(sum - p->key[i]) * (1 - ROUNDING);
        p->spare_price[k++] = (float)price(1 - arrival(p, r, out));
    }
    return k;
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
    p->share_bound[e] = (float)fresh;
    p->relief_bound[e] = (float)relief * (1 + ROUNDING);
    if (!p->relist && p->count[e] > 1) list_copies(p, target, p->num_ranks, e, p->index[e]);
    p->effort -= p->rank_words + p->count[e];
}

/* Note anew what left the ranks that the last step changed, and what came to them. */
void note_changes(Layer *p) {
    for (int32_t r = 0; r < p->num_ranks; r++) {
        if (!p->changed[r]) continue;
        p->changed[r] = 0;
        p->unnoted[r] = 1;
        const uint64_t *on = p->on + (size_t)r * p->words, *was = p->was + (size_t)r * p->words;
        uint64_t any = 0, *left = p->left + (size_t)r * p->words;
        for (int32_t i = 0; i < p->words; i++) any |= left[i] = was[i] & ~on[i];
        p->left_any[r] = any != 0;
        p->num_came[r] = 0;
        for (int32_t i = 0; i < p->fill[r]; i++)
            if (arrival(p, r, slots_of(p, r)[i])) came_to(p, r)[p->num_came[r]++] = i;
    }
}

/* The same of the experts there. */
static void note_experts(Layer *p, double target) {
    for (int32_t r = 0; r < p->num_ranks; r++) {
        for (int32_t i = 0; p->unnoted[r] && i < p->fill[r]; i++) note_expert(p, slots_of(p, r)[i], target);
        p->unnoted[r] = 0;
    }
}

/* Note everything: the target is another one. */
void note_all(Layer *p) {
    memset(p->changed, 1, (size_t)p->num_ranks);
    p->relist = 1;
    for (int32_t i = 0; i < BOUNDS_AT_ONCE; i++) p->relief_bound[p->num_experts + i] = -INFINITY;
    note_changes(p);
}

/* Whether a rank had one of another's experts before, and has it no longer. */
static int had_one_of(const Layer *p, int32_t rank, int32_t other) {
    const uint64_t *left = p->left + (size_t)rank * p->words, *theirs = p->on + (size_t)other * p->words;
    uint64_t back = 0;
    for (int32_t i = 0; i < p->words; i++) back |= theirs[i] & left[i];
    return back != 0;
}

/* Make room in the list for the copies of an expert, whose number changed: it is in the order of the experts. */
void list_anew(Layer *p, int32_t e) {
    if (p->relist) return;
    int32_t k = p->index[e], before = 0, next = e + 1;
    while (next < p->num_experts && p->index[next] < 0) next++;
    const int32_t end = next < p->num_experts ? p->index[next] : p->spares, now = p->count[e] > 1 ? p->count[e] : 0;
    if (k < 0) k = end;
    before = end - k;
    const size_t rest = (size_t)(p->spares - end);
    float *const bounds[] = {p->spare_without, p->spare_above, p->spare_loss, p->spare_price};
    memmove(p->spare + k + now, p->spare + end, rest * sizeof *p->spare);
    for (int i = 0; i < 4; i++) memmove(bounds[i] + k + now, bounds[i] + end, rest * sizeof **bounds);
    for (; next < p->num_experts; next++) p->index[next] += p->index[next] < 0 ? 0 : now - before;
    p->spares += now - before;
    p->index[e] = now ? k : -1;
}

/* List those of the lightest ranks; of those of all it is known what changed. */
static void list_all_spares(Layer *p, const Choice *c) {
    p->spares = 0;
    for (int32_t out = 0; out < p->num_experts; out++) p->index[out] = -1;
    if (c->cold_ranks == p->num_ranks) {
        for (int32_t out = 0; out < p->num_experts; out++)
            if (p->count[out] > 1) p->spares = list_copies(p, c->target, c->cold_ranks, out, p->spares);
        p->relist = 0;
        return;
    }
    for (int32_t k = 0; k < c->cold_ranks; k++) {
        const int32_t r = p->order[k];
        for (int32_t i = 0; i < p->fill[r]; i++) {
            const int32_t out = slots_of(p, r)[i];
            if (p->count[out] > 1 && p->index[out] < 0) p->spares = list_copies(p, c->target, c->cold_ranks, out, p->spares);
        }
    }
}

void list_returns(Layer *p, Choice *c) {
    c->backs = 0;
    for (int32_t r = 0; r < p->num_ranks; r++) {
        p->gets_back[r] = p->left_any[r] && had_one_of(p, r, c->hot);
        if (p->gets_back[r]) p->index[p->num_experts + c->backs++] = r;
        p->gives_back[r] = p->left_any[c->hot] && had_one_of(p, c->hot, r);
    }
}

void list_spares(Layer *p, Choice *c) {
    note_experts(p, c->target);
    if (p->relist) list_all_spares(p, c);
    c->spares = p->spares;
    /* The hot rank's own are none: it changes with every step, so that they are listed anew. */
    for (int32_t i = 0; i < p->fill[c->hot] && !p->relist; i++) {
        const int32_t out = slots_of(p, c->hot)[i];
        if (p->count[out] < 2) continue;
        int32_t k = p->index[out];
        while (p->spare[k].rank != c->hot) k++;
        p->spare_loss[k] = INFINITY;
    }
}
