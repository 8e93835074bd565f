/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each part of the planner alone, for the tests that compare it with its twin in `expert_maps/reference`. Nothing else
 * calls these; what is not a placement, or has other counts, is not checked.
 */
#include "plan.h"

int check_answer(const Problem *problem, int64_t *last); /* plan.c */

/* A layer, what a part is told, and what it answers. */
typedef struct {
    int64_t experts, ranks, stride;
    const int32_t *capacity; /* [ranks] */
    const double *weight;    /* [experts] */
    int32_t *count;          /* [experts], in and out */
    int32_t *slot;           /* [slots], in and out: each rank's experts, the lightest share first */
    double *load;            /* out: [ranks] */
    int32_t *order;          /* out: [ranks], the lightest first */
    double target, least, tolerance, low, high;
    int64_t steps, recount, kicks;
    double answer;           /* out: a bound, or whether the target was reached */
} Part;

static int begin(Layer *p, const Part *part) {
    if (layer_init(p, (int32_t)part->experts, (int32_t)part->ranks, (int32_t)part->stride)) return OUT_OF_MEMORY;
    layer_shape(p, (int32_t)part->experts, (int32_t)part->ranks, part->capacity);
    memcpy(p->weight, part->weight, sizeof *p->weight * (size_t)part->experts);
    for (int32_t e = 0; e < p->num_experts; e++) {
        p->count[e] = part->count[e];
        if (p->count[e]) p->share[e] = p->weight[e] / p->count[e];
    }
    return PLANNED;
}

static int end(Layer *p, const Part *part) {
    memcpy(part->count, p->count, sizeof *p->count * (size_t)part->experts);
    layer_free(p);
    return PLANNED;
}

static void write_slots(const Layer *p, const Part *part) {
    int32_t *slot = part->slot;
    for (int32_t r = 0; r < p->num_ranks; r++) {
        for (int32_t i = 0; i < p->fill[r]; i++) *slot++ = slots_of(p, r)[i];
        part->load[r] = p->load[r];
        part->order[r] = p->order[r];
    }
}

EXPORTED int expert_maps_part_replicate(const Part *part) {
    Layer p;
    if (begin(&p, part)) return OUT_OF_MEMORY;
    replicate(&p);
    return end(&p, part);
}

EXPORTED int expert_maps_part_pack(const Part *part) {
    Layer p;
    if (begin(&p, part)) return OUT_OF_MEMORY;
    pack(&p);
    sort_ranks(&p);
    write_slots(&p, part);
    return end(&p, part);
}

/* Take the slots that are given, an expert's ranks in order. */
static int begin_placed(Layer *p, const Part *part) {
    const int32_t *slot = part->slot;
    if (begin(p, part)) return OUT_OF_MEMORY;
    memset(p->count, 0, sizeof *p->count * (size_t)part->experts);
    layer_clear(p);
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < p->capacity[r]; i++, slot++) {
            holders_of(p, *slot)[p->count[*slot]++] = r;
            insert_copy(p, r, *slot);
        }
    sort_ranks(p);
    return PLANNED;
}

EXPORTED int expert_maps_part_descend(Part *part) {
    Layer p, saved;
    Goal goal = {part->target, part->least, part->steps, (int)part->recount};
    if (begin_placed(&p, part)) return OUT_OF_MEMORY;
    int reached = descend(&p, &goal);
    if (!reached && part->kicks) {
        if (begin(&saved, part)) return OUT_OF_MEMORY;
        reached = kick_and_descend(&p, &goal, &saved, (int32_t)part->kicks);
        layer_free(&saved);
    }
    part->answer = reached;
    write_slots(&p, part);
    return end(&p, part);
}

EXPORTED int expert_maps_part_mean_bound(Part *part) {
    Layer p;
    if (begin(&p, part)) return OUT_OF_MEMORY;
    part->answer = mean_bound(&p);
    return end(&p, part);
}

EXPORTED int expert_maps_part_replica_bound(Part *part) {
    Layer p;
    if (begin(&p, part)) return OUT_OF_MEMORY;
    part->answer = replica_bound(&p, part->low);
    return end(&p, part);
}

EXPORTED int expert_maps_part_search_counts(Part *part) {
    Layer p;
    if (begin(&p, part)) return OUT_OF_MEMORY;
    search_counts(&p, part->low, part->tolerance);
    return end(&p, part);
}

EXPORTED int expert_maps_part_two_slot_bound(Part *part) {
    Layer p;
    if (begin(&p, part)) return OUT_OF_MEMORY;
    part->answer = two_slot_bound(&p, part->low, part->high, part->tolerance);
    return end(&p, part);
}

EXPORTED int expert_maps_part_try_all(Part *part) {
    Layer p;
    if (begin_placed(&p, part)) return OUT_OF_MEMORY;
    part->answer = try_all(&p, part->low, part->steps, (int)part->recount);
    write_slots(&p, part);
    return end(&p, part);
}

/* What is said of an answer that is given with the problem. */
EXPORTED int expert_maps_part_check_answer(const Problem *problem) {
    int64_t *last = calloc((size_t)problem->experts, sizeof *last);
    const int status = last ? check_answer(problem, last) : OUT_OF_MEMORY;
    free(last);
    return status;
}
