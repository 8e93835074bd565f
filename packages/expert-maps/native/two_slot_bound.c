/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * With two slots on every rank: a lower bound that sees which copies can be paired at all.
 *
 * If some placement keeps to T, then for every a up to T / 2 it has as many copies of size a or less as larger
 * than T - a (see two_slots.c). Weight these conditions with multipliers m(a) >= 0 and the number of slots
 * with a price: then every expert can choose its count by itself, and if even the best choices add up to less
 * than nothing, no placement keeps to T. Multipliers are sought by multiplicative weights; whatever they
 * are, the proof holds. Positions are rounded so that the conditions only become weaker.
 */
#include "layer.h"

#define BINS 256
#define CHOICES 8 /* counts that are looked at one by one; more copies are bounded together */
#define ROUNDS 80

typedef struct {
    double weight[BINS + 1]; /* multipliers, not normalised */
    double price; /* of a slot */
} Multipliers;

typedef struct {
    int32_t bin;
    int32_t value; /* +c where the copies are the smaller ones, -c where they are the larger, 0: impossible */
} CopyChoice;

static CopyChoice choice(double load, int32_t copies, double target) {
    const double size = load / copies, scale = 2 * BINS / target;
    CopyChoice c = {0, 0};
    if (size > target * (1 + 1e-12)) return c;
    double bin = size <= target / 2 ? floor(size * scale) : ceil((target - size) * scale);
    c.bin = bin < 0 ? 0 : bin > BINS ? BINS : (int32_t)bin;
    c.value = size <= target / 2 ? copies : -copies;
    return c;
}

/* Let every expert choose; sums what each condition then has. Returns the bound on the whole. */
static double choose(const Layer *p, const CopyChoice *choices, const CopyChoice *tail, int32_t most, const double *above,
                     double price, double *sum, double *used) {
    double total = price * p->num_slots;
    memset(sum, 0, sizeof *sum * (BINS + 1));
    *used = 0;
    for (int32_t e = 0; e < p->num_experts; e++) {
        double best = -INFINITY;
        CopyChoice chosen = {0, 0};
        int32_t copies = 0;
        for (int32_t c = 1; c <= CHOICES && c <= most; c++) {
            const CopyChoice option = choices[e * CHOICES + c - 1];
            if (!option.value) continue;
            const double worth = option.value * above[option.bin] - price * c;
            if (worth > best) {
                best = worth;
                chosen = option;
                copies = c;
            }
        }
        if (tail[e].value) { /* more copies: each is worth at most what the smallest is */
            const double each = (tail[e].value > 0 ? above[tail[e].bin] : 0) - price;
            const int32_t c = each > 0 ? most : CHOICES + 1;
            if (c * each > best) {
                best = c * each;
                chosen = tail[e];
                chosen.value = tail[e].value > 0 ? c : 0;
                copies = c;
            }
        }
        if (!copies) return -INFINITY; /* no count brings this expert below the target */
        total += best;
        sum[chosen.bin] += chosen.value;
        *used += copies;
    }
    for (int32_t i = 1; i <= BINS; i++) sum[i] += sum[i - 1];
    return total;
}

static int is_impossible(const Layer *p, double target, int32_t most, Multipliers *m, CopyChoice *choices) {
    CopyChoice *tail = choices + (size_t)p->num_experts * CHOICES;
    double above[BINS + 1], sum[BINS + 1], used;
    for (int32_t e = 0; e < p->num_experts; e++) {
        for (int32_t c = 1; c <= CHOICES; c++) choices[e * CHOICES + c - 1] = choice(p->weight[e], c, target);
        tail[e] = most > CHOICES ? choice(p->weight[e], most, target) : (CopyChoice){0, 0};
    }
    for (int round = 0; round < ROUNDS; round++) {
        double total = 0, largest = 1e-300;
        for (int32_t i = BINS; i >= 0; i--) above[i] = total += m->weight[i];
        for (int32_t i = 0; i <= BINS; i++) above[i] /= total;
        for (int32_t i = 0; i <= BINS; i++) m->weight[i] /= total;
        const double value = choose(p, choices, tail, most, above, m->price, sum, &used);
        if (value < -1e-9 * p->num_slots) return 1;
        for (int32_t i = 0; i <= BINS; i++)
            if (fabs(sum[i]) > largest) largest = fabs(sum[i]);
        /* Polyak's step, to a value somewhat below zero. The factors are what converged soonest on trial. */
        const double unused = p->num_slots - used;
        const double step = (value + 0.005 * p->num_slots) / (largest * largest + 10 * unused * unused);
        for (int32_t i = 0; i <= BINS; i++) {
            const double change = -30 * step * sum[i];
            m->weight[i] = m->weight[i] * exp(change < 50 ? change : 50) + 1e-12;
        }
        m->price -= 10 * step * unused;
    }
    return 0;
}

/* The largest load below `high` that is proved impossible, or `low`. */
double two_slot_bound(Layer *p, double low, double high, double tolerance) {
    const int32_t extra = p->num_slots - p->num_experts + 1, most = p->most_copies < extra ? p->most_copies : extra;
    CopyChoice *choices = malloc(sizeof *choices * (size_t)p->num_experts * (CHOICES + 1));
    Multipliers m;
    if (!choices) return low; /* a weaker bound is still one */
    for (int32_t i = 0; i <= BINS; i++) m.weight[i] = 1;
    m.price = 0;
    for (int step = 0; step < 6 && high > low * (1 + tolerance); step++) {
        const double middle = (low + high) / 2;
        const Multipliers before = m;
        if (is_impossible(p, middle, most, &m, choices)) {
            low = middle;
        } else {
            m = before;
            high = middle;
        }
    }
    free(choices);
    return low;
}
