/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Takes planned layers, and improves them for windows of the load in place of its sum.
 */
#include "windows.h"

static void release(Windowed *p, int32_t *node_of, float *weight) {
    void *const arrays[] = {p->count, p->offset, p->share, p->load, p->power, p->slope, p->rise, p->felt, p->total,
                            p->order, p->holder, p->first, p->end,  p->seen, p->may, p->on,   p->was,  node_of,  weight};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static void take_layer(Windowed *p, const Problem *problem, int64_t layer, int32_t *node_of, float *weight) {
    const double *load = problem->window_load + layer * problem->windows * problem->experts;
    const int32_t windows = (int32_t)problem->windows;
    double all = 0;
    memset(p->tokens, 0, sizeof p->tokens);
    for (int32_t w = 0; w < windows; w++, load += p->num_experts) {
        double mean = 0;
        for (int32_t e = 0; e < p->num_experts; e++) mean += load[e];
        mean /= p->num_ranks;
        all += mean;
        p->tokens[w] = (float)mean;
        for (int32_t e = 0; e < p->num_experts; e++)
            weight[(size_t)e * p->windows + w] = mean > 0 ? (float)(load[e] / mean) : 0;
    }
    for (int32_t w = 0; w < windows; w++) p->tokens[w] = all > 0 ? (float)((double)p->tokens[w] * windows / all) : 0;
    p->slot = problem->slot + layer * problem->slots;
    memset(p->count, 0, sizeof *p->count * (size_t)p->num_experts);
    memset(p->on, 0, sizeof *p->on * (size_t)p->num_ranks * p->words);
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < p->capacity[r]; i++) {
            const int32_t e = p->slot[p->offset[r] + i];
            p->count[e]++;
            windowed_flip(p->on, p, r, e);
            if (node_of) node_of[e] = r / p->ranks_per_node;
        }
}

/* Remember the present placement; what the plan moved so far is spent. */
static void take_current(Windowed *p, const Problem *problem, const int32_t *current, int64_t forced) {
    memset(p->was, 0, sizeof *p->was * (size_t)p->num_ranks * p->words);
    p->moves_left = UNLIMITED;
    if (problem->max_moves >= 0)
        p->moves_left = problem->max_moves + forced - count_arrivals(problem, current, p->slot);
    for (int32_t r = 0; r < p->num_ranks; r++)
        for (int32_t i = 0; i < problem->held[r]; i++, current++)
            if (*current >= 0 && !windowed_in(p->was, p, r, *current)) windowed_flip(p->was, p, r, *current);
}

static void write_loads(const Windowed *p, const Problem *problem, int64_t layer) {
    const double *load = problem->load + layer * problem->experts;
    for (int32_t r = 0; r < p->num_ranks; r++) {
        double sum = 0;
        for (int32_t i = 0; i < p->capacity[r]; i++) {
            const int32_t e = p->slot[p->offset[r] + i];
            sum += load[e] / p->count[e];
        }
        problem->rank_load[layer * problem->ranks + r] = sum;
    }
}

/* Improve all layers; `forced` [layers] are the moves that could not be avoided, NULL without a placement. */
int plan_over_time(const Problem *problem, const int64_t *forced) {
    Windowed p = {.num_experts = (int32_t)problem->experts,
                  .num_ranks = (int32_t)problem->ranks,
                  .windows = (int32_t)(problem->windows + LANES - 1) / LANES * LANES,
                  .ranks_per_node = (int32_t)(problem->ranks / problem->nodes),
                  .words = (int32_t)((problem->experts + 63) / 64),
                  .capacity = problem->capacity,
                  .moves_left = UNLIMITED};
    const size_t e = (size_t)p.num_experts, r = (size_t)p.num_ranks, w = (size_t)p.windows;
    int32_t *node_of = problem->nodes > 1 ? calloc(e, sizeof *node_of) : NULL;
    float *weight = calloc(e * w, sizeof *weight);
    int64_t held = 0;
    int interrupted = 0;
    p.count = calloc(e, sizeof *p.count);
    p.offset = calloc(r, sizeof *p.offset);
    p.share = calloc(e * w, sizeof *p.share);
    p.load = calloc(r * w, sizeof *p.load);
    p.power = calloc(r * w, sizeof *p.power);
    p.slope = calloc(r * w, sizeof *p.slope);
    p.rise = calloc(e, sizeof *p.rise);
    p.felt = calloc(e, sizeof *p.felt);
    p.total = calloc(r, sizeof *p.total);
    p.order = calloc(r, sizeof *p.order);
    p.holder = calloc((size_t)problem->slots, sizeof *p.holder);
    p.first = calloc(e, sizeof *p.first);
    p.end = calloc(e, sizeof *p.end);
    p.seen = calloc(r, sizeof *p.seen);
    p.may = calloc(r * r, sizeof *p.may);
    p.on = calloc(r * p.words, sizeof *p.on);
    p.was = problem->current ? calloc(r * p.words, sizeof *p.was) : NULL;
    p.weight = weight;
    p.node_of_expert = node_of;
    const int failed = !weight || !p.count || !p.offset || !p.share || !p.load || !p.power || !p.slope || !p.rise ||
                       !p.felt || !p.total || !p.order || !p.holder || !p.first || !p.end || !p.seen || !p.may || !p.on ||
                       (problem->nodes > 1 && !node_of) || (problem->current && !p.was);
    for (size_t i = 1; !failed && i < r; i++) p.offset[i] = p.offset[i - 1] + p.capacity[i - 1];
    for (size_t i = 0; problem->current && i < r; i++) held += problem->held[i];
    for (int64_t layer = 0; !failed && !interrupted && layer < problem->layers; layer++) {
        const int32_t *current = problem->current ? problem->current + layer * held : NULL;
        interrupted = problem->cancelled && *problem->cancelled;
        take_layer(&p, problem, layer, node_of, weight);
        if (current) take_current(&p, problem, current, forced[layer]);
        p.effort = problem->effort > 0 && problem->effort < 40000000 ? problem->effort : 40000000;
        descend_windows(&p);
        if (current) keep_places(problem, current, p.slot);
        write_loads(&p, problem, layer);
    }
    release(&p, node_of, weight);
    return failed ? OUT_OF_MEMORY : interrupted ? INTERRUPTED : PLANNED;
}
