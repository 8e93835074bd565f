/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * One balancing problem: experts, copies and ranks of one layer, or of one node of it.
 */
#ifndef EXPERT_MAPS_LAYER_H
#define EXPERT_MAPS_LAYER_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Two slots of a rank and what they carry together. */
typedef struct {
    double sum;
    int16_t first, second;
} Pair;

/* A slot whose copy can be spared. */
typedef struct {
    int32_t rank, out;
} Spare;

#define BOUNDS_AT_ONCE 16 /* room for so many beyond the end of what budget.c bounds */

/* Ranks keep their slots sorted by share, ascending: so partners of a wanted size are found without sorting. */
typedef struct {
    int32_t num_experts, num_ranks, num_slots;
    int32_t stride;      /* slots reserved for a rank: the largest capacity */
    int32_t words, rank_words; /* 64-bit words of a rank's set of experts, and of an expert's of ranks */
    int32_t most_copies; /* of one expert: on different ranks, and all experts must fit */
    const volatile int32_t *cancelled; /* another thread sets it: no further step; NULL where nobody can */
    int32_t *capacity;   /* [R] */
    double *weight;      /* [E], the expert's load */
    int32_t *count;      /* [E], its copies */
    double *share;       /* [E], weight / count */
    int32_t *holder;     /* [E, most_copies], the ranks of its copies */
    int32_t *slot;       /* [R, stride], expert of each slot */
    double *value;       /* [R, stride], its share */
    int32_t *fill;       /* [R], slots in use */
    double *load;        /* [R] */
    int32_t *order;      /* [R], ranks from the lightest to the hottest */
    int32_t *position;   /* [R], where a rank stands in `order` */
    uint64_t *on;        /* [R, words], the rank's experts as a set */
    uint64_t *was;       /* the same in the present placement */
    int64_t moves_left;  /* slots that may still receive an expert that was not there */
    int64_t effort;      /* how long steps from it may still be sought, see budget.c */
    int tracked;         /* whether there is a present placement */
    Pair *pairs;         /* [R, pairs of stride], lazily, sorted by sum */
    uint8_t *stale;      /* [R], whether its pairs must be computed anew */
    uint8_t *changed;    /* [R], whether its load changed since budget.c last looked */
    uint8_t *unnoted;    /* [R], whether what steps.c remembers of its experts is of before */
    uint8_t *left_any;   /* [R], whether an expert left the rank since the present placement */
    uint64_t *left;      /* [R, words], which */
    int32_t *came;       /* [R, stride], the slots whose expert came to the rank since then */
    int32_t *num_came;   /* [R] */
    uint8_t *gets_back, *gives_back; /* [R], whether it had an expert of the hot rank before; whether that had one of its */
    double *relief;      /* [E], see spares.c */
    double *next_share;  /* [E], with one copy more */
    double *loss;        /* [E], see spares.c */
    uint64_t *places;    /* [E, rank_words], its holders as a set */
    int32_t spares;      /* those listed */
    uint8_t relist;      /* whether they must be listed anew */
    Spare *spare;        /* [R, stride], see spares.c */
    /* Bounds, of which only what may be wrong in their favour is wrong: */
    float *relief_bound, *share_bound; /* [E], no less than `relief`, and `next_share` */
    float *spare_without; /* [R, stride], the rank's load without it, less the target */
    float *spare_above;   /* what of the rank is above the target */
    float *spare_loss;    /* what the other holders' excess grows by */
    float *spare_price;   /* of an expert there that the rank did not have */
    int32_t *index;      /* scratch [3 * (E + R)] */
    double *key;         /* scratch [E + R] */
    uint64_t *radix;     /* scratch [2 * (E + R)] */
} Layer;

#define MOST_PAIRED_SLOTS 20 /* beyond it single swaps always do, and pairs would be many */
#define PAIRS_OF(n) ((size_t)(n) * ((size_t)(n) - 1) / 2)
#define UNLIMITED INT64_MAX

