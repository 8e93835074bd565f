/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The state of a balancing problem, and the steps that keep it consistent.
 */
#include "layer.h"

static void *array(size_t count, size_t size, int *failed) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) *failed = 1;
    return memory;
}

/* Reserve room for problems of up to these sizes; nonzero when memory is short. */
int layer_init(Layer *p, int32_t experts, int32_t ranks, int32_t stride) {
    const size_t e = (size_t)experts, r = (size_t)ranks, s = (size_t)stride, words = (e + 63) / 64;
    const size_t pairs = stride <= MOST_PAIRED_SLOTS ? PAIRS_OF(stride) : 0;
    int failed = 0;
    memset(p, 0, sizeof *p);
    p->stride = stride;
    p->capacity = array(r, sizeof(int32_t), &failed);
    p->weight = array(e, sizeof(double), &failed);
    p->count = array(e, sizeof(int32_t), &failed);
    p->share = array(e, sizeof(double), &failed);
    p->holder = array(e * r, sizeof(int32_t), &failed);
    p->slot = array(r * s, sizeof(int32_t), &failed);
    p->value = array(r * s, sizeof(double), &failed);
    p->fill = array(r, sizeof(int32_t), &failed);
    p->load = array(r, sizeof(double), &failed);
    p->order = array(r, sizeof(int32_t), &failed);
    p->position = array(r, sizeof(int32_t), &failed);
    p->on = array(r * words, sizeof(uint64_t), &failed);
    p->was = array(r * words, sizeof(uint64_t), &failed);
    p->pairs = array(r * pairs, sizeof(Pair), &failed);
    p->stale = array(r, 1, &failed);
    p->changed = array(5 * r, 1, &failed);
    p->left_any = p->changed ? p->changed + r : NULL;
    p->gets_back = p->changed ? p->changed + 2 * r : NULL;
    p->gives_back = p->changed ? p->changed + 3 * r : NULL;
    p->unnoted = p->changed ? p->changed + 4 * r : NULL;
    p->left = array(r * words, sizeof(uint64_t), &failed);
    p->came = array(r * s + r, sizeof(int32_t), &failed);
    p->num_came = p->came ? p->came + r * s : NULL;
    const size_t experts_and_more = e + BOUNDS_AT_ONCE, slots_and_more = r * s + BOUNDS_AT_ONCE;
    p->relief = array(3 * e, sizeof(double), &failed);
    p->next_share = p->relief ? p->relief + e : NULL;
    p->loss = p->relief ? p->relief + 2 * e : NULL;
    p->relief_bound = array(2 * experts_and_more, sizeof(float), &failed);
    p->share_bound = p->relief_bound ? p->relief_bound + experts_and_more : NULL;
    p->spare_without = array(4 * slots_and_more, sizeof(float), &failed);
    if (p->spare_without) {
        p->spare_above = p->spare_without + slots_and_more;
        p->spare_loss = p->spare_above + slots_and_more;
        p->spare_price = p->spare_loss + slots_and_more;
    }
    p->places = array(e * ((r + 63) / 64), sizeof(uint64_t), &failed);
    p->spare = array(r * s, sizeof(Spare), &failed);
    p->index = array(3 * (e + r), sizeof(int32_t), &failed);
    p->key = array(e + r, sizeof(double), &failed);
    p->radix = array(2 * (e + r), sizeof(uint64_t), &failed);
    if (failed) layer_free(p);
    return failed;
}

void layer_free(Layer *p) {
    void *const arrays[] = {p->capacity, p->weight, p->count, p->share,    p->holder, p->slot,
                            p->value,    p->fill,   p->load,  p->order,    p->position, p->on,
                            p->was,      p->pairs,  p->stale, p->index,    p->key,    p->radix,
                            p->changed,  p->relief, p->places, p->spare,
                            p->spare_without, p->relief_bound, p->left, p->came};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    memset(p, 0, sizeof *p);
}

/* Set the counts of the problem at hand. The stride stays: only what is reserved for a rank. */
void layer_shape(Layer *p, int32_t experts, int32_t ranks, const int32_t *capacity) {
    p->num_experts = experts;
    p->num_ranks = ranks;
    p->words = (experts + 63) / 64;
    p->rank_words = (ranks + 63) / 64;
    p->most_copies = ranks;
    p->num_slots = 0;
    for (int32_t r = 0; r < ranks; r++) p->num_slots += p->capacity[r] = capacity[r];
    p->tracked = 0;
    p->moves_left = UNLIMITED;
}

void layer_clear(Layer *p) {
    memset(p->on, 0, sizeof *p->on * (size_t)p->num_ranks * p->words);
    memset(p->fill, 0, sizeof *p->fill * (size_t)p->num_ranks);
    memset(p->load, 0, sizeof *p->load * (size_t)p->num_ranks);
    memset(p->stale, 1, (size_t)p->num_ranks);
}

