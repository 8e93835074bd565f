/* SPDX-FileCopyrightText: The expert-maps authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Lower bounds on the hottest rank's load, whatever the replica counts and the packing.
 */
#include "layer.h"

/* Not every rank can be below the mean. */
double mean_bound(const Layer *p) {
    double total = 0;
    for (int32_t e = 0; e < p->num_experts; e++) total += p->weight[e];
    return total / p->num_ranks;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* How many replicas must be larger than `size` at least. An expert with several copies is brought below it
 * by ceil(load / size) of them; those that are left as they are count once, the dearest to split first. */
static int32_t replicas_above(const Layer *p, double size, int32_t *of_price, int32_t budget) {
    int32_t above = 0;
    memset(of_price, 0, sizeof *of_price * ((size_t)budget + 1));
    for (int32_t e = 0; e < p->num_experts; e++) {
        /* A hair's breadth, as below: else a load that is above by rounding alone could never be split below. */
        if (p->weight[e] * (1 - 1e-12) <= size) continue;
        above++;
        const double copies = ceil(p->weight[e] / size * (1 - 1e-12));
        if (copies <= p->most_copies && copies - 1 <= budget) of_price[(int32_t)copies - 1]++;
    }
    for (int32_t price = 1; price <= budget && above > 0; price++) {
        const int32_t bought = of_price[price] < budget / price ? of_price[price] : budget / price;
        above -= bought;
        budget -= bought * price;
    }
    return above;
}

/* Among kR + 1 replicas some rank holds k + 1, and its other slots are not empty either: (k + 1) times the
 * smallest possible (kR + 1)-th largest replica, and as many of the smallest replicas as there are.
 * Returns that where it is more than the bound so far. */
double replica_bound(Layer *p, double bound) {
    const int32_t extra = p->num_slots - p->num_experts;
    int32_t slots = p->capacity[0];
    double hottest_replica = 0, *smallest = p->key;
    int32_t *of_price = malloc(sizeof *of_price * ((size_t)extra + 2));
    if (!of_price) return bound; /* a weaker bound is still one */
    for (int32_t r = 1; r < p->num_ranks; r++)
        if (p->capacity[r] < slots) slots = p->capacity[r];
    const int32_t most = p->most_copies < extra + 1 ? p->most_copies : extra + 1;
    for (int32_t e = 0; e < p->num_experts; e++) {
        smallest[e] = p->weight[e] / most;
        if (p->weight[e] > hottest_replica) hottest_replica = p->weight[e];
    }
    qsort(smallest, (size_t)p->num_experts, sizeof *smallest, by_value);
    for (int32_t k = 0; k < slots; k++) {
        if ((int64_t)k * p->num_ranks >= p->num_slots) break;
        double companions = 0, high = hottest_replica;
        for (int32_t i = 0; i < slots - k - 1; i++) companions += smallest[i];
        double low = (bound - companions) / (k + 1);
        /* Nothing to gain unless the replicas in question are larger than that. */
        if (low >= high || (low > 0 && replicas_above(p, low, of_price, extra) <= k * p->num_ranks)) continue;
        if (low < 0) low = 0;
        for (int i = 0; i < 40 && high - low > high * 1e-7; i++) {
            const double middle = (low + high) / 2;
            if (replicas_above(p, middle, of_price, extra) > k * p->num_ranks) low = middle;
            else high = middle;
        }
        if ((k + 1) * low + companions > bound) bound = (k + 1) * low + companions;
    }
    free(of_price);
    return bound;
}
