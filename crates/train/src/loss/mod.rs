//! Detection losses with analytic gradients on the raw head maps.