/* Put an expert among the rank's slots, in order of share. Neither counts nor loads change. */
void insert_copy(Layer *p, int32_t rank, int32_t expert) {
    int32_t *slot = slots_of(p, rank);
    double *value = values_of(p, rank);
    const double share = p->share[expert];
    int32_t i = p->fill[rank]++;
    for (; i > 0 && value[i - 1] > share; i--) {
        value[i] = value[i - 1];
        slot[i] = slot[i - 1];
    }
    value[i] = share;
    slot[i] = expert;
    put_in_set(p->on, p, rank, expert);
}

void erase_copy(Layer *p, int32_t rank, int32_t expert) {
    int32_t *slot = slots_of(p, rank);
    double *value = values_of(p, rank);
    int32_t i = 0;
    while (slot[i] != expert) i++;
    const int32_t last = --p->fill[rank];
    for (; i < last; i++) {
        value[i] = value[i + 1];
        slot[i] = slot[i + 1];
    }
    p->on[(size_t)rank * p->words + (expert >> 6)] &= ~((uint64_t)1 << (expert & 63));
}

void change_holder(Layer *p, int32_t expert, int32_t from, int32_t to) {
    int32_t *holder = holders_of(p, expert);
    while (*holder != from) holder++;
    *holder = to;
}

/* Sum a rank anew: differences would drift. */
void sum_rank(Layer *p, int32_t rank) {
    const double *value = values_of(p, rank);
    double sum = 0;
    for (int32_t i = 0; i < p->fill[rank]; i++) sum += value[i];
    p->load[rank] = sum;
    p->stale[rank] = p->changed[rank] = 1;
}

/* Move a rank whose load changed to its place in `order`. */
void reorder_rank(Layer *p, int32_t rank) {
    const double load = p->load[rank];
    int32_t i = p->position[rank];
    for (; i > 0 && p->load[p->order[i - 1]] > load; i--) p->position[p->order[i] = p->order[i - 1]] = i;
    for (; i + 1 < p->num_ranks && p->load[p->order[i + 1]] < load; i++)
        p->position[p->order[i] = p->order[i + 1]] = i;
    p->order[i] = rank;
    p->position[rank] = i;
}

/* Sort indices by key from the largest, to 2^-24 of the largest key; equal keys stay in order. */
void sort_descending(const double *key, int32_t n, int32_t *out, uint64_t *scratch) {
    uint64_t *from = scratch, *to = scratch + n;
    uint32_t start[3][256];
    double top = 0;
    for (int32_t i = 0; i < n; i++)
        if (key[i] > top) top = key[i];
    memset(start, 0, sizeof start);
    for (int32_t i = 0; i < n; i++) {
        const uint32_t digits = top > 0 ? 16777215u - (uint32_t)(key[i] / top * 16777215.0) : 0;
        from[i] = (uint64_t)digits << 32 | (uint32_t)i;
        start[0][digits & 255]++;
        start[1][digits >> 8 & 255]++;
        start[2][digits >> 16]++;
    }
    for (int pass = 0; pass < 3; pass++) {
        uint32_t *next = start[pass], sum = 0;
        for (int digit = 0; digit < 256; digit++) {
            const uint32_t count = next[digit];
            next[digit] = sum;
            sum += count;
        }
        for (int32_t i = 0; i < n; i++) to[next[from[i] >> (32 + 8 * pass) & 255]++] = from[i];
        uint64_t *const swap = from;
        from = to;
        to = swap;
    }
    for (int32_t i = 0; i < n; i++) out[i] = (int32_t)(uint32_t)from[i];
}

void sort_ranks(Layer *p) {
    const int32_t n = p->num_ranks;
    for (int32_t r = 0; r < n; r++) sum_rank(p, r);
    sort_descending(p->load, n, p->index, p->radix);
    for (int32_t i = 0; i < n; i++) p->position[p->order[i] = p->index[n - 1 - i]] = i;
    /* What the digits did not tell apart. */
    for (int32_t r = 0; r < n; r++) reorder_rank(p, r);
}

/* Give all copies of an expert their new share after its count changed. */
void revalue(Layer *p, int32_t expert) {
    const int32_t *holder = holders_of(p, expert);
    p->share[expert] = p->weight[expert] / p->count[expert];
    for (int32_t i = 0; i < p->count[expert]; i++) {
        erase_copy(p, holder[i], expert);
        insert_copy(p, holder[i], expert);
        sum_rank(p, holder[i]);
        reorder_rank(p, holder[i]);
    }
}

/* Add a copy on a rank with room. */
void add_copy(Layer *p, int32_t rank, int32_t expert) {
    holders_of(p, expert)[p->count[expert]++] = rank;
    p->share[expert] = p->weight[expert] / p->count[expert];
    insert_copy(p, rank, expert);
    p->moves_left -= p->moves_left == UNLIMITED ? 0 : arrival(p, rank, expert);
    revalue(p, expert);
}

void drop_copy(Layer *p, int32_t rank, int32_t expert) {
    erase_copy(p, rank, expert);
    sum_rank(p, rank);
    reorder_rank(p, rank);
    change_holder(p, expert, rank, holders_of(p, expert)[p->count[expert] - 1]);
    p->count[expert]--;
    p->moves_left += p->moves_left == UNLIMITED ? 0 : arrival(p, rank, expert);
    if (p->count[expert]) revalue(p, expert);
    else p->share[expert] = p->weight[expert];
}
