/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Steps from a placement in use, where every moved slot counts.
 */
#ifndef EXPERT_MAPS_STEPS_H
#define EXPERT_MAPS_STEPS_H

#include "layer.h"

typedef struct {
    double worth; /* excess removed for each slot moved */
    int kind;     /* 0: none, 1: swap, 2: reassignment */
    int32_t rank, out, in;
} BudgetStep;

static inline double excess(double load, double target) { return load > target ? load - target : 0; }

/* A step that moves nothing, or puts something back, is cheap but not free: else such steps could go round. */
static inline double price(int moves) { return moves > 0 ? moves : 0.5; }

/* What the steps of one hot rank have in common. */
typedef struct {
    double target, excess; /* the hot rank's */
    double enough;         /* a step of this worth is taken without weighing others */
    int64_t tries;         /* candidates that may still be weighed */
    int64_t effort;        /* what those that were looked at took: about so many ranks were read */
    int32_t hot;
    int32_t from, place;   /* of the best, as far as it is no swap */
    int32_t spares, cold_ranks; /* those listed, and of so many of the lightest ranks */
    int32_t backs;         /* ranks that had one of the hot rank's experts before */
    float least_gain;      /* what removes less is not good enough */
    int32_t slots;         /* of the hot rank that are weighed, the heaviest */
    BudgetStep best;
} Choice;

/* A candidate whose bound is below this cannot be as good as the best, whatever the rounding. */
static inline double bar(const Choice *c, double price) { return c->best.worth * price * (1 - 1e-10); }

#define ROUNDING 1e-6f /* of bounds, which have single precision */

/* What an expert's holder that is so much above the target loses if its copy there gets heavier. */
static inline double loss_of(double above, double rise) {
    const double after = above + rise;
    return after > 0 ? after - (above > 0 ? above : 0) : 0;
}

/* spares.c: first note what changed, then list what can return, and what can be spared, then weigh each slot of the hot rank from
 * the last (steps.c). */
void note_all(Layer *p);
void note_changes(Layer *p);
void list_returns(Layer *p, Choice *c);
void list_spares(Layer *p, Choice *c);
void list_anew(Layer *p, int32_t expert);

/* steps.c */
void consider_slot(const Layer *p, Choice *c, int32_t from);

/* budget.c */
BudgetStep best_step(Layer *p, const Goal *goal);

#endif
