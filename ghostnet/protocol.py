"""What a coordinator may ask of a hospital, and the names in the messages that carry it.

The coordinator can only ask for these five things. Each answer consists of released values only: a ledger head, a
noised sum, weights that were trained under noise, a masked sum, noised counts, and a signed statement.
"""

from __future__ import annotations

JOIN = "query.join"  # the plan -> the hospital reserves the whole run's cost and answers with its ledger head
WARM_START = "query.warm_start"  # nothing -> one noised sum of embeddings
TRAIN = "train"  # weights, released mean -> weights after local DP-SGD; the discriminator's too where it is shared
STEP = "query.step"  # pooled: discriminator weights, step, roster -> one masked sum over the patients
FINISH = "query.finish"  # final generator, classifier, digests of the sampler's files -> noised counts and a statement

ARRAYS = "arrays"  # the values released, or the model to start from
PUBLIC = "public"  # further public arrays that a request carries
CONFIG = "config"
FILES = "files"  # in a finish request's config: SHA-256 of every file of the sampler, as a JSON object
PUBLIC_IMAGES = "public-images-sha256"  # in a finish request's config: "" where the generator started from none
METRICS = "metrics"  # one constant: Flower's averaging wants a weight, and a true one would tell the cohort's size
WEIGHT = "weight"

NOISED_SUM = "noised_sum"
MASKED_SUM = "masked_sum"  # int64, uniform to whoever lacks a mask
DISCRIMINATOR = "discriminator."  # prefix of a shared discriminator's weights beside the generator's
NOISED_COUNTS = "noised_counts"
RELEASED_MEAN = "released_mean"
CLASSIFIER = "classifier."  # prefix of a classifier's weights among public arrays
SCORE_EDGES = "score_edges"

REFUSED = 101  # error code: the hospital's policy, budget or ledger says no
SPENT = 103  # error code: this very request began before and died; asking again is in vain, the next one is not
FAILED = 102  # error code: something else went wrong there; the detail stays in the hospital's log
