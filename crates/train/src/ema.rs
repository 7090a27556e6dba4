//! The moving average of a model's weights and running statistics, which is what is evaluated and kept.

use graph::Graph;
use serde::{Deserialize, Serialize};

/// How slowly the average follows. The defaults are YOLOv5's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmaConfig {
    /// Share of the average that stays in an update, once there have been many.
    pub decay: f64,
    /// Updates over which the decay rises: it is `decay * (1 - e^(-updates / tau))`.
    pub tau: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.9999, tau: 2000.0 }
    }
}

/// Exponential moving average of a graph.
#[derive(Clone, Debug)]
pub struct Ema {
    config: EmaConfig,
    graph: Graph,
    updates: u64,
}

impl Ema {
    /// Starts from `graph` as it is.
    pub fn new(config: EmaConfig, graph: &Graph) -> Self {
        Self::resume(config, graph.clone(), 0)
    }

    /// Goes on from an average that has seen `updates` updates.
    pub fn resume(config: EmaConfig, average: Graph, updates: u64) -> Self {
        Self { config, graph: average, updates }
    }

    /// Takes in the weights of `model` after a step of the optimiser.
    ///
    /// # Panics
    /// If `model` has other weights than the average.
    pub fn update(&mut self, model: &Graph) {
        self.updates += 1;
        let keep = self.config.decay * (1.0 - (-(self.updates as f64) / self.config.tau).exp());
        self.graph.mix(keep as f32, model, (1.0 - keep) as f32);
    }

    /// The average.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How often it has been updated.
    pub fn updates(&self) -> u64 {
        self.updates
    }
}

#[cfg(test)]
mod tests {
    use graph::{BatchNorm, Family, Meta, Node, Op};

    use super::*;

    fn graph(value: f32) -> Graph {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 8] };
        let mut graph = Graph::new(meta, 1);
        let mut bn = BatchNorm::identity(1, 1e-3, 0.03);
        (bn.gamma[0], bn.mean[0]) = (value, 10.0 * value);
        graph.nodes.push(Node { name: "bn".into(), op: Op::BatchNorm(bn), inputs: vec![0] });
        graph
    }

    fn values(graph: &Graph) -> Vec<f32> {
        graph.nodes[1].op.weights().iter().map(|(_, w)| w[0]).collect()
    }

    #[test]
    fn follows_the_weights_and_the_statistics_by_hand() {
        let mut ema = Ema::new(EmaConfig { decay: 0.5, tau: 1.0 }, &graph(0.0));
        ema.update(&graph(1.0));
        // keep = 0.5 (1 - 1/e) = 0.31606; the variance is 1 in both.
        let want = [0.683_94, 0.0, 6.839_4, 1.0];
        assert!(values(ema.graph()).iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{:?}", values(ema.graph()));
    }

    #[test]
    fn it_remembers_longer_from_update_to_update() {
        let mut ema = Ema::new(EmaConfig { decay: 0.5, tau: 2.0 }, &graph(0.0));
        ema.update(&graph(1.0));
        ema.update(&graph(3.0));
        // Keeps 0.5 (1 - e^-0.5), then 0.5 (1 - e^-1): 0.803265, then 3 - 0.316060 (3 - 0.803265).
        assert!((values(ema.graph())[0] - 2.305_7).abs() < 1e-5, "{:?}", values(ema.graph()));
    }

    #[test]
    fn the_first_updates_hardly_remember() {
        let mut ema = Ema::new(EmaConfig::default(), &graph(0.0));
        ema.update(&graph(1.0));
        assert!(values(ema.graph())[0] > 0.999);
    }

    #[test]
    fn resuming_changes_nothing() {
        let mut ema = Ema::new(EmaConfig::default(), &graph(0.0));
        ema.update(&graph(1.0));
        let mut resumed = Ema::resume(EmaConfig::default(), ema.graph().clone(), ema.updates());
        ema.update(&graph(3.0));
        resumed.update(&graph(3.0));
        assert_eq!(ema.graph(), resumed.graph());
    }
}
