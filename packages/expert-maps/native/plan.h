/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What Python calls. Every array is C-contiguous and owned by the caller.
 */
#ifndef EXPERT_MAPS_PLAN_H
#define EXPERT_MAPS_PLAN_H

#include "layer.h"

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

/* What is laid out otherwise, or means something else, has another version. */
#define INTERFACE_VERSION 3

typedef struct {
    int64_t size, version; /* of this structure; they are compared before anything else is read */
    int64_t layers, experts, ranks, nodes, groups, windows, slots;
    const int32_t *capacity;    /* [ranks], adds up to `slots` */
    const double *load;         /* [layers, experts] */
    const double *window_load;  /* [layers, windows, experts]; read with several windows */
    const int32_t *current;     /* [layers, held in all], each rank's present experts; NULL: from scratch */
    const int32_t *held;        /* [ranks], how many those are */
    int64_t max_moves;          /* of a layer, beyond those that cannot be avoided; -1: without limit */
    int64_t max_kicks;          /* random restarts of a layer that is not certified */
    int64_t effort;             /* of a layer that starts from a placement, see replan.c; 0: as much as there is */
    int64_t certify;            /* whether dear bounds are sought too, where the cheap ones do not certify; the plan is the same */
    double tolerance;
    const volatile int32_t *cancelled; /* another thread sets it: the answer is INTERRUPTED; NULL where nobody can */
    int32_t *slot;              /* out: [layers, slots] */
    double *bound;              /* out: [layers], no placement's hottest rank carries less; -1: not grouped */
    double *rank_load;          /* out: [layers, ranks] */
} Problem;

enum { PLANNED = 0, OUT_OF_MEMORY = 1, NOT_GROUPED = 2, BROKEN = 3, WRONG_BOUND = 4, OTHER_INTERFACE = 5, INTERRUPTED = 6 };

/* Room for one layer at a time. */
typedef struct {
    Layer now, saved;
    int32_t ranks_per_node, experts_per_node;
    int32_t *node_of;   /* [groups] */
    int32_t *members;   /* [experts], those of each node in a row */
    int32_t *local;     /* [experts], an expert's place among its node's */
    int32_t *part;      /* [experts of a node], those of a set of groups */
    int32_t *kept;      /* [held in all], the present copies, numbered so */
    int32_t *slot;      /* [slots], an answer to compare with */
    double *rank_load;  /* [ranks], its loads */
    double *group_load; /* [groups] */
    double *proved;     /* [nodes], what no placement of a node's experts is below */
    double *doubles;    /* scratch of nodes.c */
    int32_t *ints;
    uint64_t *words;
} Work;

/* plan.c */
EXPORTED int expert_maps_plan(const Problem *problem);
EXPORTED const char *expert_maps_source_hash(void);
EXPORTED int64_t expert_maps_interface(void);
void write_ranks(const Layer *p, const int32_t *members, int32_t *slot, double *rank_load);
double plan_part(Work *w, const Problem *problem, const double *load, const int32_t *members, double bound,
                 int32_t *slot, double *rank_load);
double plan_from_scratch(Work *w, const Problem *problem, int64_t layer, int32_t *slot, double *rank_load);

/* nodes.c */
double split_over_nodes(Work *w, const Problem *problem, const double *load);
int split_as_before(Work *w, const Problem *problem, const int32_t *current, const double *load, double *bound);

/* assignments.c */
double try_assignments(Work *w, const Problem *problem, const double *load, double bound, int32_t *slot,
                       double *rank_load);

/* incremental.c */
void start_from(Layer *p, const int32_t *current, const int32_t *held);
void complete(Layer *p);
int32_t arrivals(const Layer *p);

/* replan.c */
double replan(Work *w, const Problem *problem, int64_t layer, int64_t *forced);

/* over_time.c */
int plan_over_time(const Problem *problem, const int64_t *forced);

/* relabel.c */
int relabel(Work *w, const Problem *problem, const int32_t *current, int64_t limit, int32_t *slot, double *rank_load);
void keep_places(const Problem *problem, const int32_t *current, int32_t *slot);
int64_t count_arrivals(const Problem *problem, const int32_t *current, const int32_t *slot);

/* split.c */
EXPORTED int expert_maps_split(int64_t layers, int64_t experts, int64_t ranks, int64_t slots, const int32_t *first,
                               const int32_t *rank_of, const int32_t *slot, const double *load, double *share,
                               double *bound);

#endif
