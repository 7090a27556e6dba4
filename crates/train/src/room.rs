//! Memory for maps and samples, handed on from one to the next as it is: fresh memory costs a page fault every few kilobytes, and
//! clearing costs writing all of it once more.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use rayon::prelude::*;

use crate::net::{Buffer, Pool};

/// Floats that are kept at most for who comes next.
const MOST: usize = 1 << 28;

/// Floats that a thread copies at a time.
const COPIED: usize = 1 << 16;

thread_local! {
    /// What this thread keeps, where it keeps anything.
    static KEPT: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// While this lives, rooms that its thread is done with are kept for the next.
pub(crate) struct Keep {
    /// It is the outermost of several.
    first: bool,
}

impl Keep {
    pub(crate) fn rooms() -> Self {
        KEPT.with_borrow_mut(|kept| {
            let first = kept.is_none();
            kept.get_or_insert_default();
            Self { first }
        })
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        if self.first {
            KEPT.set(None);
        }
    }
}

/// Floats on a cache line's border.
#[derive(Default)]
pub(crate) struct Room(Buffer);

impl Room {
    /// So many, with anything in them.
    pub(crate) fn any(len: usize) -> Self {
        let take = |kept: &mut Option<Pool>| kept.as_mut().map_or_else(|| Pool::default().take(len), |p| p.take(len));
        Self(KEPT.with_borrow_mut(take))
    }

    /// These.
    pub(crate) fn of(values: &[f32]) -> Self {
        let mut room = Self::any(values.len());
        room.par_chunks_mut(COPIED).zip(values.par_chunks(COPIED)).for_each(|(to, from)| to.copy_from_slice(from));
        room
    }

    /// So many of nought.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut room = Self::any(len);
        room.par_chunks_mut(COPIED).for_each(|part| part.fill(0.0));
        room
    }
}

impl Deref for Room {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_slice()
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_mut_slice()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that ends has nothing left to keep it for.
        let _ = KEPT.try_with(|kept| {
            if let Some(pool) = kept.borrow_mut().as_mut() {
                pool.give(buffer);
                pool.keep_at_most(MOST);
            }
        });
    }
}

/// Floats of its own, or some of another's.
pub(crate) enum Values<'a> {
    Own(Room),
    Part(&'a [f32]),
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Own(room) => room,
            Self::Part(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_that_of_the_last_of_its_size_while_rooms_are_kept() {
        let made = |len| Room::any(len).as_ptr();
        let keep = Keep::rooms();
        let (first, other) = (Room::of(&[1.0; 1000]), Room::any(100));
        let at = first.as_ptr();
        drop((first, other));
        assert_eq!(made(900), at);
        {
            let _inner = Keep::rooms();
            assert_eq!(made(1000), at);
        }
        assert_eq!(made(1000), at, "the outer one lives on");
        assert!(Room::zeros(1000).iter().all(|&v| v == 0.0));
        drop(keep);
        assert!(KEPT.with_borrow(Option::is_none));
    }
}
