//! Ids that turn out to stand for the same thing (Tarjan, "Efficiency of a good but not linear set union algorithm", 1975).

/// Sets of ids, each told by its smallest.
#[derive(Clone, Debug, Default)]
pub struct UnionFind {
    parent: Vec<usize>,
}

impl UnionFind {
    /// `count` more ids, each a set of its own.
    pub fn fresh(&mut self, count: usize) -> Vec<usize> {
        let ids = self.parent.len()..self.parent.len() + count;
        self.parent.extend(ids.clone());
        ids.collect()
    }

    /// The smallest id of the set that holds `id`.
    pub fn find(&mut self, mut id: usize) -> usize {
        while self.parent[id] != id {
            self.parent[id] = self.parent[self.parent[id]];
            id = self.parent[id];
        }
        id
    }

    /// Makes the sets that hold `a` and `b` one.
    pub fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[a.max(b)] = a.min(b);
    }

    /// How many ids there are.
    pub fn count(&self) -> usize {
        self.parent.len()
    }
}
