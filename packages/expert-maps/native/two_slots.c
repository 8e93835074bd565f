/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two slots on every rank: which replica counts let the copies be paired below a target, and a bound.
 *
 * Sorted, the largest copy pairs best with the smallest, and so on. All pairs carry at most T exactly when for
 * every a up to T / 2 there are as many copies of size a or less as there are larger than T - a. Put an
 * expert of load w with c copies at min(w / c, T - w / c), and let it count +c where w / c is the smaller and
 * -c where it is not: then no prefix sum may be negative. Positions are binned, rounded to the safe side.
 */
#include "layer.h"

#define BINS 256 /* of [0, T / 2]; the last entry is T / 2 itself */
#define NEAR 5   /* best single changes that are tried in pairs */

int has_two_slots(const Layer *p) {
    for (int32_t r = 0; r < p->num_ranks; r++)
        if (p->capacity[r] != 2) return 0;
    return p->num_slots < 16000; /* sums fit 16 bits */
}

typedef struct {
    int16_t sum[BINS + 1];
} Prefix;

/* What some copies count, from `bin` on. */
typedef struct {
    int32_t bin, value;
} Step;

static Step step(double load, int32_t copies, double target) {
    const double size = load / copies, scale = 2 * BINS / target;
    const int smaller = size <= target / 2;
    const double place = smaller ? size * scale : (target - size) * scale;
    if (place < 0) return (Step){0, -copies};
    int32_t bin = (int32_t)place;
    if (smaller && bin < place) bin++;
    return (Step){bin > BINS ? BINS : bin, smaller ? copies : -copies};
}

static void add(Prefix *d, int32_t from, int32_t to, int32_t value) {
    for (int32_t i = from; i < to; i++) d->sum[i] = (int16_t)(d->sum[i] + value);
}

static void replace(Prefix *d, Step old, Step new) {
    add(d, old.bin, BINS + 1, -old.value);
    add(d, new.bin, BINS + 1, new.value);
}

/* How much is missing in a range of the sums if they were shifted by `shift`. */
static int32_t missing_in(const Prefix *d, int32_t from, int32_t to, int32_t shift) {
    int32_t missing = 0;
    for (int32_t i = from; i < to; i++) {
        const int16_t sum = (int16_t)(d->sum[i] + shift);
        missing += sum < 0 ? -sum : 0;
    }
    return missing;
}

/* The sums, and what is missing: before each bin as they are, and from it on if they were one more or less. */
typedef struct {
    double target;
    Step *own, *up, *down; /* [E]: what an expert counts with its copies, one more, and one less */
    Prefix now;
    int32_t before[BINS + 2], more[BINS + 2], less[BINS + 2];
} State;

static void refresh(State *s) {
    s->before[0] = s->more[BINS + 1] = s->less[BINS + 1] = 0;
    for (int32_t i = 0; i <= BINS; i++) {
        const int32_t sum = s->now.sum[i];
        s->before[i + 1] = s->before[i] + (sum < 0 ? -sum : 0);
    }
    for (int32_t i = BINS; i >= 0; i--) {
        const int32_t sum = s->now.sum[i];
        s->more[i] = s->more[i + 1] + (sum < -1 ? -sum - 1 : 0);
        s->less[i] = s->less[i + 1] + (sum < 1 ? 1 - sum : 0);
    }
}

/* What is missing once an expert counts otherwise. */
static int32_t missing_after(const State *s, Step old, Step new) {
    const int32_t first = old.bin < new.bin ? old.bin : new.bin, then = old.bin + new.bin - first;
    const int32_t between = old.bin < new.bin ? -old.value : new.value, after = new.value - old.value;
    const int32_t rest = after == 1    ? s->more[then]
                         : after == -1 ? s->less[then]
                                       : missing_in(&s->now, then, BINS + 1, after);
    return s->before[first] + missing_in(&s->now, first, then, between) + rest;
}

static void count_anew(State *s, const Layer *p, int32_t e) {
    const int32_t c = p->count[e];
    s->own[e] = step(p->weight[e], c, s->target);
    s->up[e] = step(p->weight[e], c + 1, s->target);
    if (c > 1) s->down[e] = step(p->weight[e], c - 1, s->target);
}

typedef struct {
    int32_t value, expert;
} CountChange;

/* Keep the NEAR best changes, in order. */
static void remember(CountChange *best, int32_t *n, int32_t value, int32_t expert) {
    int32_t i = *n;
    if (i == NEAR && best[--i].value <= value) return;
    if (*n < NEAR) ++*n;
    for (; i > 0 && best[i - 1].value > value; i--) best[i] = best[i - 1];
    best[i] = (CountChange){value, expert};
}

