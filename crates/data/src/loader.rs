//! Batches made ahead of time on threads of their own, the same whatever the number of threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::augment::{self, Augment, Source};
use crate::letterbox::{Fit, Letterbox, resize};
use crate::{Error, Item, Result, Target, picture};

/// What is made of the images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Shuffled anew each epoch and augmented.
    Train(Augment),
    /// In order, fitted to the canvas whole.
    Val(Fit),
}

impl Mode {
    fn fit(self) -> Fit {
        match self {
            Self::Val(fit) => fit,
            Self::Train(_) => Fit::Letterbox,
        }
    }
}

/// How a [`Loader`] works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Side S of the square canvas, pixels.
    pub size: u32,
    /// Images per batch; an epoch's last batch may be shorter.
    pub batch: usize,
    pub mode: Mode,
    /// Threads that prepare batches.
    pub threads: usize,
    /// Batches that may wait, ready, for the consumer.
    pub ahead: usize,
    /// How many bytes of decoded, resized images to keep between epochs. What does not fit is decoded each time.
    pub cache_bytes: usize,
    /// Everything random follows from this, the epoch and the place within it.
    pub seed: u64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        let mode = Mode::Train(Augment::default());
        Self { size: 640, batch: 16, mode, threads: 2, ahead: 4, cache_bytes: 4 << 30, seed: 0 }
    }
}

/// Images on their canvases, with their boxes.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// (N, H, W, 3), RGB, 0 to 255.
    pub images: Vec<u8>,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    /// Boxes that count, as fractions of the canvas, ordered by image.
    pub targets: Vec<Target>,
    /// Index into the split's items of each image (of a mosaic, its first).
    pub items: Vec<usize>,
    /// How each image was placed; empty when training.
    pub letterboxes: Vec<Letterbox>,
}

/// Turns the items of a split into batches.
#[derive(Clone)]
pub struct Loader {
    items: Arc<[Item]>,
    config: LoaderConfig,
    cache: Arc<Cache>,
}

/// An image resized so that its long side is the canvas side.
struct Frame {
    pixels: Vec<u8>,
    placed: Letterbox,
}

/// Decoded images, as many as the budget holds.
struct Cache {
    frames: Vec<OnceLock<Arc<Frame>>>,
    used: AtomicUsize,
}

impl Loader {
    /// # Errors
    /// If there are no items or a setting makes no sense.
    pub fn new(items: &[Item], config: LoaderConfig) -> Result<Self> {
        if items.is_empty() {
            return Err(Error::Config("there are no images to load".into()));
        }
        for (name, value) in [("size", config.size as usize), ("batch", config.batch), ("threads", config.threads)] {
            if value == 0 {
                return Err(Error::Config(format!("the loader's `{name}` is nought")));
            }
        }
        if let Mode::Train(augment) = config.mode {
            augment.check().map_err(Error::Config)?;
        }
        let frames = std::iter::repeat_with(OnceLock::new).take(items.len()).collect();
        Ok(Self { items: items.into(), config, cache: Arc::new(Cache { frames, used: AtomicUsize::new(0) }) })
    }

    /// The same images (and the same cache of them, if they are fitted alike) put to another use: gentler augmentation, say, or none.
    ///
    /// # Errors
    /// If the augmentation's settings make no sense.
    pub fn with_mode(&self, mode: Mode) -> Result<Self> {
        if let Mode::Train(augment) = mode {
            augment.check().map_err(Error::Config)?;
        }
        let config = LoaderConfig { mode, ..self.config };
        if mode.fit() != self.config.mode.fit() {
            return Self::new(&self.items, config);
        }
        Ok(Self { config, ..self.clone() })
    }

    /// Batches per epoch.
    pub fn batches(&self) -> usize {
        self.items.len().div_ceil(self.config.batch)
    }

