/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A layer's placement under the load of several windows.
 */
#ifndef EXPERT_MAPS_WINDOWS_H
#define EXPERT_MAPS_WINDOWS_H

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math") /* nobody reads the processor's flags: a larger and a smaller number need no branch */
#endif
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
    int32_t *holder;               /* [P], the ranks of each expert's copies, in order, expert by expert */
    int32_t *first, *end;          /* [E], where an expert's are among them */
    int32_t *seen;                 /* [R], whether no swap of the rank's helps, in this step */
    uint8_t *may;                  /* [R, R], whether swaps of the first with the second were tried, in this step */
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

#define FLOOR 0.1f /* of the hottest rank's load: to the 32nd what is below counts as nothing, and must not underflow */

/* Sums over windows are taken in LANES sums, which a processor adds to at once. */
static inline float sum_lanes(const float *sum) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

static inline float *loads_of(const Windowed *p, int32_t rank) { return p->load + (size_t)rank * p->windows; }
static inline float *share_of(const Windowed *p, int32_t e) { return p->share + (size_t)e * p->windows; }
static inline float *slopes_of(const Windowed *p, int32_t rank) { return p->slope + (size_t)rank * p->windows; }
static inline float *powers_of(const Windowed *p, int32_t rank) { return p->power + (size_t)rank * p->windows; }

static inline int32_t *ranks_of(const Windowed *p, int32_t e) { return p->holder + p->first[e]; }

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

/* The 32nd power of a load in units of the window's hottest one. Beyond 16 it is infinite, and so is the sum: no step goes there. */
static inline float power(float load) {
    const float x = larger(load, FLOOR), x2 = x * x, x4 = x2 * x2, x8 = x4 * x4, x16 = x8 * x8;
    return x16 * x16;
}

static inline float root(float sum) { return sqrtf(sqrtf(sqrtf(sqrtf(sqrtf(sum))))); }

/* By how much more is counted, at the present slopes, where a rank gets the shares of an expert. */
static inline float rise_over(const Windowed *p, const float *slope, int32_t e, const int32_t windows) {
    const float *share = share_of(p, e);
    float sum[LANES] = {0};
    for (int32_t v = 0; v < windows; v += LANES)
        for (int32_t i = 0; i < LANES; i++) sum[i] += slope[v + i] * share[v + i];
    return sum_lanes(sum);
}

static inline float rise(const Windowed *p, const float *slope, int32_t e) { return rise_over(p, slope, e, p->windows); }

/* The sum over windows, in LANES sums. Terms are computed apart, so that a compiler sees loops without a sum in them. */
static inline float sum_windows(const float *term, const int32_t windows) {
    float sum[LANES] = {0};
    for (int32_t v = 0; v < windows; v += LANES)
        for (int32_t i = 0; i < LANES; i++) sum[i] += term[v + i];
    return sum_lanes(sum);
}

static inline int may_move(const Windowed *p, int32_t moves) { return p->moves_left == UNLIMITED || moves <= p->moves_left; }

void consider_reassignments(Windowed *p, int32_t hot, Change *best);
void descend_windows(Windowed *p);

#endif
