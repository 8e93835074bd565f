/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A layer's placement under the load of several windows.
 */
#ifndef EXPERT_MAPS_WINDOWS_H
#define EXPERT_MAPS_WINDOWS_H

#include "plan.h"

#define MOST_WINDOWS 16
#define LANES 4 /* windows are this many at once: beyond the last one come empty ones */

typedef struct {
    int32_t num_experts, num_ranks, windows, ranks_per_node, words;
    const int32_t *capacity;
    const float *weight;           /* [E, windows], in units of the window's mean rank load */
    const int32_t *node_of_expert; /* [E]; NULL where experts may be anywhere */
    int32_t *count;                /* [E] */
    int32_t *slot;                 /* [P] */
    int32_t *offset;               /* [R], a rank's first slot */
    float *share;                  /* [E, windows] */
    float *load;                   /* [R, windows] */
    float *power;                  /* [R, windows], the load to the 32nd, in units of the window's hottest one */
    float *slope;                  /* [R, windows], how much more is counted for a little more load */
    float *rise;                   /* scratch [E] */
    float *felt;                   /* [E], what its shares count at the slopes of its ranks */
    float *total;                  /* [R], what the rank counts in all windows */
    float value;                   /* what all ranks count in all windows: what is to become less */
    float tokens[MOST_WINDOWS];    /* in units of the mean window */
    float unit[MOST_WINDOWS];      /* one over the window's hottest load */
    float worth[MOST_WINDOWS];     /* tokens times the window's hottest load */
    double sum[MOST_WINDOWS];      /* of the ranks' powers */
    int32_t *order;                /* [R], the ranks, the one that counts least first */
    uint64_t *on, *was;            /* [R, words]; `was` is NULL without a present placement */
    int64_t moves_left;
    int64_t effort; /* loads that may still be weighed: a search over many windows and ranks has no end of its own */
} Windowed;

/* A step, and by how much the sum changes. 1: `rank` gives `out` to `other` for `in`; 2: `rank` holds `in` in place of `out`. */
typedef struct {
    float change;
    int kind;
    int32_t rank, other, out, in, moves;
} Change;

static inline int windowed_in(const uint64_t *set, const Windowed *p, int32_t rank, int32_t expert) {
    return (int)(set[(size_t)rank * p->words + (expert >> 6)] >> (expert & 63) & 1);
}

static inline void windowed_flip(uint64_t *set, const Windowed *p, int32_t rank, int32_t expert) {
    set[(size_t)rank * p->words + (expert >> 6)] ^= (uint64_t)1 << (expert & 63);
}

void descend_windows(Windowed *p);

#endif
