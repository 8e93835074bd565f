/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A first solution: how many copies every expert gets, and on which ranks they sit.
 */
#include "layer.h"

/* Whether expert a comes before b in the heap: the larger share, and the lower id among equals. */
static int hotter(const double *share, int32_t a, int32_t b) {
    return share[a] > share[b] || (share[a] == share[b] && a < b);
}

static void sift(const double *share, int32_t *heap, int32_t n, int32_t i) {
    const int32_t expert = heap[i];
    for (int32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && hotter(share, heap[child + 1], heap[child])) child++;
        if (!hotter(share, heap[child], expert)) break;
        heap[i] = heap[child];
    }
    heap[i] = expert;
}

/* Give all the copies at once that would be given anyway while some share is above a size that needs no more
 * than `extra` of them; returns how many those are. */
static int32_t replicate_at_once(Layer *p, int32_t extra) {
    double total = 0, low = 0, high, most = p->most_copies;
    int32_t given = 0;
    for (int32_t e = 0; e < p->num_experts; e++) total += p->weight[e];
    if (!(total > 0)) return 0;
    high = total / extra; /* the copies beyond the first are at most load / size */
    low = total / p->num_slots / 4;
    for (int step = 0; step < 5; step++) {
        const double size = (low + high) / 2, scale = 1 / size;
        double needed = 0;
        for (int32_t e = 0; e < p->num_experts; e++) {
            const double copies = floor(p->weight[e] * scale) + 1;
            needed += (copies < most ? copies : most) - 1;
        }
        if (needed <= extra) high = size;
        else low = size;
    }
    for (int32_t e = 0; e < p->num_experts; e++) {
        const double copies = floor(p->weight[e] / high * (1 - 1e-9)) + 1;
        p->count[e] = (int32_t)(copies < most ? copies : most);
        p->share[e] = p->weight[e] / p->count[e];
        given += p->count[e] - 1;
    }
    return given;
}

/* Give each further copy to the expert whose copies carry most. Of all counts, these have the smallest
 * largest share. Where only experts without load are left, or those on every rank, copies go round. */
void replicate(Layer *p) {
    int32_t *heap = p->index, n = 0;
    int32_t extra = p->num_slots - p->num_experts;
    for (int32_t e = 0; e < p->num_experts; e++) {
        p->count[e] = 1;
        p->share[e] = p->weight[e];
    }
    if (extra <= 0) return;
    if (extra > 64) extra -= replicate_at_once(p, extra);
    for (int32_t e = 0; e < p->num_experts; e++)
        if (p->count[e] < p->most_copies) heap[n++] = e;
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift(p->share, heap, n, i);
    while (extra > 0 && n > 0 && p->share[heap[0]] > 0) {
        const int32_t e = heap[0];
        p->count[e]++;
        p->share[e] = p->weight[e] / p->count[e];
        extra--;
        if (p->count[e] >= p->most_copies) heap[0] = heap[--n];
        sift(p->share, heap, n, 0);
    }
    for (int32_t e = 0; extra > 0; e = (e + 1) % p->num_experts)
        if (p->count[e] < p->most_copies) {
            p->count[e]++;
            p->share[e] = p->weight[e] / p->count[e];
            extra--;
        }
}

static void append(Layer *p, int32_t rank, int32_t expert) {
    const int32_t i = p->fill[rank]++;
    slots_of(p, rank)[i] = expert;
    values_of(p, rank)[i] = p->share[expert];
    p->load[rank] += p->share[expert];
    put_in_set(p->on, p, rank, expert);
}

/* Drop full ranks from the list and sort the others, the lightest first. They come in the order of the
 * last round, in which the heaviest items went to the lightest ranks: nearly the reverse. */