/* Move copies between the experts of the two lists, as long as less is missing then; returns how many. */
static int32_t move_between(Layer *p, State *s, CountChange *more, int32_t num_more, CountChange *fewer, int32_t num_fewer) {
    for (int32_t moved = 0;; moved++) {
        int32_t best = s->before[BINS + 1], from = -1, to = -1;
        for (int32_t i = 0; i < num_more; i++) {
            const int32_t a = more[i].expert;
            Prefix gained = s->now;
            replace(&gained, s->own[a], s->up[a]);
            for (int32_t j = 0; j < num_fewer; j++) {
                const int32_t b = fewer[j].expert;
                if (a == b) continue;
                Prefix trial = gained;
                replace(&trial, s->own[b], s->down[b]);
                const int32_t value = missing_in(&trial, 0, BINS + 1, 0);
                if (value >= best) continue;
                best = value;
                to = i;
                from = j;
            }
        }
        if (to < 0) return moved;
        const int32_t a = more[to].expert, b = fewer[from].expert;
        replace(&s->now, s->own[a], s->up[a]);
        replace(&s->now, s->own[b], s->down[b]);
        p->count[a]++;
        p->count[b]--;
        count_anew(s, p, a);
        count_anew(s, p, b);
        refresh(s);
        /* Each once, before all are looked at again. */
        more[to] = more[--num_more];
        fewer[from] = fewer[--num_fewer];
        for (int32_t i = 0; i < num_fewer; i++)
            if (fewer[i].expert == a) fewer[i] = fewer[--num_fewer];
        for (int32_t i = 0; i < num_more; i++)
            if (more[i].expert == b) more[i] = more[--num_more];
    }
}

/* Move copies from experts to others so that less is missing; returns how many. */
static int32_t move_copies(Layer *p, State *s) {
    CountChange more[NEAR], fewer[NEAR];
    int32_t num_more = 0, num_fewer = 0;
    for (int32_t e = 0; e < p->num_experts; e++) {
        const int32_t c = p->count[e];
        if (c < p->most_copies) remember(more, &num_more, missing_after(s, s->own[e], s->up[e]), e);
        if (c > 1 && p->weight[e] / (c - 1) <= s->target)
            remember(fewer, &num_fewer, missing_after(s, s->own[e], s->down[e]), e);
    }
    return move_between(p, s, more, num_more, fewer, num_fewer);
}

/* Whether the counts can be changed so that all pairs keep to the target. */
static int reach(Layer *p, Step *steps, double target, int32_t *moves) {
    State s = {.target = target, .own = steps, .up = steps + p->num_experts, .down = steps + 2 * p->num_experts};
    memset(&s.now, 0, sizeof s.now);
    for (int32_t e = 0; e < p->num_experts; e++) {
        if (p->weight[e] / p->count[e] > target) return 0;
        count_anew(&s, p, e);
        s.now.sum[s.own[e].bin] = (int16_t)(s.now.sum[s.own[e].bin] + s.own[e].value);
    }
    for (int32_t i = 1; i <= BINS; i++) s.now.sum[i] = (int16_t)(s.now.sum[i] + s.now.sum[i - 1]);
    refresh(&s);
    while (s.before[BINS + 1] > 0 && *moves > 0) {
        const int32_t moved = move_copies(p, &s);
        if (!moved) return 0;
        *moves -= moved;
    }
    return s.before[BINS + 1] == 0;
}

/* The hottest pair of these counts, if the largest copy is paired with the smallest and so on. */
static double folded(Layer *p) {
    int32_t *sorted = p->index;
    sort_descending(p->share, p->num_experts, sorted, p->radix);
    double hottest_pair = 0;
    int32_t i = 0, j = p->num_experts - 1, left = p->count[sorted[0]], right = p->count[sorted[j]];
    for (int32_t pairs = p->num_slots / 2; pairs > 0;) {
        const double sum = p->share[sorted[i]] + p->share[sorted[j]];
        const int32_t n = i == j ? pairs : left < right ? left : right;
        if (sum > hottest_pair) hottest_pair = sum;
        pairs -= n;
        if (i == j || pairs <= 0) break;
        if ((left -= n) == 0) left = p->count[sorted[++i]];
        if ((right -= n) == 0) right = p->count[sorted[--j]];
    }
    return hottest_pair;
}

/* CountChange the counts so that the copies pair up as low as they can be brought. Each target is nearer to the
 * bound than the one before; a looser tolerance also gives up earlier. */
void search_counts(Layer *p, double bound, double tolerance) {
    int32_t *kept = p->index + p->num_experts + p->num_ranks;
    const double goal = bound * (1 + tolerance), effort = 0.06 / tolerance;
    int32_t moves = effort < 6 ? 6 : effort > 60 ? 60 : (int32_t)effort;
    Step *steps = malloc(sizeof *steps * 3 * (size_t)p->num_experts);
    if (!steps) return; /* the counts stay as they are */
    double reached = folded(p), target = bound + 0.5 * (reached - bound);
    for (int tries = 0; tries < 64 && reached > goal && moves > 0; tries++) {
        if (target < goal) target = goal;
        memcpy(kept, p->count, (size_t)p->num_experts * sizeof *kept);
        const int ok = reach(p, steps, target, &moves);
        for (int32_t e = 0; e < p->num_experts; e++) p->share[e] = p->weight[e] / p->count[e];
        const double now = folded(p);
        if (!ok && now >= reached) {
            memcpy(p->count, kept, (size_t)p->num_experts * sizeof *kept);
            for (int32_t e = 0; e < p->num_experts; e++) p->share[e] = p->weight[e] / p->count[e];
        } else {
            reached = ok && now > target ? target : now;
        }
        if (ok) {
            target = bound + 0.6 * (reached - bound);
        } else {
            target = (target + reached) / 2;
            if (reached - target < 0.003 * bound) break;
        }
    }
    free(steps);
}
