//! Optimisers over the weights of a graph.