static int32_t next_round(Layer *p, int32_t *list, int32_t n) {
    int32_t *old = p->index + p->num_experts, *sorted = old + p->num_ranks, left = 0;
    for (int32_t i = n - 1; i >= 0; i--)
        if (p->fill[list[i]] < p->capacity[list[i]]) old[left++] = list[i];
    if (left > 64) {
        for (int32_t i = 0; i < left; i++) p->key[i] = p->load[old[i]];
        sort_descending(p->key, left, sorted, p->radix);
        for (int32_t i = 0; i < left; i++) list[i] = old[sorted[left - 1 - i]];
        return left;
    }
    for (int32_t i = 0; i < left; i++) {
        int32_t j = i;
        for (; j > 0 && p->load[list[j - 1]] > p->load[old[i]]; j--) list[j] = list[j - 1];
        list[j] = old[i];
    }
    return left;
}

/* Every rank with room holds the expert: let a rank without it take it, for another one that moves to
 * `room`. That rank is full and `room` is not, so it has an expert that `room` lacks. */
static int32_t make_room(Layer *p, int32_t expert, int32_t room) {
    for (int32_t r = 0; r < p->num_ranks; r++) {
        if (holds(p, r, expert)) continue;
        for (int32_t i = 0; i < p->fill[r]; i++) {
            const int32_t other = slots_of(p, r)[i];
            if (holds(p, room, other)) continue;
            for (; i + 1 < p->fill[r]; i++) { /* keeps the order in which they came */
                slots_of(p, r)[i] = slots_of(p, r)[i + 1];
                values_of(p, r)[i] = values_of(p, r)[i + 1];
            }
            p->fill[r]--;
            p->load[r] -= p->share[other];
            p->on[(size_t)r * p->words + (other >> 6)] &= ~((uint64_t)1 << (other & 63));
            append(p, room, other);
            change_holder(p, other, r, room);
            append(p, r, expert);
            return r;
        }
    }
    return -1; /* not reached */
}

static void sort_slots(Layer *p, int32_t rank) {
    int32_t *slot = slots_of(p, rank);
    double *value = values_of(p, rank);
    const int32_t n = p->fill[rank];
    for (int32_t i = 0, j = n - 1; i < j; i++, j--) {
        const int32_t s = slot[i];
        const double v = value[i];
        slot[i] = slot[j];
        value[i] = value[j];
        slot[j] = s;
        value[j] = v;
    }
    for (int32_t i = 1; i < n; i++) {
        const int32_t s = slot[i];
        const double v = value[i];
        int32_t j = i;
        for (; j > 0 && value[j - 1] > v; j--) {
            slot[j] = slot[j - 1];
            value[j] = value[j - 1];
        }
        slot[j] = s;
        value[j] = v;
    }
}

/* Longest processing time first, in rounds: each rank takes one copy a round, the lightest rank the
 * heaviest. Equal capacities make that what the rule does anyway, with a sort a round for a heap.
 * Copies of an expert follow each other, so they meet a rank twice only where a round ends. */
void pack(Layer *p) {
    int32_t *sorted = p->index, *list = p->order, n = p->num_ranks, next = 0;
    sort_descending(p->share, p->num_experts, sorted, p->radix);
    layer_clear(p);
    for (int32_t r = 0; r < n; r++) list[r] = n - 1 - r;
    n = next_round(p, list, n);
    for (int32_t k = 0; k < p->num_experts; k++) {
        const int32_t e = sorted[k];
        int32_t *holder = holders_of(p, e);
        for (int32_t copy = 0; copy < p->count[e]; copy++) {
            if (next == n) {
                n = next_round(p, list, n);
                next = 0;
            }
            int32_t i = next;
            while (i < n && holds(p, list[i], e)) i++;
            if (i == n && next > 0) { /* those of this round hold it: begin the next one early */
                n = next_round(p, list, n);
                for (i = next = 0; i < n && holds(p, list[i], e);) i++;
            }
            if (i == n) {
                holder[copy] = make_room(p, e, list[next]);
                if (p->fill[list[next]] == p->capacity[list[next]]) next++;
                continue;
            }
            const int32_t rank = list[i];
            for (; i > next; i--) list[i] = list[i - 1];
            list[next++] = rank;
            append(p, rank, e);
            holder[copy] = rank;
        }
    }
    for (int32_t r = 0; r < p->num_ranks; r++) sort_slots(p, r);
}