    /// The batches of an epoch. Threads start at once; they stop when the iterator is dropped.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        if matches!(self.config.mode, Mode::Train(_)) {
            order.shuffle(&mut stream(self.config.seed, epoch, u32::MAX));
        }
        let window = Arc::new(Window { state: Mutex::default(), changed: Condvar::new() });
        let order: Arc<[usize]> = order.into();
        let threads = (0..self.config.threads.min(self.batches()))
            .map(|_| {
                let (loader, order, window) = (self.clone(), order.clone(), window.clone());
                std::thread::spawn(move || {
                    let _alarm = Alarm(&window);
                    while let Some(index) = window.claim(loader.batches(), loader.config.ahead) {
                        window.deliver(index, loader.batch(&order, epoch, index));
                    }
                })
            })
            .collect();
        Epoch { window, threads, next: 0, total: self.batches(), waited: Duration::ZERO }
    }

    fn batch(&self, order: &[usize], epoch: u64, index: usize) -> Result<Batch> {
        let side = self.config.size as usize;
        let first = index * self.config.batch;
        let items = &order[first..order.len().min(first + self.config.batch)];
        let mut batch = Batch {
            images: vec![0; items.len() * side * side * 3],
            n: items.len(),
            h: side,
            w: side,
            targets: Vec::new(),
            items: items.to_vec(),
            letterboxes: Vec::new(),
        };
        let canvases = batch.images.chunks_exact_mut(side * side * 3);
        for (at, (&item, canvas)) in items.iter().zip(canvases).enumerate() {
            match self.config.mode {
                Mode::Train(augment) => {
                    let rng = &mut stream(self.config.seed, epoch, (first + at) as u32);
                    let mut chosen = vec![item];
                    if rng.random::<f32>() < augment.mosaic {
                        chosen.extend([0; 3].map(|_| rng.random_range(0..self.items.len())));
                    }
                    let frames = chosen.iter().map(|&i| self.frame(i)).collect::<Result<Vec<_>>>()?;
                    let sources: Vec<_> = chosen.iter().zip(&frames).map(|(&i, f)| f.source(&self.items[i])).collect();
                    batch.targets.extend(augment::compose(&sources, &augment, rng, at, canvas, side));
                }
                Mode::Val(_) => {
                    let frame = self.frame(item)?;
                    frame.placed.paste(&frame.pixels, canvas);
                    batch.letterboxes.push(frame.placed);
                    for label in self.items[item].boxes.iter().filter(|b| b.counts()) {
                        let [x1, y1, x2, y2] = frame.placed.to_canvas(label.xyxy).map(|v| v / side as f32);
                        let bbox = [(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1];
                        batch.targets.push(Target { image: at, class: label.class, bbox });
                    }
                }
            }
        }
        Ok(batch)
    }

    fn frame(&self, index: usize) -> Result<Arc<Frame>> {
        let slot = &self.cache.frames[index];
        if let Some(frame) = slot.get() {
            return Ok(frame.clone());
        }
        let image = picture::decode(&self.items[index].image)?;
        let fit = self.config.mode.fit();
        let placed = Letterbox::fitted(image.dimensions(), self.config.size, fit);
        let frame = Arc::new(Frame { pixels: resize(&image, placed.resized, fit), placed });
        let bytes = frame.pixels.len();
        if self.cache.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.config.cache_bytes
            || slot.set(frame.clone()).is_err()
        {
            self.cache.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(frame)
    }
}

impl Frame {
    fn source<'a>(&'a self, item: &'a Item) -> Source<'a> {
        let (width, height) = (self.placed.resized.0 as usize, self.placed.resized.1 as usize);
        Source { pixels: &self.pixels, width, height, scale: self.placed.scale[0], boxes: &item.boxes }
    }
}

/// The random stream of one place in one epoch, whoever asks for it and when.
fn stream(seed: u64, epoch: u64, place: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((epoch << 32) | u64::from(place));
    rng
}

/// An epoch's batches, in order.
pub struct Epoch {
    window: Arc<Window>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
    total: usize,
    waited: Duration,
}

impl Epoch {
    /// How long the consumer has waited for batches so far: if much, the loader is the bottleneck.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.total {
            return None;
        }
        let start = Instant::now();
        let batch = self.window.take(self.next);
        self.waited += start.elapsed();
        self.next += 1;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.total - self.next, Some(self.total - self.next))
    }
}

impl ExactSizeIterator for Epoch {}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.window.lock().stopped = true;
        self.window.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there has already reached the consumer as an error.
            let _ = thread.join();
        }
    }
}

/// Hands out batch numbers to the threads, never more than so far ahead of the consumer, and batches back in order.
struct Window {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next batch nobody has claimed.
    unclaimed: usize,
    /// Batches the consumer has taken.
    taken: usize,
    ready: BTreeMap<usize, Result<Batch>>,
    stopped: bool,
    /// A thread has panicked: its batch will never come.
    broken: bool,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock, so the state is whole even if poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, total: usize, ahead: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.unclaimed == total {
                return None;
            }
            if state.unclaimed <= state.taken + ahead {
                state.unclaimed += 1;
                return Some(state.unclaimed - 1);
            }
            state = self.wait(state);
        }
    }

    fn deliver(&self, index: usize, batch: Result<Batch>) {
        self.lock().ready.insert(index, batch);
        self.changed.notify_all();
    }

    fn take(&self, index: usize) -> Result<Batch> {
        let mut state = self.lock();
        loop {
            if let Some(batch) = state.ready.remove(&index) {
                state.taken = index + 1;
                self.changed.notify_all();
                return batch;
            }
            if state.broken {
                return Err(Error::Config("a loader thread has panicked; this is a bug".into()));
            }
            state = self.wait(state);
        }
    }
}

/// Tells the consumer if the thread that holds it panics.
struct Alarm<'a>(&'a Window);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().broken = true;
            self.0.changed.notify_all();
        }
    }
}
