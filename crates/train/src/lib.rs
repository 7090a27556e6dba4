//! Training: the executor, losses, optimisers, sparse training, healing.
