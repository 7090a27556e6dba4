//! What a pruned channel costs and how it is compensated: the method itself, pure functions over a graph.