static inline int in_set(const uint64_t *set, const Layer *p, int32_t rank, int32_t expert) {
    return (int)(set[(size_t)rank * p->words + (expert >> 6)] >> (expert & 63) & 1);
}

static inline void put_in_set(uint64_t *set, const Layer *p, int32_t rank, int32_t expert) {
    set[(size_t)rank * p->words + (expert >> 6)] |= (uint64_t)1 << (expert & 63);
}

static inline int holds(const Layer *p, int32_t rank, int32_t expert) { return in_set(p->on, p, rank, expert); }

/* Whether the rank can take a copy of the expert; a single copy is on its own rank only. */
static inline int fits(const Layer *p, int32_t rank, int32_t expert) {
    return p->count[expert] == 1 || !holds(p, rank, expert);
}

/* Moves that an expert's arrival on a rank costs; its departure gives them back. */
static inline int arrival(const Layer *p, int32_t rank, int32_t expert) {
    return p->tracked && !in_set(p->was, p, rank, expert);
}

static inline int is_cancelled(const Layer *p) { return p->cancelled && *p->cancelled; }

static inline int32_t *slots_of(const Layer *p, int32_t rank) { return p->slot + (size_t)rank * p->stride; }
static inline int32_t *came_to(const Layer *p, int32_t rank) { return p->came + (size_t)rank * p->stride; }
static inline double *values_of(const Layer *p, int32_t rank) { return p->value + (size_t)rank * p->stride; }
static inline int32_t *holders_of(const Layer *p, int32_t e) { return p->holder + (size_t)e * p->most_copies; }
static inline int32_t hottest(const Layer *p) { return p->order[p->num_ranks - 1]; }
static inline double peak(const Layer *p) { return p->load[hottest(p)]; }

/* layer.c */
int layer_init(Layer *p, int32_t experts, int32_t ranks, int32_t stride);
void layer_free(Layer *p);
void layer_shape(Layer *p, int32_t experts, int32_t ranks, const int32_t *capacity);
void layer_clear(Layer *p);
void insert_copy(Layer *p, int32_t rank, int32_t expert);
void erase_copy(Layer *p, int32_t rank, int32_t expert);
void change_holder(Layer *p, int32_t expert, int32_t from, int32_t to);
void sum_rank(Layer *p, int32_t rank);
void reorder_rank(Layer *p, int32_t rank);
void sort_ranks(Layer *p);
void sort_descending(const double *key, int32_t n, int32_t *out, uint64_t *scratch);
void add_copy(Layer *p, int32_t rank, int32_t expert);
void drop_copy(Layer *p, int32_t rank, int32_t expert);
void revalue(Layer *p, int32_t expert);

/* pack.c */
void replicate(Layer *p);
void pack(Layer *p);

/* descent.c */
typedef struct {
    double target; /* stop when the hottest rank carries no more */
    double least;  /* improvements below this are noise */
    int64_t steps; /* improvements and failures that may still be made */
    int recount;   /* whether copies may be split otherwise */
} Goal;
int descend(Layer *p, Goal *goal);
int kick_and_descend(Layer *p, Goal *goal, Layer *saved, int32_t kicks);
void copy_state(Layer *to, const Layer *from);

/* budget.c */
int descend_by_excess(Layer *p, Goal *goal);
int has_many_slots(const Layer *p);

/* pairs.c */
int swap_pairs(Layer *p, int32_t hot, const Goal *goal, double value);
void apply_swap(Layer *p, int32_t hot, int32_t cold, int32_t given, int32_t taken);
int swap_moves(const Layer *p, int32_t hot, int32_t cold, int32_t given, int32_t taken);

/* two_slots.c */
int has_two_slots(const Layer *p);
void search_counts(Layer *p, double bound, double tolerance);
double two_slot_bound(Layer *p, double low, double high, double tolerance);

/* exact.c */
#define MOST_TRIED_SLOTS 32 /* a rank, and an expert, has a bit */
double try_all(Layer *p, double bound, int64_t visits, int change);

/* bound.c */
double mean_bound(const Layer *p);
double replica_bound(Layer *p, double bound);

#endif
